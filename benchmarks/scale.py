"""Ten thousand shards, ten million rows, a model that costs next to nothing: what hfbatch itself takes.

    .venv/bin/python benchmarks/scale.py            (about half an hour on two cores)
    .venv/bin/python benchmarks/scale.py --rows 200000

Prints how long planning takes for a new output, one that is half done and one that is done, how often the commit
records were listed, and the driver's memory as the run goes on, which has to stay flat.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import hfbatch
from hfbatch.errors import Incomplete
from hfbatch.planner import Plan
from hfbatch.report import Progress
from hfbatch.store import LocalStore

FOLDER, FILES, SHARD_ROWS = Path("out/scale"), 10, 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_model(FOLDER / "model")
    write_rows(FOLDER / "in", rows)
    job = {
        "task": "text-classification",
        "model": {"id": str(FOLDER / "model")},
        "input": {"path": str(FOLDER / "in"), "keep": ["id"]},
        "output": {"path": str(FOLDER / "out")},
    }
    plan = timed("plan, nothing done", job)
    print(f"{plan.rows:,} rows in {len(plan.shards):,} shards")
    try:
        carry_out(job, max_runtime=90)
    except Incomplete as error:
        print(f"  {error}")
    timed("plan, part done", job)
    carry_out(job)
    timed("plan, all done", job)


def write_model(folder: Path) -> None:
    """One layer of width 8 over ten words."""
    import torch
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"zero one two three four five six seven eight nine".split()]
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


def write_rows(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    words = np.array("zero one two three four five six seven eight nine".split())
    for number, ids in enumerate(np.array_split(np.arange(rows), FILES)):
        table = pa.table({"id": ids, "text": words[ids % 10]})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=10 * SHARD_ROWS)


def timed(what: str, job: dict) -> Plan:
    """Plan, and tell how long that took and how often the records were listed."""
    listed, plain = [], LocalStore.list

    def counted(self: LocalStore, prefix: str) -> list[str]:
        listed.append(prefix)
        return plain(self, prefix)

    LocalStore.list = counted
    started = time.perf_counter()
    plan = hfbatch.plan(job, on={"shard_rows": SHARD_ROWS})
    seconds, LocalStore.list = time.perf_counter() - started, plain
    listings = sum(prefix.startswith("_hfbatch/commits") for prefix in listed)
    print(f"{what}: {seconds:.1f} s, {len(plan.done):,} shards done, commit records listed {listings} time(s)")
    return plan


def carry_out(job: dict, **machine: float) -> None:
    started, shown = time.perf_counter(), [0.0]

    def watch(progress: Progress) -> None:
        if time.perf_counter() - shown[0] > 60:
            shown[0] = time.perf_counter()
            done = f"{progress.rows_done:,} of {progress.rows_total:,} rows"
            print(f"  {time.perf_counter() - started:6.0f} s  {done}  driver {memory_mib():,.0f} MiB", flush=True)

    report = hfbatch.run(job, on={"shard_rows": SHARD_ROWS, **machine}, watch=watch)
    print(f"{report.outcome}: {report.rows_new:,} rows, {report.seconds.total:.0f} s, driver {memory_mib():,.0f} MiB")


def memory_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()

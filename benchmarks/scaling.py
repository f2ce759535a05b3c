"""Ten times the rows: ten times the time and the same memory?

    python -m benchmarks.scaling --rows 2800 --times 10

Runs the same rows once and repeated, embedding health tweets of at most 32 tokens: about 20 s and 200 s in steady
state on two cores. The ratio of the steady times must be within 3 % of `times`, the peak memory of the model's process
within 10 %.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpora import write_corpus
from benchmarks.machine import describe, peak_bytes
from benchmarks.models import model_folder
from benchmarks.peers import DATA
from benchmarks.tables import machine_lines

TIME, MEMORY = 0.03, 0.10


@dataclass(frozen=True)
class Scaled:
    """A run of `rows` rows."""

    rows: int
    seconds: float  # first to last batch
    wall: float
    model_bytes: int  # peak of the process that holds the model
    driver_bytes: int  # peak of this process so far


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2800)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = describe(arguments.threads)
    source = write_corpus("tweets", arguments.rows, DATA)
    with tempfile.TemporaryDirectory(prefix="hfbatch-scaling-") as scratch:
        once, often = (
            run(repeated(source, Path(scratch), times), Path(scratch) / f"out-{times}", arguments.threads)
            for times in (1, arguments.times)
        )
    print(f"{machine_lines(machine)}\n{markdown(once, often)}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        runs: dict[str, Any] = {"once": vars(once), "often": vars(often)}
        arguments.json.write_text(json.dumps({"machine": machine, **runs}, indent=1) + "\n")


def repeated(source: Path, folder: Path, times: int) -> Path:
    """The rows of a Parquet file `times` times over, as one file with ids of its own."""
    rows = pa.concat_tables([pq.read_table(source)] * times)
    path = folder / f"rows-{times}.parquet"
    pq.write_table(rows.set_column(0, "id", pa.array(np.arange(len(rows)))), path, row_group_size=1024)
    return path


def run(data: Path, out: Path, threads: int) -> Scaled:
    """Embed the file. The shards are the same in number of rows, so there are `times` as many."""
    import hfbatch

    job = {
        "task": "feature-extraction",
        "model": {"id": str(model_folder("minilm"))},
        "input": {"path": str(data), "keep": ["id"]},
        "params": {"pooling": "mean", "normalize": True, "max_length": 32},
        "output": {"path": str(out)},
    }
    report = hfbatch.run(job, on={"actors": 1, "threads_per_actor": threads, "shard_rows": 1024})
    seconds = report.rows_new / report.rows_per_s
    return Scaled(report.rows_new, seconds, report.seconds.total, report.peak_memory_bytes, peak_bytes())


def markdown(once: Scaled, often: Scaled) -> str:
    """Both runs and their ratios."""
    rows = often.rows / once.rows
    time, memory = often.seconds / once.seconds / rows, often.model_bytes / once.model_bytes
    lines = [
        "| | rows | steady s | wall s | peak of the model's process | driver |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| | {one.rows:,} | {one.seconds:.1f} | {one.wall:.1f} | {one.model_bytes / 2**20:,.0f} MiB "
            f"| {one.driver_bytes / 2**20:,.0f} MiB |"
            for one in (once, often)
        ),
        "",
        f"Rows x {rows:g}: time x {time * rows:.2f}, {_within(time, TIME)}; memory x {memory:.2f}, "
        f"{_within(memory, MEMORY)}.",
    ]
    return "\n".join(lines) + "\n"


def _within(ratio: float, most: float) -> str:
    return f"{'within' if abs(ratio - 1) <= most else '**not within**'} {most:.0%}"


if __name__ == "__main__":
    main()

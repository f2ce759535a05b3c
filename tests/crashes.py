"""What every crash test checks, and a driver that can be killed: the pipeline in a process of its own, without Ray."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow.parquet as pq

from hfbatch import passes, pipeline
from hfbatch.examine import examine
from hfbatch.ledger import Ledger
from hfbatch.store import open_store
from tests.inline import inline_passes, plan_of

PROCESSES = multiprocessing.get_context("forkserver")  # forks from a process that has no threads, and torch loaded
PROCESSES.set_forkserver_preload(["tests.crashes", "transformers.models.bert.modeling_bert"])

NONE: Mapping[str, str] = MappingProxyType({})


def drive(job: dict, fault: str | None, log: str, machine: dict, environment: Mapping[str, str] = NONE) -> None:
    """The whole of a run, in whatever process this is."""
    os.environ.update(environment, HFBATCH_FAULT_LOG=log)
    if fault:
        os.environ["HFBATCH_FAULT"] = fault
    passes.run_passes = inline_passes
    pipeline.run(plan_of(job, **machine))


def run_in_process(job: dict, fault: str | None, log: Path, environment: Mapping[str, str] = NONE, **machine) -> int:
    """The exit code of a process that runs the job; negative: killed by that signal.

    `environment`: what has come to this process's since the first such process was forked.
    """
    process = PROCESSES.Process(target=drive, args=(job, fault, str(log), machine, dict(environment)))
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None
    return process.exitcode


def inferred(log: Path) -> Counter:
    """How often each shard went through the model."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.split(" ")[1] for line in lines if line.startswith("before-inference "))


def committed(output: str) -> set[str]:
    ledger = Ledger(open_store(output))
    ruling = ledger.agreed()
    return ledger.committed(ruling.generation) if ruling else set()


def check_output(output: str, expected: Counter) -> None:
    """`expected`: (file, row) -> 1. Rows as expected; data/ is the manifest; verify finds nothing."""
    table = pq.read_table(f"{output}/data", columns=["file", "row"])
    found = Counter(zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert found == expected, f"lost {expected - found}, doubled or foreign {found - expected}"
    ledger = Ledger(open_store(output))
    pointer = json.loads((Path(output) / "_SUCCESS").read_text())
    assert pointer == ledger.current()
    manifest = json.loads((Path(output) / pointer["manifest"]).read_text())
    assert sorted(entry["data"] for entry in manifest["objects"] if entry["data"]) == ledger.store.list("data")
    assert manifest["rows"] == expected.total()
    examined = examine(output)
    examined.check()
    assert examined.rows == expected.total()

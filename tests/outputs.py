"""A finished output for tests, made by the real stages in this process, and the fault that some of its rows met."""

from __future__ import annotations

import copy
import shutil
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import passes, pipeline
from hfbatch.ledger import Ledger
from hfbatch.planner import make_plan
from hfbatch.store import open_store
from hfbatch.tasks.text_classification import TextClassification
from tests.inline import inline_passes, plan_of
from tests.models import sentences

SHARDS = {"shard_rows": 16}
FAULTY = "rain rain"


class Made:
    """An output of 50 rows in four shards. Three failed: row 3 of both files for good, row 5 of b.parquet for now."""

    def __init__(self, folder, model):
        self.folder, self.path = folder, folder / "out"
        (folder / "in").mkdir()
        for name, rows in (("a", 30), ("b", 20)):
            self.write(name, rows)
        self.job = {
            "task": "text-classification",
            "model": {"id": str(model)},
            "input": {"path": str(folder / "in")},
            "output": {"path": str(self.path)},
            "errors": {"max_failed_fraction": 1},
        }

    def write(self, name, rows, seed=0):
        texts = sentences(rows, seed=rows + seed)
        texts[3], texts[5] = None, FAULTY if name == "b" else texts[5]
        pq.write_table(pa.table({"text": texts}), self.input(name))

    def input(self, name):
        return self.folder / "in" / f"{name}.parquet"

    def run(self, **machine):
        return pipeline.run(plan_of(self.job, **(SHARDS | machine)))

    def run_with_faults(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TextClassification, "postprocess", with_fault)
            return self.run()

    @property
    def ledger(self):
        return Ledger(open_store(str(self.path)))

    @property
    def objects(self):
        return sorted((self.path / "data").iterdir())

    @property
    def records(self):
        return sorted((self.path / "_hfbatch/commits").rglob("*.json"))

    def table(self):
        return pq.read_table(self.path / "data")

    def inferred_now(self):
        """Rows of the newest run that were not carried over."""
        ledger = self.ledger
        return ledger.run_file(ledger.runs()[-1], "report.json")["rows_new"]

    def state(self):
        """What stands in the output, byte for byte."""
        return {file: file.read_bytes() for file in sorted(self.path.rglob("*")) if file.is_file()}


_REAL = TextClassification.postprocess


def with_fault(self, arrays, rows):
    if FAULTY in rows["text"].to_pylist():
        raise ValueError("a passing fault")
    return _REAL(self, arrays, rows)


@contextmanager
def runs_in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "run_passes", inline_passes)
        yield


def finished(folder, model):
    """The output, published."""
    made = Made(folder, model)
    with runs_in_this_process():
        made.run_with_faults()
    return made


def copied(made, folder):
    """The same output in a folder of its own, over the same inputs."""
    other = copy.copy(made)
    other.path = folder / "out"
    shutil.copytree(made.path, other.path)
    other.job = {**made.job, "output": {"path": str(other.path)}}
    return other


def plan_again(made):
    """A plan that tries the failed rows again rules the output, and nothing of it is done yet; with the failed ids."""
    plan = plan_of(made.job, **SHARDS)
    failing = [receipt.shard for receipt in made.ledger.receipts(plan.job.generation, plan.done) if receipt.failed]
    again = make_plan(plan.spec, plan.machine, retry=failing)
    made.ledger.agree(again.job.generation, again.shards, again.agreed)
    made.ledger.reopen()
    return again, failing


def flip_a_bit(file, at=50):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)

"""Blocks with rows that end the process that reads them, in real child processes."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import columns as col
from hfbatch.errors import SystemicError
from hfbatch.isolation import Isolated
from hfbatch.load import load_job, load_machine
from hfbatch.model import Predict
from hfbatch.planner import make_plan
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Preprocess
from hfbatch.tally import Stopped
from tests.harm import harmful
from tests.inline import blocks_of
from tests.models import sentences


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return harmful(tmp_path_factory.mktemp("model"))


@pytest.fixture
def plan_for(tmp_path, model):
    """plan_for(texts, **machine) -> a plan of one shard."""

    def make(texts, model=model, **machine):
        rows = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
        pq.write_table(rows, tmp_path / "in.parquet")
        job = {"task": "text-classification", "model": {"id": str(model), "trust_remote_code": True}}
        job |= {"input": {"path": str(tmp_path / "in.parquet")}, "output": {"path": str(tmp_path / "out")}}
        return make_plan(load_job(job), load_machine(machine), trust_remote_code=True)

    return make


def predict_for(plan, report=None, stage=False):
    return Predict(plan.job.step, plan.machine, 1, None if stage else Preprocess(plan.job.step), report, gpu=False)


def check(plan, crashed, made, harmless):
    """Rows of `crashed` have that error, `harmless` rows what they have without the others; the ticket adds up."""
    errors = made[col.ERROR].to_pylist()
    assert {row: error for row, error in enumerate(errors) if error and error.startswith("crashed_worker")} == {
        row: f"crashed_worker: {how}" for row, how in crashed.items()
    }
    assert [row for row, error in enumerate(errors) if error is None] == harmless.tolist()
    assert made[col.ROW].to_pylist() == list(range(len(made)))
    outputs = col.sequences_of(made, col.OUTPUT)
    assert outputs.row.tolist() == harmless.tolist()
    table = Finish(plan.job, "run")(made)
    assert [row for row, label in enumerate(table["label"].to_pylist()) if label is not None] == harmless.tolist()
    return outputs.columns.get("logits")


def expected(plan, block, harmless):
    """What the rows have where there are no others."""
    ticket = col.ticket_of(block)
    alone = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step), gpu=False)(
        col.Ticket(ticket.shard, len(harmless), "", ticket.pieces).on(block.take(pa.array(harmless)))
    )
    return col.sequences_of(alone, col.OUTPUT).dense("logits")


def test_a_row_that_is_alone_when_the_process_ends_is_the_one_that_ended_it(plan_for):
    plan = plan_for(["good x film"])
    [block] = blocks_of(plan)
    made = Isolated(predict_for(plan))(block)
    check(plan, {0: "exited with 3"}, made, np.arange(0))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_row_that_ends_its_process_has_an_error_and_all_others_their_results(plan_for):
    texts = [*sentences(20), "good x film", None, *sentences(10, seed=3), "bad k"]
    plan = plan_for(texts)
    [block] = blocks_of(plan)
    predict = predict_for(plan)
    made = Isolated(predict)(block)
    assert predict.engine.model is None, "it stands once in memory, and not here"
    harmless = np.setdiff1d(np.arange(len(texts)), [20, 21, len(texts) - 1])
    logits = check(plan, {20: "exited with 3"}, made, harmless)
    assert np.allclose(logits, expected(plan, block, harmless), atol=1e-5)
    errors = made[col.ERROR].to_pylist()
    assert errors[21] == "null_input: text is null"
    assert errors[-1] == "forward_failed: IndexError: index out of range in self"
    stats = col.ticket_of(made).stats
    assert {name: stats[name] for name in ("rows", "errors", "sequences")} == {
        "rows": len(texts),
        "errors": 3,
        "sequences": len(harmless),
    }
    assert (predict.engine.meter.rows, predict.engine.meter.errors) == (len(texts), 3)
    assert stats["actor"].endswith(f":{os.getpid()}")
    assert stats["first_s"] < stats["last_s"]
    assert stats["load_s"] > 0
    assert stats["tokenise_s"] > 0
    assert stats["read_s"] == col.ticket_of(block).stats["read_s"]
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_every_way_to_die_is_told_and_costs_its_row_only(plan_for):
    """Preprocess is a stage of its own here, and batches are small: not every row is a suspect."""
    texts = [*sentences(30, longest=6), "z", "q good", "w good film", "v", "y", "j bad", *sentences(30, seed=1)]
    plan = plan_for(texts, max_batch_rows=8, row_timeout_s=4)
    [block] = blocks_of(plan)
    made = Isolated(predict_for(plan, stage=True))(Preprocess(plan.job.step)(block))
    crashed = {30: "killed by SIGSEGV", 31: "exited with 4", 32: "no answer in 4 s", 33: "no answer in 4 s"}
    crashed |= {35: "CUDA error: device-side assert triggered"}
    harmless = np.setdiff1d(np.arange(len(texts)), [*crashed, 34])
    logits = check(plan, crashed, made, harmless)
    assert np.allclose(logits, expected(plan, block, harmless), atol=1e-5)
    assert made[col.ERROR][34].as_py().startswith("non_finite")
    assert [name for name in made.column_names if name.startswith(col.INPUT)] == [col.INPUT + "truncated"]
    assert multiprocessing.active_children() == []


def test_after_isolation_the_process_takes_its_model_back(plan_for):
    plan = plan_for(sentences(5))
    [block] = blocks_of(plan)
    predict = predict_for(plan)
    before = col.sequences_of(predict(block), col.OUTPUT).dense("logits")
    predict.engine.release()
    again = predict(block)
    assert predict.engine.model is not None
    assert np.array_equal(col.sequences_of(again, col.OUTPUT).dense("logits"), before)
    assert col.ticket_of(again).stats["load_s"] > 0


def test_a_shard_without_rows_needs_no_child(plan_for):
    plan = plan_for([])
    assert list(plan.shards) == []
    [block] = blocks_of(plan_for(["good"]))
    nothing = col.Ticket("shard", 0, "", []).on(col.with_column(block, col.ROW, pa.array([col.EMPTY_ROW])))
    predict = predict_for(plan)
    made = Isolated(predict)(nothing)
    assert predict.engine.model is not None
    assert len(made) == 1


@pytest.mark.slow
def test_a_child_that_dies_before_it_is_ready_is_no_rows_fault(plan_for, tmp_path):
    plan = plan_for(sentences(5), model=harmful(tmp_path / "model", fails_in_child=True))
    [block] = blocks_of(plan)
    with pytest.raises(SystemicError, match=r"died before it was ready: exited with 9; free memory"):
        Isolated(predict_for(plan))(block)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_stopped_run_ends_the_child_at_once_even_one_that_hangs(plan_for):
    def report(meter):
        if multiprocessing.active_children() and time.monotonic() > begun + 6:
            raise Stopped

    plan = plan_for(["good", "w"])
    [block] = blocks_of(plan)
    predict = predict_for(plan)
    begun, predict.engine.report = time.monotonic(), report
    with pytest.raises(Stopped):
        Isolated(predict)(block)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_model_that_hangs_ends_its_process_where_nobody_else_watches_it(plan_for, tmp_path):
    plan = plan_for(["good", "v"], row_timeout_s=2)
    (tmp_path / "plan").write_bytes(pickle.dumps((plan.job, plan.machine, blocks_of(plan))))
    code = (
        "import pickle, sys\nfrom hfbatch.model import Predict\nfrom hfbatch.preprocess import Preprocess\n"
        "job, machine, [block] = pickle.load(open(sys.argv[1], 'rb'))\n"
        "Predict(job.step, machine, 1, Preprocess(job.step), gpu=False)(block)\nprint('still there')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plan")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "in forward" in ended.stderr


@pytest.mark.slow
def test_a_child_ends_with_its_parent(plan_for, tmp_path):
    """The parent is killed while the child hangs over a row; nobody is left to tell it."""
    plan = plan_for(["w"])
    (tmp_path / "plan").write_bytes(pickle.dumps((plan.job, plan.machine, blocks_of(plan))))
    code = (
        "import pickle, sys, time\nfrom hfbatch.isolation import Child\nfrom hfbatch.model import Predict\n"
        "from hfbatch.preprocess import Preprocess\n"
        "if __name__ == '__main__':\n"
        "    job, machine, [block] = pickle.load(open(sys.argv[1], 'rb'))\n"
        "    child = Child(Predict(job.step, machine, 1, Preprocess(job.step), gpu=False))\n"
        "    child.pipe.send(block)\n"
        "    assert child.pipe.recv()[0] == 'rows'\n"
        "    print(child.process.pid, flush=True)\n    time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "plan")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.exists()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.05)

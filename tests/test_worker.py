"""Two threads at one worker: which block is where, what becomes of one that dies, fails or is not wanted any more.

The tally is the real one, called where Ray would carry the call.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

import hfbatch.worker as module
from hfbatch.cluster import pool_for
from hfbatch.columns import ticket_of
from hfbatch.postprocess import Finish
from hfbatch.tally import Stopped, Tally
from hfbatch.worker import Run, Worker, calls_at_once
from tests.inline import blocks_of, plan_of, run_inline
from tests.models import sentences

PATIENCE = 60


class Told:
    """A Tally whose methods are called as an actor's are."""

    def __init__(self):
        self.tally = Tally()

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.tally, name))


@pytest.fixture
def job(write_parquet, job_for, classifier):
    path = write_parquet("in.parquet", {"id": np.arange(120), "text": sentences(120, seed=4)})
    return job_for("text-classification", classifier, path)


@pytest.fixture
def make(job, monkeypatch):
    """(its plan, a worker, its tally) of a job in shards of 30 rows."""
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda answer: answer))

    def made(**changes):
        plan = plan_of({**job, **changes}, shard_rows=30)
        return plan, Worker(run_of(plan), pool_for(plan.machine, [{"CPU": 2.0}]), told := Told()), told.tally

    return made


def run_of(plan):
    return Run(plan.job, plan.machine, "run", 1, False, {})


class Doors:
    """Blocks in the models wait for a word; says which blocks are made ready, and how each came into the models."""

    def __init__(self, worker):
        self.ready, self.entered, self.open = [], [], threading.Event()
        self.one_ready, self.one_in = threading.Event(), threading.Event()
        chain, start = worker.chain, module.Start(worker.run.job)
        self.chain = self.worked = chain

        def through(block, died=False, ready=False):
            self.entered.append((ticket_of(block).shard, died, ready))
            self.one_in.set()
            assert self.open.wait(PATIENCE)
            return self.chain(block, died, ready)

        def made(block):
            self.ready.append(ticket_of(block).shard)
            self.one_ready.set()
            return start(block)

        through.last, through.meter = chain.last, chain.meter
        worker.chain, worker._start = through, made


def test_the_next_block_is_made_ready_while_one_is_in_the_models_and_rows_are_the_same(make):
    plan, worker, tally = make()
    doors, blocks = Doors(worker), blocks_of(plan)
    shards = [ticket_of(block).shard for block in blocks]
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(worker, blocks[0])
        assert doors.one_in.wait(PATIENCE)
        second = threads.submit(worker, blocks[1])
        assert doors.one_ready.wait(PATIENCE), "made ready while the first was in the models"
        assert len(doors.entered) == 1
        doors.open.set()
        made = [first.result(), second.result(), *threads.map(worker, blocks[2:])]
    assert [entry[0] for entry in doors.entered[:2]] == shards[:2]
    assert doors.entered[:2] == [(shards[0], False, False), (shards[1], False, True)]
    expected = run_inline(plan)
    assert pa.concat_tables(made).select(["id", "label", "error"]).equals(expected.select(["id", "label", "error"]))
    scores = [table["score"].to_numpy() for table in (pa.concat_tables(made), expected)]
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert [tally.enter(shard) for shard in shards] == [0] * 4
    assert tally.snapshot().total("rows") == 120


def test_its_own_task_makes_a_block_ready(make):
    """A tokenizer may not be set up by one thread while another uses it."""
    plan, worker, _ = make()
    blocks = blocks_of(plan)
    worker(blocks[0])
    with ThreadPoolExecutor(1) as threads:
        with worker._models:
            coming = threads.submit(worker, blocks[1])
            while "_start" not in vars(worker) and not coming.done():
                time.sleep(0.01)
        coming.result()
    own, all_others = worker._start.preprocess.task, worker.chain.parts[0].task
    assert own is not all_others
    assert own.tokenizer is not all_others.tokenizer


def test_a_block_over_which_a_process_died_is_not_touched_in_the_line(make):
    plan, worker, tally = make()
    doors, block = Doors(worker), blocks_of(plan)[1]
    shard = ticket_of(block).shard
    doors.open.set()
    doors.chain = lambda block, died, ready: doors.worked(block)
    tally.enter(shard)
    with ThreadPoolExecutor(1) as threads:
        with worker._models:
            coming = threads.submit(worker, block)
            while not (worker._line.locked() or coming.done()):
                time.sleep(0.01)
        assert len(coming.result()) == 30
    assert (doors.ready, doors.entered) == ([], [(shard, True, False)])


def test_a_death_in_the_line_is_counted_and_an_exception_there_is_none(make):
    plan, worker, tally = make()
    block = blocks_of(plan)[0]
    for error, deaths in ((ValueError, 0), (SystemExit, 1)):

        def fails(block, error=error):
            raise error

        worker._start = fails
        with worker._models, pytest.raises(error):
            worker(block)
        assert tally.enter(ticket_of(block).shard) == deaths
        tally.leave(ticket_of(block).shard)
    tally.leave(ticket_of(block).shard)
    del worker._start
    assert len(worker(block)) == 30, "the line is free again"


def test_a_block_that_waited_is_not_let_into_the_models_once_the_run_is_to_end(make):
    plan, worker, tally = make()
    doors, blocks = Doors(worker), blocks_of(plan)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(worker, blocks[0])
        assert doors.one_in.wait(PATIENCE)
        second = threads.submit(worker, blocks[1])
        assert doors.one_ready.wait(PATIENCE)
        assert tally.drain(), "the first is on its way"
        doors.open.set()
        assert len(first.result()) == 30
        with pytest.raises(Stopped):
            second.result()
    tally.finish(ticket_of(blocks[0]).shard)
    assert not tally.drain(), "and nothing else is"


@pytest.mark.parametrize(
    ("changes", "machine", "calls"),
    [
        ({}, {}, 2),
        ({}, {"cpu_steps": "tasks"}, 1),
        ({}, {"compile": True}, 1),
        ({"dedupe": True}, {}, 1),
    ],
)
def test_which_jobs_have_two_blocks_in_hand(job, changes, machine, calls):
    plan = plan_of({**job, **changes}, **machine)
    assert calls_at_once(run_of(plan), pool_for(plan.machine, [{"CPU": 2.0}])) == calls


def test_several_steps_have_one_block_in_hand(job):
    step = {"task": job.pop("task"), "model": job.pop("model")}
    steps = [{"name": "a", **step}, {"name": "b", **step}]
    plan = plan_of({**job, "steps": steps})
    assert calls_at_once(run_of(plan), pool_for(plan.machine, [{"CPU": 2.0}])) == 1


def test_large_inputs_have_one_block_in_hand(job, monkeypatch):
    """Images and sound are made a few rows at a time, beside the model."""
    plan = plan_of(job)
    monkeypatch.setattr(type(plan.job.chain[0].make_task()), "streams", True)
    assert calls_at_once(run_of(plan), pool_for(plan.machine, [{"CPU": 2.0}])) == 1


def test_finish_is_the_workers_where_cpu_steps_are(make):
    _, worker, _ = make()
    assert isinstance(worker.finish, Finish)

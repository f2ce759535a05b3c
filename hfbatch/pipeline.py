"""run(plan) -> RunReport. Start reading here: shards -> source -> preprocess -> predict -> postprocess -> sink.

Ray executes; hfbatch commits. After each pass the driver compares the plan with the commit records and runs what is
missing again, so nothing that Ray loses or repeats can lose or double a row.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data

from hfbatch import source
from hfbatch.cluster import Guard, Pool, Snapshot, connected, start_tally, throttled
from hfbatch.errors import ErrorBudgetExceeded, HfbatchError, Incomplete, Interrupted, SystemicError
from hfbatch.job import Job
from hfbatch.ledger import Agreed, Ledger, Receipt
from hfbatch.planner import Plan, check_no_conflict
from hfbatch.postprocess import Postprocess
from hfbatch.preprocess import Preprocess
from hfbatch.report import Progress, RunReport, make_report, versions
from hfbatch.shards import Shard
from hfbatch.sink import Commit
from hfbatch.spec import Machine
from hfbatch.store import open_store
from hfbatch.watch import Budget, Watch

PASSES = 3  # over shards that were lost to a dying worker; one that no pass commits is Incomplete
READ_CPUS, FINISH_CPUS = 0.5, 0.4  # unlike each other and the actors', so that Ray does not fuse the stages


def run(plan: Plan, *, watch: Callable[[Progress], None] | None = None) -> RunReport:
    """Carry the plan out. `watch` is called about twice a second while it runs.

    Returns the report of a complete output. Raises HfbatchError otherwise: what is committed stays, and the same
    call resumes.
    """
    started = time.time()
    check_no_conflict(plan)
    ledger = Ledger(open_store(plan.job.output))
    if plan.complete:
        return _report(plan, ledger, "", "nothing_to_do", started)
    run_id = new_run_id()
    ruling = _begin(plan, ledger, run_id)
    with _interruptible():
        snapshot = _passes(plan, ledger, run_id, watch) if plan.todo else Snapshot()
    receipts = ledger.receipts(plan.job.generation, (shard.id for shard in plan.shards))
    _judge(plan, ledger, run_id, receipts, snapshot, started)
    report = _report(plan, ledger, run_id, "success", started, receipts)
    ledger.publish(run_id, ruling, receipts, report.model_dump())
    return report


def new_run_id() -> str:
    """Sorts by time, is unique without a clock: 20261120T020000-1f3a5c."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + "-" + secrets.token_hex(3)


def _begin(plan: Plan, ledger: Ledger, run_id: str) -> Agreed:
    """The output is ready for this run: the store can be trusted, the cut is agreed, _SUCCESS is gone."""
    ledger.store.probe()
    about = {"job": plan.job.name, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    details = {"generation": plan.job.generation, "rows": plan.rows, "shards": len(plan.shards), "versions": versions()}
    ledger.begin(run_id, plan.job.generation, plan.job.identity, {**about, **details})
    ruling = ledger.agree(plan.job.generation, plan.shards, plan.agreed)
    ledger.reopen()
    return ruling


def _passes(plan: Plan, ledger: Ledger, run_id: str, watch: Callable[[Progress], None] | None) -> Snapshot:
    """Run what is not committed, until all is or a pass brings nothing new."""
    done = ledger.receipts(plan.job.generation, plan.done)
    with connected(plan.machine) as pool, _interruptible():  # again: ray.init puts a handler of its own there
        tally = start_tally()
        with Watch(tally, plan, done, watch) as watching:
            todo: Sequence[Shard] = plan.todo
            for _ in range(PASSES):
                _run_pass(plan, todo, run_id, pool, tally)
                committed = ledger.committed(plan.job.generation)
                left = [shard for shard in todo if shard.id not in committed]
                if not left or len(left) == len(todo) or watching.snapshot().fatal:
                    break
                todo = left
            return watching.snapshot()


def _run_pass(plan: Plan, todo: Sequence[Shard], run_id: str, pool: Pool, tally: Any) -> None:
    """One pass of these shards through the pipeline. What fails is in the tally and stays uncommitted."""
    rows = source.dataset(todo, plan.files)
    stages = _stages(plan.job, plan.machine, pool, run_id, tally)
    try:
        for _ in stages(rows).iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            continue
    except ray.exceptions.RayError as error:
        if not ray.get(tally.snapshot.remote()).failures:
            raise SystemicError(f"Ray failed: {error}") from error


def _stages(
    job: Job, machine: Machine, pool: Pool, run_id: str, tally: Any
) -> Callable[[ray.data.Dataset], ray.data.Dataset]:
    """Packed shards -> receipts, as a function of Ray datasets."""

    def read(block: pa.Table) -> Iterator[pa.Table]:
        return Guard("read", lambda: source.ReadShard(job), tally)(block)

    def preprocess(block: pa.Table) -> Iterator[pa.Table]:
        return Guard("preprocess", lambda: Preprocess(job), tally)(block)

    def finish(block: pa.Table) -> Iterator[pa.Table]:
        commit = Commit(job, run_id)
        steps = (commit,) if pool.cpu_steps_in_actor else (Postprocess(job, run_id), commit)
        return Guard("write", lambda: _chain(*steps), tally)(block)

    class Actor:
        """One process that keeps the model resident."""

        def __init__(self) -> None:
            self.guard = Guard("predict", self._load, tally)

        def _load(self) -> Callable[[pa.Table], pa.Table]:
            from hfbatch.model import Predict  # torch, which only this process needs

            report = throttled(tally, f"{socket.gethostname()}:{os.getpid()}")
            if not pool.cpu_steps_in_actor:
                return Predict(job, machine, pool.threads, report=report)
            predict = Predict(job, machine, pool.threads, Preprocess(job), report)
            return _chain(predict, Postprocess(job, run_id))

        def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
            return self.guard(block)

    def connect(rows: ray.data.Dataset) -> ray.data.Dataset:
        rows = rows.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)
        if not pool.cpu_steps_in_actor:
            rows = rows.map_batches(preprocess, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)
        rows = rows.map_batches_internal(  # map_batches itself wants a batch size with GPUs, and would re-cut blocks
            Actor,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=pool.size.min, max_size=pool.size.max),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            max_restarts=-1,
            max_task_retries=2,  # Ray's default is for ever: a row that kills its process would do so for ever
        )
        return rows.map_batches(finish, batch_size=None, batch_format="pyarrow", num_cpus=FINISH_CPUS)

    return connect


def _chain(*steps: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    """The steps as one."""

    def all_steps(table: pa.Table) -> pa.Table:
        for step in steps:
            table = step(table)
        return table

    return all_steps


def _judge(
    plan: Plan, ledger: Ledger, run_id: str, receipts: Sequence[Receipt], snapshot: Snapshot, started: float
) -> None:
    """Raise what keeps this run from publishing, with its report written first."""
    left = len(plan.shards) - len(receipts)
    problem = snapshot.fatal
    if problem is None and left:
        problem = _incomplete(plan, left, snapshot)
    if problem is None:
        problem = Budget(plan.job.errors).judge(receipts)
    if problem is None:
        return
    outcome = "error_budget_exceeded" if isinstance(problem, ErrorBudgetExceeded) else "incomplete"
    ledger.write_report(run_id, _report(plan, ledger, run_id, outcome, started, receipts).model_dump())
    raise problem


def _incomplete(plan: Plan, left: int, snapshot: Snapshot) -> HfbatchError:
    """Incomplete, or SystemicError when nothing went through and every failure is the same."""
    text = f"{left} of {len(plan.shards)} shards are not committed"
    if not snapshot.failures:
        return Incomplete(f"{text}; the same command continues")
    last = snapshot.failures[-1]
    cause = f"step {last.step}: {last.message}"
    if left == len(plan.shards):
        return SystemicError(f"no shard could be committed; {cause}\n{last.trace}")
    return Incomplete(f"{text}; {cause}; the same command continues")


def _report(
    plan: Plan, ledger: Ledger, run_id: str, outcome: str, started: float, receipts: Sequence[Receipt] | None = None
) -> RunReport:
    if receipts is None:
        receipts = ledger.receipts(plan.job.generation, (shard.id for shard in plan.shards))
    about = {
        "job": plan.job.name,
        "outcome": outcome,
        "output": plan.job.output,
        "generation": plan.job.generation,
        "model_id": plan.job.model.id,
        "model_revision": plan.job.model.commit,
    }
    return make_report(about, receipts, run_id, started, time.time())


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM become Interrupted inside; only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _frame: Any) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The passes of shards through Ray: source -> preprocess -> predict (actor pool) -> postprocess -> sink.

Each pass may lose or repeat whatever it likes: what counts are the commit records, which are compared with the plan
after it. What a pass did not commit, the next one runs again.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data

from hfbatch import source
from hfbatch.cluster import Guard, Pool, connected, start_tally, throttled
from hfbatch.errors import Interrupted, SystemicError
from hfbatch.job import Job
from hfbatch.ledger import Ledger
from hfbatch.planner import Plan
from hfbatch.postprocess import Postprocess
from hfbatch.preprocess import Preprocess
from hfbatch.report import Progress
from hfbatch.shards import Shard
from hfbatch.sink import Commit
from hfbatch.spec import Machine
from hfbatch.tally import Snapshot
from hfbatch.watch import Watch

PASSES = 3  # over shards that were lost to a dying worker; one that no pass commits is Incomplete
READ_CPUS, FINISH_CPUS = 0.5, 0.4  # unlike each other and the actors', so that Ray does not fuse the stages


def run_passes(plan: Plan, ledger: Ledger, run_id: str, watch: Callable[[Progress], None] | None) -> Snapshot:
    """Run what is not committed, until all is or a pass brings nothing new. Returns what the workers told."""
    done = ledger.receipts(plan.job.generation, plan.done)
    # Twice: ray.init, inside `connected`, sets signal handlers of its own.
    with _interruptible(), connected(plan.machine) as pool, _interruptible():
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
            preprocess = Preprocess(job) if pool.cpu_steps_in_actor else None
            predict = Predict(job, machine, pool.threads, preprocess, report, gpu=pool.gpus > 0)
            return _chain(predict, Postprocess(job, run_id)) if pool.cpu_steps_in_actor else predict

        def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
            return self.guard(block)

    def connect(rows: ray.data.Dataset) -> ray.data.Dataset:
        rows = rows.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)
        if not pool.cpu_steps_in_actor:
            rows = rows.map_batches(preprocess, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)
        rows = _map_on_actors(rows, Actor, pool)
        return rows.map_batches(finish, batch_size=None, batch_format="pyarrow", num_cpus=FINISH_CPUS)

    return connect


def _map_on_actors(rows: ray.data.Dataset, actor: type, pool: Pool) -> ray.data.Dataset:
    """`map_batches` over whole blocks. With GPUs the public method wants a batch size, and would re-cut them by it."""
    options: dict[str, Any] = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "compute": ray.data.ActorPoolStrategy(min_size=pool.size.min, max_size=pool.size.max),
        "num_cpus": pool.cpus,
        "max_restarts": -1,
        "max_task_retries": 2,  # Ray's default is for ever: a row that kills its process would do so for ever
    }
    if pool.gpus:
        options["num_gpus"] = pool.gpus
    if hasattr(rows, "map_batches_internal"):
        return rows.map_batches_internal(actor, **options)
    if not pool.gpus:
        return rows.map_batches(actor, **options)
    unset = dict.fromkeys(("fn_args", "fn_kwargs", "fn_constructor_args", "fn_constructor_kwargs", "memory"))
    unset |= dict.fromkeys(("concurrency", "ray_remote_args_fn"))
    older: Any = rows._map_batches_without_batch_size_validation  # type: ignore[attr-defined]
    mapped: ray.data.Dataset = older(actor, zero_copy_batch=True, udf_modifying_row_count=True, **unset, **options)
    return mapped


def _chain(*steps: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    """The steps as one."""

    def all_steps(table: pa.Table) -> pa.Table:
        for step in steps:
            table = step(table)
        return table

    return all_steps


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

"""The passes of shards through Ray: source -> preprocess -> predict (actor pool) -> postprocess -> sink.

Each pass may lose or repeat whatever it likes: what counts are the commit records, which are compared with the plan
after it. What a pass did not commit, the next one runs again.
"""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data

from hfbatch import source, tasks
from hfbatch.access import redact
from hfbatch.cluster import Guard, Pool, connected, start_tally, throttled
from hfbatch.columns import errors_so_far, ticket_of
from hfbatch.errors import SystemicError
from hfbatch.job import Job
from hfbatch.lease import Lease
from hfbatch.ledger import Ledger
from hfbatch.logs import event
from hfbatch.metrics import Metrics
from hfbatch.planner import Plan
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Start
from hfbatch.records import Agreed, Receipt
from hfbatch.report import Progress
from hfbatch.shards import Shard
from hfbatch.sink import Commit
from hfbatch.spec import Machine
from hfbatch.startup import uncollected
from hfbatch.stopping import Stopping, interruptible
from hfbatch.tally import DeviceLost, Failure, Snapshot
from hfbatch.watch import Watch

WAVE = 2000  # shards that Ray Data is given at once: it keeps about 40 KiB of each in the driver until all are done
PASSES = 3  # over shards that were lost to a dying worker; one that no pass commits is Incomplete
RETRIES = 2  # of a block whose process died, in one pass; Ray Data's default, for tasks and actors, is for ever
FEW = 8  # shards for each actor: of so few an actor gets the next one when it is free, about 0.1 s later
READ_CPUS, FINISH_CPUS = 0.5, 0.4  # unlike each other and the actors', so that Ray does not fuse the stages


def run_passes(
    plan: Plan, ruling: Agreed, lease: Lease, stopping: Stopping, show: Callable[[Progress], None] | None
) -> Snapshot:
    """Run what is not committed, until all is or a pass brings nothing new. Returns what the workers told."""
    ledger = Ledger(lease.store)
    done = ledger.receipts(plan.job.generation, plan.done)
    # Twice: ray.init, inside `connected`, sets signal handlers of its own where it is called in this thread.
    with connected(plan.machine) as pool, interruptible(stopping):
        tally = start_tally()
        proven = any(receipt.rows > receipt.failed for receipt in done)
        run = Run(plan.job, plan.machine, lease.run_id, ruling.number, proven, budgets_of(done))
        with Watch(tally, plan, done, lease, stopping, show) as watching, stopping.waiting():
            todo: Sequence[Shard] = plan.todo
            for _ in range(PASSES):
                for start in range(0, len(todo), WAVE):
                    if not (stopping.reason or watching.snapshot().fatal):
                        _run_wave(run, source.dataset(todo[start : start + WAVE], plan.files), pool, tally)
                committed = ledger.committed(plan.job.generation)
                left = [shard for shard in todo if shard.id not in committed]
                if not left or len(left) == len(todo) or stopping.reason or watching.snapshot().fatal:
                    break
                todo = left
        return replace(watching.snapshot(), foreseen=watching.foreseen)


@dataclass(frozen=True)
class Run:
    """What the stages need to know."""

    job: Job
    machine: Machine
    id: str
    plan: int  # number of the agreed plan
    proven: bool  # results committed before this run show that the code works
    budgets: Mapping[str, Mapping[str, int]]  # see `budgets_of`


def budgets_of(receipts: Iterable[Receipt]) -> dict[str, dict[str, int]]:
    """Step -> device -> tokens of a batch that were found to be best there, by earlier runs of this generation."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for receipt in receipts:
        for name, stats in receipt.stats.get("steps", {"": receipt.stats}).items():
            if "settled" in stats:
                found[name][str(stats["settled"])] = int(stats["budget"])
    return dict(found)


def _run_wave(run: Run, rows: ray.data.Dataset, pool: Pool, tally: Any) -> None:
    """Some packed shards through the pipeline. What fails is in the tally and stays uncommitted."""
    try:
        for receipts in _stages(run, pool, tally)(rows).iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pyarrow"
        ):
            _log_commits(run.id, receipts)
    except ray.exceptions.RayError as error:
        if not ray.get(tally.snapshot.remote()).failures:
            raise SystemicError(f"Ray failed: {error}") from error
        failure = Failure("ray", f"{type(error).__name__}: {error}", redact(traceback.format_exc()))
        ray.get(tally.fail.remote(pickle.dumps(failure)))


def _log_commits(run_id: str, receipts: pa.Table) -> None:
    for text in receipts["receipt"].to_pylist():
        receipt = Receipt.from_json(text)
        told = {"data": receipt.data, "rows": receipt.rows, "rows_failed": receipt.failed, "nbytes": receipt.nbytes}
        event(run_id, "shard_committed", shard=receipt.shard, **told)


def _stages(run: Run, pool: Pool, tally: Any) -> Callable[[ray.data.Dataset], ray.data.Dataset]:
    """Packed shards -> receipts, as a function of Ray datasets."""
    job = run.job

    def read(block: pa.Table) -> Iterator[pa.Table]:
        return Guard("read", lambda: source.ReadShard(job), tally)(block)

    def preprocess(block: pa.Table) -> Iterator[pa.Table]:
        return Guard("preprocess", lambda: Start(job), tally)(block)

    def finish(block: pa.Table) -> Iterator[pa.Table]:
        commit = Commit(job, run.id, run.plan)
        steps = (commit,) if pool.cpu_steps_in_actor else (Finish(job, run.id), commit)
        try:
            yield from Guard("write", lambda: _chain(*steps), tally)(block)
        finally:
            tally.finish.remote(ticket_of(block).shard)

    class Actor:
        """One process that keeps the model resident."""

        def __init__(self) -> None:
            self.guard = Guard("predict", lambda: _model_step(run, pool, tally), tally)

        def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
            return self.guard(block)

    def connect(rows: ray.data.Dataset) -> ray.data.Dataset:
        actor = _actor_options(pool, shards=rows.count())
        rows = _map_blocks(rows, read, num_cpus=READ_CPUS, max_retries=RETRIES)
        if not _preprocess_in_actor(job, pool):
            rows = _map_blocks(rows, preprocess, num_cpus=READ_CPUS, max_retries=RETRIES)
        rows = _map_blocks(rows, Actor, **actor)
        return _map_blocks(rows, finish, num_cpus=FINISH_CPUS, max_retries=RETRIES)

    return connect


def _model_step(run: Run, pool: Pool, tally: Any) -> Callable[[pa.Table], pa.Table]:
    """What an actor does with a block; over a shard that a process died of, the model works in a child process."""
    with uncollected():
        return _load_step(run, pool, tally)


def _load_step(run: Run, pool: Pool, tally: Any) -> Callable[[pa.Table], pa.Table]:
    from hfbatch.chain import Chain  # torch, which only this process needs

    _refuse_to_load_for_ever(ray.get(tally.load.remote()), pool)
    job, in_actor = run.job, pool.cpu_steps_in_actor
    metrics = Metrics(job.name, job.task)
    report = metrics.beside(throttled(tally, f"{socket.gethostname()}:{os.getpid()}"))
    staged = not _preprocess_in_actor(job, pool)
    chain = Chain(job, run.machine, pool.threads, staged=staged, report=report, gpu=pool.gpus > 0)
    chain.recall(run.budgets)
    if run.proven or ray.get(tally.works.remote()):
        chain.prove()
    finish = Finish(job, run.id) if in_actor else None
    ray.get(tally.loaded.remote())

    def step(block: pa.Table) -> pa.Table:
        shard = ticket_of(block).shard
        died = ray.get(tally.enter.remote(shard))
        try:
            made = chain(block, died > 0)
            ticket = ticket_of(made)
            if finish is not None:
                with chain.last.watchdog:
                    made = finish(made)
        except (SystemExit, DeviceLost):
            raise  # this process ends of it, which is to be counted
        except BaseException:
            ray.get(tally.leave.remote(shard))
            raise
        metrics.record(chain.meter)
        errors = made["error"] if finish is not None else errors_so_far(made)
        metrics.record_errors(errors.drop_null().to_pylist())
        ray.get(tally.leave.remote(shard, (ticket.rows + ticket.carried, int(ticket.stats["errors"]))))
        return made

    return step


def _refuse_to_load_for_ever(begun: int, pool: Pool) -> None:
    """SystemicError once each actor may have died RETRIES times over it: Ray begins anew each time, without end.

    `begun`: loads since the last that came through. As many as the pool has actors may be under way.
    """
    if begun > pool.size.max * (1 + RETRIES):
        raise SystemicError(
            f"{begun - pool.size.max} processes or more died while they loaded the model, and none came through; was "
            "there too little memory for it? Take fewer actors a node, or larger nodes, and run the same command again"
        )


def _preprocess_in_actor(job: Job, pool: Pool) -> bool:
    """Whether the step before the model runs beside it: on CPUs, and where inputs are too large to send."""
    return pool.cpu_steps_in_actor or tasks.find(job.chain[0].task).streams


def _actor_options(pool: Pool, shards: int) -> dict[str, Any]:
    """Where shards are few for several actors, none waits in line at one of them while another has nothing to do."""
    in_flight = 1 if pool.size.max > 1 and shards <= FEW * pool.size.max else 2
    options: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(
            min_size=pool.size.min,
            max_size=pool.size.max,
            initial_size=pool.start,
            max_tasks_in_flight_per_actor=in_flight,
        ),
        "num_cpus": pool.cpus,
        "max_restarts": -1,
        "max_task_retries": RETRIES,
    }
    return options | ({"num_gpus": pool.gpus} if pool.gpus else {})


def _map_blocks(rows: ray.data.Dataset, step: Any, **options: Any) -> ray.data.Dataset:
    """`map_batches` over whole blocks, with any option of Ray's.

    With GPUs the public method wants a batch size, and would re-cut blocks by it; and of retries it has no notion.
    """
    options |= {"batch_size": None, "batch_format": "pyarrow"}
    if hasattr(rows, "map_batches_internal"):
        return rows.map_batches_internal(step, **options)
    if "num_gpus" not in options:
        return rows.map_batches(step, **options)
    unset = dict.fromkeys(("fn_args", "fn_kwargs", "fn_constructor_args", "fn_constructor_kwargs", "memory"))
    unset |= dict.fromkeys(("concurrency", "ray_remote_args_fn"))
    older: Any = rows._map_batches_without_batch_size_validation  # type: ignore[attr-defined]
    mapped: ray.data.Dataset = older(step, zero_copy_batch=True, udf_modifying_row_count=True, **unset, **options)
    return mapped


def _chain(*steps: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    """The steps as one."""

    def all_steps(table: pa.Table) -> pa.Table:
        for step in steps:
            table = step(table)
        return table

    return all_steps

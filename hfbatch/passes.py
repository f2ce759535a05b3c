"""The passes of shards through Ray: source -> preprocess -> predict (actor pool) -> postprocess -> sink.

Each pass may lose or repeat whatever it likes: what counts are the commit records, which are compared with the plan
after it. What a pass did not commit, the next one runs again.
"""

from __future__ import annotations

import pickle
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data

from hfbatch import source
from hfbatch.access import redact
from hfbatch.cluster import Guard, Pool, connected, start_tally
from hfbatch.columns import ticket_of
from hfbatch.errors import SystemicError
from hfbatch.lease import Lease
from hfbatch.ledger import Ledger
from hfbatch.logs import event
from hfbatch.planner import Plan
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Start
from hfbatch.records import Agreed, Receipt
from hfbatch.report import Progress
from hfbatch.shards import Shard
from hfbatch.sink import Commit
from hfbatch.stopping import Stopping, interruptible
from hfbatch.tally import Failure, Snapshot
from hfbatch.watch import Watch
from hfbatch.worker import RETRIES, Run, Worker, calls_at_once, prepares

WAVE = 2000  # shards that Ray Data is given at once: it keeps about 40 KiB of each in the driver until all are done
PASSES = 3  # over shards that were lost to a dying worker; one that no pass commits is Incomplete
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
            self.guard = Guard("predict", lambda: Worker(run, pool, tally), tally)

        def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
            return self.guard(block)

    def connect(rows: ray.data.Dataset) -> ray.data.Dataset:
        actor = _actor_options(pool, calls_at_once(run, pool), shards=rows.count())
        rows = _map_blocks(rows, read, num_cpus=READ_CPUS, max_retries=RETRIES)
        if not prepares(job, pool):
            rows = _map_blocks(rows, preprocess, num_cpus=READ_CPUS, max_retries=RETRIES)
        rows = _map_blocks(rows, Actor, **actor)
        return _map_blocks(rows, finish, num_cpus=FINISH_CPUS, max_retries=RETRIES)

    return connect


def _actor_options(pool: Pool, calls: int, shards: int) -> dict[str, Any]:
    """Where shards are few for several actors, none waits in line at one of them while another has nothing to do."""
    in_flight = 1 if pool.size.max > 1 and shards <= FEW * pool.size.max else 2
    options: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(
            min_size=pool.size.min,
            max_size=pool.size.max,
            initial_size=pool.start,
            max_tasks_in_flight_per_actor=in_flight,
            enable_true_multi_threading=calls > 1,
        ),
        "max_concurrency": min(calls, in_flight),
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

"""The stages of the pipeline one after another in this process: what Ray runs, without Ray."""

from __future__ import annotations

import pyarrow as pa

from hfbatch import planner
from hfbatch.chain import Chain
from hfbatch.columns import ticket_of
from hfbatch.errors import HfbatchError, InputChanged, StorageError
from hfbatch.ledger import Ledger
from hfbatch.load import load_job, load_machine
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Start
from hfbatch.sink import Commit, whole_shard
from hfbatch.source import ReadShard
from hfbatch.store import open_store
from hfbatch.tally import Failure, Snapshot


def plan_of(job: dict, retry=(), redo=(), **machine) -> planner.Plan:
    return planner.make_plan(load_job(job), load_machine(machine), retry=retry, redo=redo)


def blocks_of(plan: planner.Plan) -> list[pa.Table]:
    """Each shard's rows as they leave the source."""
    read = ReadShard(plan.job).read
    refs = [[plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces] for shard in plan.shards]
    return [read(shard, parts) for shard, parts in zip(plan.shards, refs, strict=True)]


def run_inline(plan: planner.Plan, *, stage: bool = False) -> pa.Table:
    """All rows of the plan as the sink would commit them. `stage`: preprocess apart from the model."""
    job = plan.job
    start, finish, ledger = Start(job), Finish(job, "run"), Ledger(open_store(job.output))
    chain = Chain(job, plan.machine, 1, staged=stage)
    tables = []
    for block in blocks_of(plan):
        table = finish(chain(start(block) if stage else block))
        tables.append(whole_shard(table, ticket_of(table), job, ledger)[0])
    return pa.concat_tables(tables)


def inline_passes(plan, ruling, lease, stopping, show) -> Snapshot:
    """A drop-in for hfbatch.passes.run_passes: the same stages, shard by shard in this process."""
    job, snapshot = plan.job, Snapshot()
    read, chain = ReadShard(job).read, Chain(job, plan.machine, 1)
    finish, commit = Finish(job, lease.run_id), Commit(job, lease.run_id, ruling.number)
    for shard in plan.todo:
        if stopping.reason is not None:
            break
        refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces]
        try:
            commit(finish(chain(read(shard, refs))))
        except HfbatchError as error:
            fatal = not isinstance(error, StorageError | InputChanged)
            snapshot.failures.append(Failure("inline", f"{type(error).__name__}: {error}", "", error, fatal))
    return snapshot

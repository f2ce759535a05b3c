"""The stages of the pipeline one after another in this process: what Ray runs, without Ray."""

from __future__ import annotations

import pyarrow as pa

from hfbatch import planner
from hfbatch.columns import ticket_of
from hfbatch.load import load_job, load_machine
from hfbatch.model import Predict
from hfbatch.postprocess import Postprocess
from hfbatch.preprocess import Preprocess
from hfbatch.sink import in_order
from hfbatch.source import ReadShard


def plan_of(job: dict, **machine) -> planner.Plan:
    return planner.make_plan(load_job(job), load_machine(machine))


def blocks_of(plan: planner.Plan) -> list[pa.Table]:
    """Each shard's rows as they leave the source."""
    read = ReadShard(plan.job).read
    refs = [[plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces] for shard in plan.shards]
    return [read(shard, parts) for shard, parts in zip(plan.shards, refs, strict=True)]


def run_inline(plan: planner.Plan, *, stage: bool = False) -> pa.Table:
    """All rows of the plan as the sink would commit them. `stage`: preprocess apart from the model."""
    job = plan.job
    preprocess, postprocess = Preprocess(job), Postprocess(job, "run")
    predict = Predict(job, plan.machine, 1, None if stage else preprocess)
    tables = []
    for block in blocks_of(plan):
        table = postprocess(predict(preprocess(block) if stage else block))
        tables.append(in_order(table, ticket_of(table), job.output_schema))
    return pa.concat_tables(tables)

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


def run_inline(plan: planner.Plan, *, stage: bool = False) -> pa.Table:
    """All rows of the plan as the sink would commit them. `stage`: preprocess apart from the model."""
    job = plan.job
    preprocess, postprocess = Preprocess(job), Postprocess(job, "run")
    read, predict = ReadShard(job), Predict(job, plan.machine, 1, None if stage else preprocess)
    tables = []
    for shard in plan.shards:
        refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces]
        table = read.read(shard, refs)
        table = postprocess(predict(preprocess(table) if stage else table))
        tables.append(in_order(table, ticket_of(table), job.output_schema))
    return pa.concat_tables(tables)

"""The stages between source and sink in this process, without Ray: for a few rows that are looked at, not committed."""

from __future__ import annotations

import os

import pyarrow as pa

from hfbatch import columns as col
from hfbatch.carry import Pieces
from hfbatch.planner import Plan


class InProcess:
    """A callable of rows that keeps the model of a plan resident."""

    def __init__(self, plan: Plan) -> None:
        """Loads the model. SpecError where its weights do not serve the task."""
        from hfbatch.model import Predict  # torch
        from hfbatch.postprocess import Postprocess
        from hfbatch.preprocess import Preprocess

        threads = plan.machine.threads_per_actor
        cores = len(os.sched_getaffinity(0)) if threads == "auto" else threads
        self.job = plan.job
        gpu = False if plan.machine.gpus_per_actor == 0 else None
        self.predict = Predict(plan.job, plan.machine, cores, Preprocess(plan.job), gpu=gpu)
        self.postprocess = Postprocess(plan.job, "")

    def __call__(self, rows: pa.Table, pieces: Pieces) -> pa.Table:
        """The output of `rows`, in order: the job's input columns, and ROW, which counts over `pieces`."""
        rows = rows.combine_chunks().append_column(col.ERROR, pa.nulls(len(rows), pa.string()))
        # With a base, as rows that are tried again have: a sample that fails alike is no reason to give up.
        ticket = col.Ticket("sample", len(rows), "", pieces, base="sample")
        return self.postprocess(self.predict(ticket.on(rows))).select(self.job.output_schema.names)

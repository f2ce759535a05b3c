"""The stages between source and sink in this process, without Ray: for a few rows that are looked at, not committed."""

from __future__ import annotations

import pyarrow as pa

from hfbatch import columns as col
from hfbatch.carry import Pieces
from hfbatch.planner import Plan


class InProcess:
    """A callable of rows that keeps the model of a plan resident."""

    def __init__(self, plan: Plan) -> None:
        """Loads the model. SpecError where its weights do not serve the task."""
        from hfbatch.steps import Steps  # torch

        self.job, self.steps = plan.job, Steps(plan.job, plan.machine)

    def __call__(self, rows: pa.Table, pieces: Pieces) -> pa.Table:
        """The output of `rows`, in order: the job's input columns, and ROW, which counts over `pieces`."""
        rows = rows.combine_chunks().append_column(col.ERROR, pa.nulls(len(rows), pa.string()))
        # With a base, as rows that are tried again have: a sample that fails alike is no reason to give up.
        ticket = col.Ticket("sample", len(rows), "", pieces, base="sample")
        return self.steps.through(ticket.on(rows)).select(self.job.output_schema.names)

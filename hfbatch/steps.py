"""What a job does to rows in one process, with its models resident: rows in, the task's columns and `error` out.

What `enrich`, `preview` and `verify` run; a job runs the same steps between its source and its sink.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from hfbatch import columns as col
from hfbatch.chain import Chain
from hfbatch.errors import RowError
from hfbatch.postprocess import Finish

if TYPE_CHECKING:
    from hfbatch.job import Job
    from hfbatch.spec import Machine
    from hfbatch.tally import Meter


class Steps:
    """A callable of rows."""

    def __init__(self, job: Job, machine: Machine, threads: int | None = None, gpu: bool | None = None) -> None:
        """`threads`: torch's; None: what the machine file says, or all cores. `gpu`: see model.Predict.

        Raises what loading the model does.
        """
        self.job, self.told = job.without_reuse(), _hear_nothing
        auto = len(os.sched_getaffinity(0)) if machine.threads_per_actor == "auto" else machine.threads_per_actor
        gpu = False if machine.gpus_per_actor == 0 else gpu
        self.chain = Chain(self.job, machine, threads or auto, report=self._report, gpu=gpu)
        self.finish = Finish(job, "")
        self._names = [*(name for step in job.steps for name in step.made), "error"]
        self._before = 0  # sequences of earlier blocks

    def __call__(self, rows: pa.Table, place: str, first: int, errors: Mapping[int, RowError]) -> pa.Table:
        """(rows,) in order. `rows` has the task's inputs under their own names; those of `errors` are not inferred.

        `place` and `first` name the first row, in messages and for what is random. SystemicError where nearly all of
        the first rows fail alike; what `told` raises, between two batches.
        """
        numbers = pa.array(range(len(rows)), pa.int64())
        table = rows.append_column(col.ROW, numbers).append_column(col.ERROR, pa.nulls(len(rows), pa.string()))
        ticket = col.Ticket(place, len(rows), "", [(place, "", first, first + len(rows))])
        self._before = self.chain.meter.sequences
        return self.through(ticket.on(col.with_errors(table, errors))).select(self._names)

    def through(self, block: pa.Table) -> pa.Table:
        """All the columns of a block that carries its ticket, as a job commits them."""
        return self.finish(self.chain(block))

    def release(self) -> None:
        """Give the model up, and its memory."""
        self.chain.release()

    def _report(self, meter: Meter) -> None:
        self.told(meter.sequences - self._before)


def _hear_nothing(sequences: int) -> None:
    """What hears of the sequences of a block that are done."""

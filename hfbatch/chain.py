"""The models of a job one after another over a block: preprocess, predict and postprocess of each step.

All stay resident in one process, so that a block is read once however many models see it. A step has the errors of its
own rows; a row that fails in one goes on in those that do not read what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from hfbatch import columns as col
from hfbatch.guards.apply import Guardrails
from hfbatch.isolation import Isolated
from hfbatch.model import Predict
from hfbatch.postprocess import Postprocess
from hfbatch.preprocess import Preprocess, begun
from hfbatch.reuse import reuse_of
from hfbatch.tally import Meter, Report
from hfbatch.tokens import shared

if TYPE_CHECKING:
    from hfbatch.job import Job
    from hfbatch.spec import Machine


class Chain:
    """A callable of blocks that keeps the models of a job resident; what an actor of the pool runs."""

    def __init__(
        self,
        job: Job,
        machine: Machine,
        threads: int,
        *,
        staged: bool = False,
        report: Report = None,
        gpu: bool | None = None,
    ) -> None:
        """`staged`: blocks come with the first step's model inputs. `report`, `gpu`: see model.Predict."""
        self.staged, self.report, self.steps = staged, report, job.steps
        before = [
            None if staged and not number else Preprocess(step, reuse_of(job, step))
            for number, step in enumerate(job.chain)
        ]
        self.parts = [
            Predict(step, machine, threads, each, self._tell, gpu) for step, each in zip(job.chain, before, strict=True)
        ]
        self.between = [Postprocess(step) for step in job.chain[:-1]]
        self.rails = Guardrails(job)

    def __call__(self, block: pa.Table, died: bool = False, ready: bool = False) -> pa.Table:
        """The block with what all steps made, but the last step's results as its model gave them.

        `died`: a process died over this block, so the models work in child processes. `ready`: it has the first step's
        model inputs, as with `staged`. Raises what Predict does.
        """
        before, stats = col.ticket_of(block), dict[str, Mapping[str, float]]()
        with shared(len(self.parts) > 1):
            for number, predict in enumerate(self.parts):
                if number:
                    block = col.bare(block)
                made = not number and (ready or self.staged)
                if not made:
                    block = begun(predict.step, self.rails.before(number, block))
                block = Isolated(predict)(block) if died else predict(block, ready=made)
                if number < len(self.between):
                    with predict.watchdog:
                        block = self.between[number](block)
                stats[predict.step.name] = col.ticket_of(block).stats
        return block if len(self.parts) == 1 else _summed(before, stats).on(block)

    @property
    def last(self) -> Predict:
        """Of the last step."""
        return self.parts[-1]

    @property
    def meter(self) -> Meter:
        """What all models have done; of rows and sequences a model's share, so that a row counts as one in the end."""
        total = sum((part.engine.meter for part in self.parts), Meter())
        total.rows, total.sequences = total.rows // len(self.parts), total.sequences // len(self.parts)
        return total

    @property
    def layout(self) -> str:
        """How batches and weights lie, for the report."""
        return "; ".join(dict.fromkeys(part.engine.layout for part in self.parts))

    def recall(self, budgets: Mapping[str, Mapping[str, int]]) -> None:
        """Tokens of a batch, by step and device, as earlier runs found them."""
        for part in self.parts:
            part.engine.recall(budgets.get(part.step.name, {}))

    def prove(self) -> None:
        """The code is known to work: no sample of the data has to show it."""
        for part in self.parts:
            part.unproven = False

    def release(self) -> None:
        """Give the models up, and their memory."""
        for part in self.parts:
            part.engine.release()

    def _tell(self, meter: Meter) -> None:
        if self.report is not None:
            self.report(self.meter)


def _summed(before: col.Ticket, stats: Mapping[str, Mapping[str, float]]) -> col.Ticket:
    """The ticket with the work of all steps: their sums, and each by its name."""
    names = dict.fromkeys(key for each in stats.values() for key, value in each.items() if isinstance(value, str))
    joined = {key: "; ".join(dict.fromkeys(str(each[key]) for each in stats.values() if key in each)) for key in names}
    ticket = before.plus(**col.total(list(stats.values())), **joined)
    return ticket.plus(steps={name: dict(each) for name, each in stats.items()})

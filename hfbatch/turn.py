"""One run after another: plan, run, and where another run holds the output, wait for its end and plan again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hfbatch.errors import Locked
from hfbatch.lease import wait_until_free
from hfbatch.planner import Plan
from hfbatch.store import open_store

Ran = TypeVar("Ran")


def run_in_turn(
    make: Callable[[], Plan], run: Callable[[Plan], Ran], tell: Callable[[str], None] | None
) -> tuple[Plan, Ran]:
    """The plan that was carried out, and what `run` gave. Locked without `tell`; else it hears once whom we wait for.

    Planned anew after the wait: the other run has changed what is left to do.
    """
    while True:
        plan = make()
        try:
            return plan, run(plan)
        except Locked:
            if tell is None:
                raise
            wait_until_free(open_store(plan.job.output), tell)

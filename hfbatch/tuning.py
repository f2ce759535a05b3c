"""How many tokens a batch holds: found by timing the run's own batches, so that nothing is computed for it.

On a CPU activations that outgrow the cache cost half the speed, on a GPU small batches do; where the plateau lies
depends on the model and the machine. Neighbouring batches of a sorted block are alike, so a few rounds of neighbours
at different sizes tell which is best. Memory is found as it ends: the budget is halved, and grows back slowly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from hfbatch.tasks.base import Task

if TYPE_CHECKING:
    from hfbatch.spec import Machine

ROUNDS = 4  # of batches at each size, before one is chosen
WARM = 3  # batches at the beginning that say nothing: libraries set themselves up
FULL = 0.75  # of a size: the least a batch has to hold to count for it
WORTH = 0.05  # faster by that, or the default stays
CALM = 64  # batches without running out, before the budget grows
GROWTH = 1.25


class TokenBudget:
    """What the next batch may hold, in tokens; what the last ones said about it goes in."""

    def __init__(
        self, default: int, sizes: Sequence[int] = (), fits: Callable[[int], bool] = lambda size: True
    ) -> None:
        """`sizes`: others than `default` that may be better; none: it stays. `fits`: whether one is worth a try."""
        self.tokens, self.settled = default, not sizes
        self._default, self._sizes, self._fits = default, [default, *sizes], fits
        self._seen, self._turn, self._calm, self._most = 0, 0, 0, default
        self._costs: defaultdict[int, list[float]] = defaultdict(list)  # size -> seconds a token, a round each

    def settle(self, tokens: int) -> None:
        """`tokens` it is, as another run or a person found."""
        self.tokens = self._most = max(1, tokens)
        self.settled = True

    def ran(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long."""
        self._seen += 1
        self._calm += 1
        if not self.settled:
            self._compare(tokens, seconds)
        elif self.tokens < self._most and self._calm >= CALM:
            self.tokens, self._calm = min(self._most, int(self.tokens * GROWTH) + 1), 0

    def ran_out(self, tokens: int) -> None:
        """There was no memory for a batch of so many tokens."""
        self.tokens, self._calm, self.settled = max(1, tokens // 2), 0, True

    def _compare(self, tokens: int, seconds: float) -> None:
        size = self._sizes[self._turn % len(self._sizes)]
        if self._seen <= WARM or tokens < FULL * size:
            return
        self._costs[size].append(seconds / tokens)
        self._turn += 1
        self._sizes = [size for size in self._sizes if size in self._costs or self._fits(size)]
        if self._turn >= ROUNDS * len(self._sizes):
            self.settle(self._best())
        else:
            self.tokens = self._sizes[self._turn % len(self._sizes)]

    def _best(self) -> int:
        """The size with the least cost, as the median over rounds of what it is within its round."""
        rounds = [sum(costs) / len(costs) for costs in zip(*self._costs.values(), strict=False)]
        cost = {
            size: median(own / whole for own, whole in zip(costs, rounds, strict=False))
            for size, costs in self._costs.items()
        }
        best = min(cost, key=lambda size: (cost[size], size))
        return best if cost[best] < (1 - WORTH) * cost[self._default] else self._default


def budget_for(task: Task, machine: Machine, open_to: bool, on_gpu: bool) -> TokenBudget:
    """Sizes around the task's own are tried where `open_to` that, and where a batch is what the model sees at once."""
    fixed, default = machine.max_batch_tokens, task.batch_tokens[on_gpu]
    if fixed != "auto":
        return TokenBudget(fixed)
    if task.schedules or not open_to:
        return TokenBudget(default)
    return TokenBudget(default, [default // 2, default * 2, default * 4] if on_gpu else [default // 2, default * 2])

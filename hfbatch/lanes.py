"""Several forwards at a time on one CPU, each with its share of the threads.

Threads that share one forward wait for the slowest at every operator, and whatever else runs on the machine makes one
of them slow. Forwards side by side wait for nobody: on two cores 1.2 x the speed of one forward with two threads, and
1.3 x with a stranger on a fifth of a core (benchmarks/RESULTS.md). The model is one, its weights are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")

MOST = 8  # more would wait for the interpreter's lock, which every operator takes for a moment
MOST_DECODING = 2  # each reads all weights for every token
SMALL = 2**30  # bytes of weights: of larger ones there is one
REMEMBERS = ("dynamic", "longrope")  # kinds of rotary positions that a forward changes for the next one


class Lanes:
    """Threads that forwards run in; with one lane, the caller's own."""

    def __init__(self, count: int, threads: int) -> None:
        """`threads`: torch's, over all lanes."""
        self.count = count
        if count > 1:
            share = max(1, threads // count)
            self._pool = ThreadPoolExecutor(count, "lane", initializer=lambda: torch.set_num_threads(share))

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Do `work` in the next free lane; what comes back waits for its result, or raises as it did."""
        if self.count == 1:
            made = work()
            return lambda: made
        held = [self._pool.submit(work)]  # let go with the result: an exception holds a batch's tensors
        return lambda: held.pop().result()


def lanes_for(model: Any, threads: int, decodes: bool = False) -> int:
    """How many forwards of `model` may share a CPU of so many threads. `decodes`: they write texts token by token."""
    kinds = (str(getattr(module, "rope_type", "")) for module in model.modules())
    weights = sum(each.nbytes for each in model.parameters())
    most = MOST
    if decodes:
        most = MOST_DECODING if weights <= SMALL else 1
    return 1 if any(word in kind for kind in kinds for word in REMEMBERS) else min(threads, most)

"""Lengths in, batches of a handful of shapes out: what a compiled model may see. Pure numpy, as batch.py is.

Widths are powers of two and the middles between them, so of a long text little is padding; each has one number of rows,
what a batch has room for. A batch costs its whole shape, so rows are taken until it is full, narrower ones too; only
the last batch of all may lack some. Where memory ran out the room is halved until it fits, never a little less: the
shapes are at most as many as widths, times one more for each halving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hfbatch.sequences import Array

NARROWEST = 16  # tokens
MULTIPLE = 8  # of tokens: what matrix units like
FULL = 0.5  # of a shape's rows: with fewer it is not worth its cost, nor its compilation


def widths_up_to(longest: int) -> tuple[int, ...]:
    """NARROWEST, 32, 48, 64, 96, ... and `longest` (to the next MULTIPLE) instead of the first one beyond it."""
    longest, width, found = -(-longest // MULTIPLE) * MULTIPLE, NARROWEST, list[int]()
    while width < longest:
        found.append(width)
        power = 1 << (width.bit_length() - 1)
        width = power * 2 if width > power or width == NARROWEST else power * 3 // 2
    return (*found, longest)


@dataclass(frozen=True)
class Shapes:
    """What batches are padded to."""

    widths: tuple[int, ...]  # tokens, rising
    tokens: int  # of a batch at most, while there is memory for them
    max_rows: int

    def of(self, longest: int, rows: int, budget: int) -> tuple[int, int] | None:
        """(rows, width) that a batch of `rows` sequences is filled up to; None: it has a shape of its own."""
        width = next((width for width in self.widths if width >= longest), None)
        most = 0 if width is None else self._rows(width, budget)
        return (most, width) if width is not None and FULL * most <= rows <= most else None

    def cost(self, longest: int, rows: int, budget: int) -> int:
        """Tokens of such a batch, with all that is filled up."""
        filled, width = self.of(longest, rows, budget) or (rows, longest)
        return filled * width

    def cut(self, lengths: Array, budget: Callable[[], int]) -> Iterator[Array]:
        """Batches as index arrays, longest first, as batch.cut does; `budget` is asked for tokens before each."""
        order, start = np.argsort(-lengths, kind="stable"), 0
        while start < len(order):
            longest, tokens = max(1, int(lengths[order[start]])), budget()
            width = next((width for width in self.widths if width >= longest), longest)
            stop = start + (self._rows(width, tokens) or 1)
            yield order[start:stop]
            start = stop

    def _rows(self, width: int, budget: int) -> int:
        """0: not even one."""
        rows = min(self.max_rows, self.tokens // width)
        while rows * width > budget:
            rows //= 2
        return rows

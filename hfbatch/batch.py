"""Lengths in, batches out: which sequences share a forward pass. Pure numpy; how they are laid out is layout.py's.

A padded batch costs `longest x sequences` tokens, and something of its own: launching it, moving it. Sorted by length,
neighbours are alike; each batch ends where its real tokens are the largest share of its cost. On licence texts
(median 8 words, longest 14,000) that halved the padding of filling every batch to the brim, 5.0 to 2.4 %. A packed
one costs its real tokens, so it is filled.

Longest first: the batch that cannot fit fails in the first second, and time estimates err high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from hfbatch.sequences import Array

FIXED_COST = 1 / 32  # of a full batch; measured on CPU: about 60 tokens' time for a budget of 2,048
RECTANGLE = 2  # budgets that the rectangle around a packed batch may take, which embeddings and heads still see
SMALLEST = 256  # tokens: of less than that a batch is not made for the sake of another lane


def cut(
    lengths: Array,
    room: Callable[[], tuple[int, int]],
    kinds: Array | None = None,
    packed: bool = False,
    lanes: int = 1,
) -> Iterator[Array]:
    """Batches as index arrays, longest first; each index of `lengths` (sequences,) appears exactly once.

    `room` is asked before each batch for the most (tokens, sequences) that it may have, so that a run can learn while
    it is under way; a sequence longer than that gets a batch of its own. With `kinds` (sequences,) only those of one
    kind share a batch. `lanes` of them are computed at a time, and the last ones get smaller, so that all have work to
    the end. Equal lengths keep their order, and an empty sequence counts as of one token, so the cut is deterministic.
    A few microseconds a batch.
    """
    parts = [np.arange(len(lengths))]
    if kinds is not None:
        parts = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    left = [_Sorted(part, np.asarray(lengths, dtype=np.int64)[part]) for part in parts if len(part)]
    while left:
        longest, (most, rows) = max(left, key=lambda sequences: sequences.longest), room()
        if lanes > 1:
            most = min(most, max(SMALLEST, sum(sequences.left for sequences in left) // lanes))
        yield longest.take(most, rows, packed)
        left = [sequences for sequences in left if not sequences.over]


class _Sorted:
    """Sequences of one kind, longest first, and how many are taken."""

    def __init__(self, index: Array, lengths: Array) -> None:
        order = np.argsort(-lengths, kind="stable")
        self.order, self.lengths = index[order], np.maximum(lengths[order], 1)
        self.tokens, self.start = np.concatenate([[0], np.cumsum(self.lengths)]), 0

    @property
    def over(self) -> bool:
        return self.start == len(self.order)

    @property
    def left(self) -> int:
        """Tokens that are not taken."""
        return int(self.tokens[-1] - self.tokens[self.start])

    @property
    def longest(self) -> int:
        return int(self.lengths[self.start])

    def take(self, max_tokens: int, max_rows: int, packed: bool) -> Array:
        start, longest = self.start, self.longest
        room = RECTANGLE * max_tokens if packed else max_tokens
        most = min(max(1, room // longest), max_rows, len(self.order) - start)
        if packed:
            fitting = np.searchsorted(self.tokens, self.tokens[start] + max_tokens, side="right") - 1 - start
            self.start += max(1, min(most, int(fitting)))
        else:
            rows = np.arange(most, 0, -1)  # of equally good cuts argmax takes the first: the largest batch
            real = self.tokens[start + rows] - self.tokens[start]
            self.start += int(rows[np.argmax(real / (longest * rows + max_tokens * FIXED_COST))])
        return self.order[start : self.start]


def pack_by_length(lengths: Array, max_tokens: int, max_rows: int, kinds: Array | None = None) -> list[Array]:
    """All batches of `cut` for one budget."""
    return list(cut(lengths, lambda: (max_tokens, max_rows), kinds))


def halve(batch: Array, lengths: Array) -> tuple[Array, Array]:
    """A batch of two or more sequences in two, of about the same number of tokens each."""
    tokens = np.cumsum(lengths[batch])
    cut = int(np.searchsorted(tokens, tokens[-1] / 2)) + 1
    cut = min(max(cut, 1), len(batch) - 1)
    return batch[:cut], batch[cut:]


def padded_tokens(batch: Array, lengths: Array) -> int:
    """What `batch` costs when padded to its longest sequence."""
    return int(lengths[batch].max(initial=0)) * len(batch)

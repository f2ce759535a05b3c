"""Lengths in, batches out: which sequences share a forward pass. Pure numpy; how they are laid out is model.py's.

A batch costs `longest x sequences` tokens, padding counted. Sorting by length first makes neighbours alike, so
that almost nothing is padded. Longest first: the batch that cannot fit fails in the first second, and time
estimates err high.
"""

from __future__ import annotations

import numpy as np

from hfbatch.sequences import Array


def pack_by_length(lengths: Array, max_tokens: int, max_rows: int) -> list[Array]:
    """Cut sequences into batches of at most `max_tokens` padded tokens and `max_rows` sequences.

    `lengths` (sequences,) in tokens. Returns index arrays, longest first; each index appears exactly once. A
    sequence longer than the budget gets a batch of its own. Equal lengths keep their order, so the cut is
    deterministic.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        stop = start + min(max(1, max_tokens // longest), max_rows)
        batches.append(order[start:stop])
        start = stop
    return batches


def halve(batch: Array, lengths: Array) -> tuple[Array, Array]:
    """A batch of two or more sequences in two, of about the same number of tokens each."""
    tokens = np.cumsum(lengths[batch])
    cut = int(np.searchsorted(tokens, tokens[-1] / 2)) + 1
    cut = min(max(cut, 1), len(batch) - 1)
    return batch[:cut], batch[cut:]


def padded_tokens(batch: Array, lengths: Array) -> int:
    """What `batch` costs when padded to its longest sequence."""
    return int(lengths[batch].max(initial=0)) * len(batch)

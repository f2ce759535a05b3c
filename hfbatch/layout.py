"""How the sequences of a batch lie on the device: padded, each batch to its own longest sequence, on the right.

batch.py decides which sequences go together, this decides their shape. Tasks see neither: they ask a Batch
(tasks.base) for tokens by meaning.
"""

from __future__ import annotations

import numpy as np
import torch

from hfbatch.sequences import Array, Ragged, Sequences
from hfbatch.tasks.base import Task


class PaddedBatch:
    """Sequences as rectangles, padded on the right to the longest. See tasks.base.Batch for the methods."""

    def __init__(self, sequences: Sequences, task: Task, device: torch.device) -> None:
        self.inputs: dict[str, torch.Tensor] = {}
        lengths = input_lengths(sequences, task)
        longest = int(lengths.max(initial=0))
        mask = np.arange(longest) < lengths[:, None]  # (sequences, longest)
        for name in task.inputs:
            column = sequences.columns.get(name)
            if column is None:
                continue
            if isinstance(column, Ragged):
                column = _padded(column, mask, task.pad_value(name))
            self.inputs[name] = torch.from_numpy(np.ascontiguousarray(column)).to(device)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._mask = torch.from_numpy(mask).to(device)
        self._padded = not mask.all()
        if self._padded:
            self.inputs["attention_mask"] = self._mask.long()

    @property
    def lengths(self) -> torch.Tensor:
        """(sequences,) int64."""
        return self._lengths

    def tokens(self, values: torch.Tensor) -> torch.Tensor:
        """Boolean indexing by the mask keeps the sequences' order."""
        return values[self._mask] if self._padded else values.flatten(0, 1)

    def first(self, values: torch.Tensor) -> torch.Tensor:
        """Position 0: padding is on the right."""
        return values[:, 0]

    def last(self, values: torch.Tensor) -> torch.Tensor:
        """Position length - 1."""
        return values[torch.arange(len(values), device=values.device), self._lengths - 1]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Padding weighs 0."""
        weights = self._mask.unsqueeze(-1).to(torch.float32)
        return (values.float() * weights).sum(dim=1) / self._lengths.unsqueeze(-1)


def _padded(column: Ragged, mask: Array, fill: int) -> Array:
    """(sequences, longest, ...): ids as int64, which is what embeddings take, anything else as it is."""
    dtype = np.int64 if np.issubdtype(column.values.dtype, np.integer) else column.values.dtype
    padded = np.full((*mask.shape, *column.values.shape[1:]), fill, dtype=dtype)
    padded[mask] = column.values
    return padded


def input_lengths(sequences: Sequences, task: Task) -> Array:
    """(sequences,) int64: what each costs, in tokens; 1 for inputs of one fixed shape, such as images."""
    for name in task.inputs:
        column = sequences.columns.get(name)
        if isinstance(column, Ragged):
            return column.lengths
    return np.ones(len(sequences), dtype=np.int64)

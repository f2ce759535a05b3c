"""How the sequences of a batch lie on the device: padded, each batch to its own longest sequence.

batch.py decides which sequences go together, this decides their shape. Tasks see neither: they ask a Batch
(tasks.base) for tokens by meaning.
"""

from __future__ import annotations

import numpy as np
import torch

from hfbatch.sequences import SHAPE, Array, Column, Ragged, Sequences
from hfbatch.tasks.base import Task


class PaddedBatch:
    """Sequences as rectangles, padded to the longest on the task's side. See tasks.base.Batch for the methods."""

    def __init__(
        self, sequences: Sequences, task: Task, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        """`dtype`: what floating inputs become, as the model's weights are; None: they stay as they are."""
        self.inputs: dict[str, torch.Tensor] = {}
        self.sequences, self._left = sequences, task.padding_side == "left"
        lengths = token_lengths(sequences, task)
        longest = int(lengths.max(initial=0))
        positions = np.arange(longest)
        mask = positions >= longest - lengths[:, None] if self._left else positions < lengths[:, None]
        for name in task.inputs:
            column = sequences.columns.get(name)
            if column is None:
                continue
            shape = sequences.columns.get(name + SHAPE)
            if isinstance(column, Ragged):
                column = _padded(column, mask, task.pad_value(name)) if shape is None else _stacked(column, shape)
            tensor = torch.from_numpy(np.ascontiguousarray(column))
            self.inputs[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._mask = torch.from_numpy(mask).to(device)
        self._padded = not bool(mask.all())
        if self._padded:
            self.inputs["attention_mask"] = self._mask.long()

    @property
    def mask(self) -> torch.Tensor:
        """(sequences, longest) int64."""
        return self._mask.long()

    @property
    def lengths(self) -> torch.Tensor:
        """(sequences,) int64."""
        return self._lengths

    def tokens(self, values: torch.Tensor) -> torch.Tensor:
        """Boolean indexing by the mask keeps the sequences' order."""
        return values[self._mask] if self._padded else values.flatten(0, 1)

    def first(self, values: torch.Tensor) -> torch.Tensor:
        """Position 0, or behind the padding."""
        return values[self._rows(values), values.shape[1] - self._lengths] if self._left else values[:, 0]

    def last(self, values: torch.Tensor) -> torch.Tensor:
        """Position length - 1, or the very last."""
        return values[:, -1] if self._left else values[self._rows(values), self._lengths - 1]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Padding weighs 0."""
        weights = self._mask.unsqueeze(-1).to(torch.float32)
        return (values.float() * weights).sum(dim=1) / self._lengths.unsqueeze(-1)

    @staticmethod
    def _rows(values: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(values), device=values.device)


def _stacked(column: Ragged, shape: Column) -> Array:
    """(sequences, *shape): the arrays of a batch, which are of one shape."""
    return column.values.reshape(len(column), *(int(axis) for axis in shape[0]))


def _padded(column: Ragged, mask: Array, fill: int) -> Array:
    """(sequences, longest, ...): ids as int64, which is what embeddings take, anything else as it is."""
    dtype = np.int64 if np.issubdtype(column.values.dtype, np.integer) else column.values.dtype
    padded = np.full((*mask.shape, *column.values.shape[1:]), fill, dtype=dtype)
    padded[mask] = column.values
    return padded


def token_lengths(sequences: Sequences, task: Task) -> Array:
    """(sequences,) int64: the length of the first ragged model input, to which a batch is padded; else 1."""
    for name in task.inputs:
        column = sequences.columns.get(name)
        if isinstance(column, Ragged) and name + SHAPE not in sequences.columns:
            return column.lengths
    return np.ones(len(sequences), dtype=np.int64)


def input_lengths(sequences: Sequences, task: Task) -> Array:
    """(sequences,) int64: what each costs, in tokens; 1 for inputs of one fixed shape that say nothing else."""
    told = sequences.columns.get("length")
    return token_lengths(sequences, task) if told is None or isinstance(told, Ragged) else told

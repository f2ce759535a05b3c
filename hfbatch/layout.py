"""How the sequences of a batch lie on the device: padded, each batch to its own longest sequence.

batch.py decides which sequences go together, this decides their shape. Tasks see neither: they ask a Batch
(tasks.base) for tokens by meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from hfbatch.sequences import SHAPE, Array, Column, Ragged, Sequences
from hfbatch.tasks.base import Task


class PaddedBatch:
    """Sequences as rectangles, padded to the longest on the task's side. See tasks.base.Batch for what is public."""

    def __init__(
        self,
        sequences: Sequences,
        task: Task,
        device: torch.device,
        dtype: torch.dtype | None = None,
        room: tuple[int, int] = (0, 1),
        alive: Callable[[int], None] = lambda finished: None,
    ) -> None:
        """`dtype`: what floating inputs become, as the model's weights are; None: they stay as they are."""
        self.sequences, self.device, self.room, self.alive = sequences, device, room, alive
        self._task, self._dtype, self._left = task, dtype, task.padding_side == "left"
        self._width = 0

    def part(self, index: Array) -> PaddedBatch:
        """The sequences of `index` as a batch of their own."""
        return PaddedBatch(self.sequences.take(index), self._task, self.device, self._dtype, self.room, self.alive)

    def widened(self, width: int) -> PaddedBatch:
        """The same, padded to `width` tokens, which is not less than the longest; the model always gets a mask."""
        wide = PaddedBatch(self.sequences, self._task, self.device, self._dtype, self.room, self.alive)
        wide._width = width
        return wide

    @cached_property
    def real(self) -> Array:
        """(sequences, longest) bool, on the host: which tokens are no padding."""
        lengths = token_lengths(self.sequences, self._task)
        longest = self._width or int(lengths.max(initial=0))
        positions = np.arange(longest)
        return positions >= longest - lengths[:, None] if self._left else positions < lengths[:, None]

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model; attention_mask only where there is padding, or could be."""
        inputs: dict[str, torch.Tensor] = {}
        for name in self._task.inputs:
            column = self.sequences.columns.get(name)
            if column is None:
                continue
            shape = self.sequences.columns.get(name + SHAPE)
            if isinstance(column, Ragged):
                fill = self._task.pad_value(name)
                column = _padded(column, self.real, fill) if shape is None else _stacked(column, shape)
            tensor = self._there(column)
            inputs[name] = tensor.to(self._dtype if tensor.is_floating_point() else None)
        if self._width or self._padded:
            inputs["attention_mask"] = self.mask
        return inputs

    def _there(self, values: Array) -> torch.Tensor:
        """On the device. A GPU takes it from pinned memory while the host goes on."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    @cached_property
    def _mask(self) -> torch.Tensor:
        return self._there(self.real)

    @cached_property
    def _padded(self) -> bool:
        return not bool(self.real.all())

    @property
    def mask(self) -> torch.Tensor:
        """(sequences, longest) int64."""
        return self._mask.long()

    @cached_property
    def lengths(self) -> torch.Tensor:
        """(sequences,) int64."""
        return self._there(self.real.sum(axis=1))

    def tokens(self, values: torch.Tensor) -> torch.Tensor:
        """In the order of the sequences; by index, as a GPU would have to be asked how many a mask holds."""
        if not self._padded:
            return values.flatten(0, 1)
        return values.flatten(0, 1).index_select(0, self._there(np.flatnonzero(self.real)))

    def first(self, values: torch.Tensor) -> torch.Tensor:
        """Position 0, or behind the padding."""
        return values[self._rows(values), values.shape[1] - self.lengths] if self._left else values[:, 0]

    def last(self, values: torch.Tensor) -> torch.Tensor:
        """Position length - 1, or the very last."""
        return values[:, -1] if self._left else values[self._rows(values), self.lengths - 1]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Padding weighs 0."""
        weights = self._mask.unsqueeze(-1).to(torch.float32)
        return (values.float() * weights).sum(dim=1) / self.lengths.unsqueeze(-1)

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

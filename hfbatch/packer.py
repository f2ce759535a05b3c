"""Whether the layers of a model may go without padding: tried on a few of the run's own rows, beside the padded way.

A model that does not agree with itself keeps its padding, and the report says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfbatch.layout import PaddedBatch, token_lengths
from hfbatch.packing import install, packed
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.base import Task

if TYPE_CHECKING:
    from hfbatch.spec import Machine

TRIED, TOKENS = 8, 512  # sequences and tokens of the trial, at most
CLOSE, CLOSE_HALF = 1e-4, 3e-2  # of the largest value: how far results may lie apart, in float32 and below


class Packer:
    """Decides how the batches of one model are laid out."""

    def __init__(self, model: Any, task: Task, machine: Machine) -> None:
        """`install`s the hooks, unless the task's batches are never padded."""
        self.task, self.on = task, False
        # Whether the last layer is spared all tokens but each sequence's first. Not on a GPU: its attention is a call
        # for each length.
        self.first = task.reads_first and getattr(getattr(model, "device", None), "type", "") == "cpu"
        self.reason: str | None = None  # why batches are padded; None while nothing speaks against packing
        self.open = not task.generates and not task.adapted and "input_ids" in task.inputs
        if self.open:
            self.reason = "packing: false" if not machine.packing else "compile" if machine.compile else install(model)
            self.open = self.reason is None
        self._close = CLOSE if getattr(model, "dtype", None) == torch.float32 else CLOSE_HALF

    @property
    def layout(self) -> str:
        """For the report."""
        return "packed" if self.on else "padded" + (f" ({self.reason})" if self.reason else "")

    def around(self, batch: PaddedBatch) -> AbstractContextManager[None]:
        """The context in which `batch` goes through the model."""
        return packed(batch.real, batch.device, self.first) if self.on else nullcontext()

    def settle(self, sequences: Sequences, forward: Callable[[Sequences], Mapping[str, Column]]) -> None:
        """Try it on some of `sequences`; without two of different length, or where they fail anyhow, another time."""
        index = _different(token_lengths(sequences, self.task))
        if len(index) < 2:
            return
        batch = sequences.take(index)
        try:
            expected = forward(batch)
        except Exception:  # a bad row's affair, which the run finds out about
            return
        self.on, self.open = True, False
        self.reason = self._differs(batch, expected, forward)
        if self.reason is not None and self.first:
            self.first = False
            self.reason = self._differs(batch, expected, forward)
        self.on = self.reason is None

    def _differs(
        self,
        batch: Sequences,
        expected: Mapping[str, Column],
        forward: Callable[[Sequences], Mapping[str, Column]],
    ) -> str | None:
        """What keeps `batch` from giving what is expected of it."""
        try:
            found = forward(batch)
        except Exception as error:
            return str(error).partition("\n")[0][:200]
        others = (name for name, column in expected.items() if not _alike(column, found[name], self._close))
        return next((f"without padding its {name} are others" for name in others), None)


def _different(lengths: Array) -> Array:
    """Some sequences of different lengths, longest first, that hold TOKENS at most."""
    lengths_there, index = np.unique(lengths, return_index=True)
    small = lengths_there * TRIED <= TOKENS
    index = index[small] if small.sum() > 1 else index[:2]
    spread = np.unique(np.linspace(0, len(index) - 1, min(TRIED, len(index))).astype(int))
    chosen: Array = index[spread[::-1]]
    return chosen


def _alike(one: Column, other: Column, close: float) -> bool:
    if isinstance(one, Ragged) and isinstance(other, Ragged):
        return np.array_equal(one.offsets, other.offsets) and _alike(one.values, other.values, close)
    if isinstance(one, Ragged) or isinstance(other, Ragged) or one.shape != other.shape:
        return False
    if not np.issubdtype(one.dtype, np.floating):
        return np.array_equal(one, other)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return False
    one, other = one[finite], other[finite]
    return bool((np.abs(one - other) <= close * max(1.0, np.abs(one).max(initial=0))).all())

"""Keys and values of rows that come and go: a row's slot holds as many tokens as the row has, beside other rows' slots.

`Slots.cache()` is a transformers Cache, whose layers write where the pass at hand says and show the model no more than
it may look at. Positions start at 0 in every slot, so nothing is shifted when a row joins or leaves; behind a row's
end stands what the caller's mask hides, zeros or another row's rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hfbatch.sequences import Array

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor: TypeAlias = Any

_STEP = 32  # tokens; room grows by that, or by a quarter
_SPARE = 1.25  # slots are made for so many times the rows, so that few joins copy what is there


@dataclass
class Pass:
    """Where a call of the model writes: the `tokens` behind `start` of slots `first` and up, or one `places` a slot."""

    first: int = 0
    start: int = 0
    places: Tensor | None = None  # (rows,) int64, of slots 0 and up
    longest: int = 0  # tokens that the rows of `places` may look at


class Layer:
    """One layer's keys and values, (slots, heads, room, size of a head) each: a CacheLayerMixin of transformers."""

    is_sliding = is_compileable = is_croppable = supports_early_init = False
    is_initialized = True

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.keys: Any = None
        self.values: Any = None
        self.front: tuple[Any, Any] = (None, None)  # of the prefix that all rows share, (1, heads, tokens, size)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Takes what the model made, (rows, heads, tokens, size), and gives what it attends to."""
        self.keys, self.values = self._fitted(self.keys, keys), self._fitted(self.values, values)
        return self._written(self.keys, keys, self.front[0]), self._written(self.values, values, self.front[1])

    def _written(self, held: Tensor, made: Tensor, front: Tensor) -> Tensor:
        now, rows = self.slots.now, len(made)
        if now.places is not None:
            held[self.slots.numbers[:rows], :, now.places] = made[:, :, 0]
            return held[:rows, :, : now.longest]
        own, end = held[now.first : now.first + rows], now.start + made.shape[2]
        if now.start:
            own[:, :, : now.start] = front
        own[:, :, now.start : end] = made
        own[:, :, end:] = 0  # a NaN that a row left here would get past the mask
        return own[:, :, :end]

    def _fitted(self, held: Tensor | None, made: Tensor) -> Tensor:
        """`held` as large as the slots are by now, with all that the rows have."""
        shape = (self.slots.slots, made.shape[1], self.slots.room, made.shape[3])
        if held is not None and tuple(held.shape) == shape:
            return held
        larger: Tensor = made.new_zeros(shape)
        if held is not None and self.slots.rows:
            rows, room = self.slots.rows, min(held.shape[2], shape[2])
            larger[:rows, :, :room] = held[:rows, :, :room]
        return larger

    def move(self, to: Tensor, taken: Tensor, tokens: int) -> None:
        """The first `tokens` of the slots `taken` into the slots `to`."""
        for held in (self.keys, self.values):
            held[to, :, :tokens] = held[taken, :, :tokens]

    def keep_front(self, tokens: int) -> None:
        """Remember the first `tokens` of slot 0, for all that join."""
        self.front = self.keys[:1, :, :tokens].clone(), self.values[:1, :, :tokens].clone()

    def get_seq_length(self) -> int:
        """As a model asks that is not told positions and a mask."""
        return self.slots.now.longest - 1 if self.slots.now.places is not None else self.slots.now.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens attended to, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Any."""
        return -1


class Slots:
    """The slots of all layers; 0 to `rows` - 1 are taken."""

    def __init__(self, layers: int, device: Any) -> None:
        from transformers.cache_utils import Cache, CacheLayerMixin

        CacheLayerMixin.register(Layer)  # which is what it is, and this module loads without torch
        self.layers = [Layer(self) for _ in range(layers)]
        self.cache: Any = Cache(layers=self.layers)
        self.device, self.now = device, Pass()
        self.rows = self.slots = self.room = 0
        self.numbers: Any = None  # (slots,) int64: 0, 1, 2 ...

    def fit(self, rows: int, tokens: int, most: int) -> None:
        """Make sure of `rows` slots of `tokens`; `most`: tokens beyond which no row will grow."""
        import torch

        spacious = self.slots * self.room > 2 * _SPARE * rows * most
        if rows <= self.slots and tokens <= self.room and not spacious:
            return
        if rows > self.slots or spacious:
            self.slots = int(rows * _SPARE) if self.slots else rows
            self.numbers = torch.arange(self.slots, device=self.device)
        if tokens > self.room or spacious:
            self.room = max(tokens, min(most, max(tokens + _STEP, tokens * 5 // 4)))

    def spread(self, first: int, sources: Array) -> None:
        """Slot `first` + i gets what slot `first` + `sources`[i] has, for all i at once."""
        import torch

        taken = torch.from_numpy(first + sources).to(self.device)
        to = torch.arange(first, first + len(sources), device=self.device)
        for layer in self.layers:
            layer.move(to, taken, self.room)

    def keep(self, kept: Array, tokens: int) -> Array:
        """Leave the slots out that are not among `kept`, which rises. Gives which of the old slots each now is.

        `tokens`: the most that a row has. The last rows move into the gaps.
        """
        import torch

        order = np.arange(len(kept))
        gaps, movers = np.setdiff1d(order, kept), kept[kept >= len(kept)]
        if len(gaps):
            order[gaps] = movers
            to, taken = (torch.from_numpy(each).to(self.device) for each in (gaps, movers))
            for layer in self.layers:
                layer.move(to, taken, tokens)
        self.rows = len(kept)
        return order

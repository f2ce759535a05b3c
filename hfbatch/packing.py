"""The layers of a model without padding: they see the tokens of a batch one after another, and nothing between.

Embeddings, positions and heads see the rectangle that they were written for; the first layer's hook takes the padding
out, the last one's puts it back. In between, one attention function, registered with transformers, keeps every
sequence to itself. So no model has to be changed, and no position, offset or pooled token to be thought of again.

Of a batch of sorted sequences many are of one length: each length is one call of scaled_dot_product_attention. In
half precision on a GPU, FlashAttention takes all lengths in one call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hfbatch.readout import attend, keys_and_values, widen
from hfbatch.sequences import Array

ATTENTION = "hfbatch"  # its name in transformers' registries

_now = threading.local()


class NotPackable(Exception):
    """A model, or a batch, that needs its padding."""


@dataclass
class Packed:
    """Where the real tokens of one batch lie in its rectangle (sequences, longest), flat."""

    rows: int
    longest: int
    index: torch.Tensor  # (tokens,) int64, row by row
    runs: list[tuple[int, int, int]]  # (first token, sequences, length) of neighbours of one length
    lengths: torch.Tensor  # (sequences,) int64
    first: bool = False  # whether of the last layer's results nothing but each sequence's first token is wanted
    whole: torch.Tensor | None = None  # within that layer: (1, tokens, width), what all tokens are
    _made: dict[int, Any] = field(default_factory=dict)  # of tensors that every layer gets; what they are packed

    @classmethod
    def of(cls, mask: Array, device: torch.device, first: bool = False) -> Packed:
        """`mask` (sequences, longest) bool: which tokens are real. `first`: see there; no padding in front then."""
        (rows, longest), lengths, runs, start = mask.shape, mask.sum(axis=1), [], 0
        for group in np.split(lengths, np.flatnonzero(np.diff(lengths)) + 1):
            runs.append((start, len(group), int(group[0])))
            start += int(group.sum())
        index = torch.from_numpy(np.flatnonzero(mask)).to(device, non_blocking=True)
        return cls(rows, longest, index, runs, torch.from_numpy(lengths).to(device, non_blocking=True), first)

    @property
    def tokens(self) -> int:
        """How many are real."""
        return len(self.index)

    def pack(self, value: Any) -> Any:
        """(sequences or 1, longest, ...) -> (1, tokens, ...); anything else as it is."""
        if isinstance(value, tuple):
            return tuple(self.pack(each) for each in value)
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[1] != self.longest:
            return value
        if value.shape[0] not in (1, self.rows):
            return value
        if id(value) not in self._made:
            index = self.index if value.shape[0] == self.rows else self.index % self.longest
            self._made[id(value)] = (value.flatten(0, 1).index_select(0, index).unsqueeze(0), value)
        return self._made[id(value)][0]

    def after(self, front: int) -> torch.Tensor:
        """(tokens + sequences x front,) int64: where the tokens that each sequence sees are, behind `front` of all."""
        if -front not in self._made:  # which is no tensor's id
            sees, total = self.lengths + front, self.tokens + self.rows * front
            sequence = torch.repeat_interleave(sees, output_size=total)
            place = torch.arange(total, device=self.index.device) - (sees.cumsum(0) - sees)[sequence]
            own = (self.lengths.cumsum(0) - self.lengths)[sequence]
            self._made[-front] = torch.where(place < front, place, place + own)
        found: torch.Tensor = self._made[-front]
        return found

    def unpack(self, value: torch.Tensor) -> torch.Tensor:
        """(1, tokens, ...) -> (sequences, longest, ...), with zeros for padding."""
        if self.tokens == self.rows * self.longest:
            return value.reshape(self.rows, self.longest, *value.shape[2:])
        whole = value.new_zeros(self.rows * self.longest, *value.shape[2:])
        return whole.index_copy_(0, self.index, value[0]).view(self.rows, self.longest, *value.shape[2:])


@dataclass(frozen=True, eq=False)
class Window:
    """What stands for an attention mask of a layer that does not look at everything (sliding windows, chunks)."""

    sees: Callable[..., torch.Tensor]  # (batch, head, query, key) -> whether; see transformers.masking_utils

    def mask(self, length: int, device: torch.device) -> torch.Tensor | None:
        """(length, length) bool; None where everything is seen."""
        at = torch.arange(length, device=device)
        zero = at.new_zeros(())
        seen = self.sees(zero, zero, at[:, None], at[None, :]).broadcast_to(length, length)
        return None if bool(seen.all()) else seen


def install(model: Any) -> str | None:
    """Let `model` be packed where `packed` asks for it; otherwise it is as before. Returns why it cannot, or None."""
    from transformers import AttentionInterface, AttentionMaskInterface

    layers = _layers(model)
    if layers is None:
        return "its layers are no single stack"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention is its own"
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", ATTENTION):
        return f"its attention is {model.config._attn_implementation}"
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)
    model.set_attn_implementation(ATTENTION)
    for layer in layers:
        layer.register_forward_pre_hook(_before, with_kwargs=True)
    layers[-1].register_forward_pre_hook(_narrow, with_kwargs=True)
    layers[-1].register_forward_hook(_after)
    return None


@contextmanager
def packed(mask: Array, device: torch.device, first: bool = False) -> Iterator[None]:
    """Inside, a model that `install` prepared takes the padding of its batch out; arguments as of Packed.of."""
    _now.batch = Packed.of(mask, device, first)
    try:
        yield
    finally:
        _now.batch = None


def _batch() -> Packed | None:
    return getattr(_now, "batch", None)


def _layers(model: Any) -> torch.nn.ModuleList | None:
    """The one stack of as many layers as the config says."""
    config = model.config
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int) or getattr(config, "is_encoder_decoder", False):
        return None
    stacks = [module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList)]
    stacks = [stack for stack in stacks if len(stack) == count and len({type(layer) for layer in stack}) == 1]
    return stacks[0] if len(stacks) == 1 else None


def _before(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch = _batch()
    if batch is None:
        return None
    return tuple(batch.pack(value) for value in args), {name: batch.pack(value) for name, value in kwargs.items()}


def _narrow(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Into the last layer, which is packed already, go first tokens alone, where no more is wanted of it."""
    batch = _batch()
    if batch is None or not batch.first:
        return None
    if not args or any(isinstance(value, torch.Tensor | tuple) for value in (*args[1:], *kwargs.values())):
        raise NotPackable("its last layer is told about every token")
    batch.whole = args[0]
    return (args[0].index_select(1, batch.lengths.cumsum(0) - batch.lengths),), kwargs


def _after(layer: Any, args: tuple[Any, ...], output: Any) -> Any:
    batch = _batch()
    if batch is None:
        return None
    states = output[0] if isinstance(output, tuple) else output
    states = batch.unpack(states) if batch.whole is None else widen(states, batch.longest)
    batch.whole = None
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _mask(*args: Any, **kwargs: Any) -> Any:
    """In place of transformers' sdpa_mask: nothing where a layer sees all, or all before; else what it sees."""
    from transformers.masking_utils import sdpa_mask

    if _batch() is None:
        return sdpa_mask(*args, **kwargs)
    if kwargs.get("use_vmap"):
        raise NotPackable("its mask is its own")
    return None if kwargs.get("local_size") is None else Window(kwargs["mask_function"])


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """(1, heads, tokens, dim) each -> (1, tokens, heads, dim). Not packed: transformers' sdpa_attention_forward.

    Keys and values may begin with some that all sequences see, from a cache.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch = _batch()
    if batch is None:
        padded: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return padded
    if batch.whole is not None:
        return _of_first(module, batch, query, attention_mask, kwargs.get("scaling")), None
    front = key.shape[2] - batch.tokens
    if query.shape[2] != batch.tokens or front < 0:
        raise NotPackable("it attends to other tokens than its own")
    if front and attention_mask is not None:
        raise NotPackable("its window reaches back to what all begin with")
    if isinstance(attention_mask, torch.Tensor) or kwargs.get("position_bias") is not None:
        raise NotPackable("its attention has a bias")
    causal, scale = kwargs.get("is_causal"), kwargs.get("scaling")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if query.is_cuda and query.dtype != torch.float32 and attention_mask is None and query.shape[-1] <= 256:
        return _flash(batch, query, key, value, scale, causal), None
    return _by_length(batch, (query, key, value), attention_mask, scale, causal), None


def _of_first(module: Any, batch: Packed, query: torch.Tensor, mask: Any, scale: float | None) -> torch.Tensor:
    """`query` (1, heads, sequences, dim) -> (1, sequences, heads, dim)."""
    made = None if batch.whole is None else keys_and_values(module, batch.whole, query.shape[-1])
    if made is None or mask is not None or query.shape[2] != batch.rows or getattr(module, "is_causal", False):
        raise NotPackable("its last layer's attention is not known")
    return attend(batch.runs, query, *made, scale)


def _by_length(
    batch: Packed, states: tuple[torch.Tensor, ...], window: Window | None, scale: float | None, causal: bool
) -> torch.Tensor:
    query, key, value = (each[0].transpose(0, 1) for each in states)  # (tokens, heads, dim), as projections lie
    out = query.new_empty(*query.shape[:2], value.shape[-1])
    grouped, front = query.shape[1] != key.shape[1], len(key) - len(query)
    for start, rows, length in batch.runs:
        part = slice(start, start + rows * length)
        own = (query[part], key[front:][part], value[front:][part])
        q, k, v = (each.view(rows, length, *each.shape[1:]).transpose(1, 2) for each in own)
        mask = None if window is None else window.mask(length, query.device)
        if front:
            k, v = _behind(key[:front], k), _behind(value[:front], v)
            mask = q.new_ones(length, front + length, dtype=torch.bool).tril(front) if causal else None
        ahead = causal and mask is None and length > 1
        made = F.scaled_dot_product_attention(q, k, v, mask, is_causal=ahead, scale=scale, enable_gqa=grouped)
        out[part].view(rows, length, *out.shape[1:]).copy_(made.transpose(1, 2))
    return out.unsqueeze(0)


def _behind(front: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """(front, heads, dim) before each of (rows, heads, length, dim)."""
    return torch.cat([front.transpose(0, 1).expand(len(own), -1, -1, -1), own], dim=2)


def _flash(
    batch: Packed, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, causal: bool
) -> torch.Tensor:
    """FlashAttention over sequences of any lengths (Dao 2023, arXiv:2307.08691), as torch brings it."""
    from torch.nn.attention.varlen import varlen_attn

    front = key.shape[2] - query.shape[2]
    ends, seen = (F.pad((batch.lengths + more).cumsum(0), (1, 0)).int() for more in (0, front))
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    if front:
        key, value = (each.index_select(0, batch.after(front)) for each in (key, value))
    made = varlen_attn(
        query,
        key,
        value,
        ends,
        seen,
        batch.longest,
        front + batch.longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return made.unsqueeze(0)  # type: ignore[union-attr]

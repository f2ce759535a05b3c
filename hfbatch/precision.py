"""Float32 where half precision is too little: the heads of a model, and all of it for a second look.

Half precision overflows where float32 does not: a result that is not finite is tried again with the whole model in
float32, and then the very tensors that it had are put back. Casting back would round twice, and would round the
buffers that were float32 all along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch


def widen_heads(model: Any) -> None:
    """Compute what stands behind the base model in float32; nothing where its weights are the base model's too.

    A head is a thousandth of the work, and its logits in half precision have three digits: many scores would be equal.
    """
    base = model.base_model
    shared = {id(parameter) for parameter in base.parameters()}
    for head in model.children():
        own = list(head.parameters())
        if head is not base and own and not any(id(parameter) in shared for parameter in own):
            head.float()
            head.register_forward_pre_hook(_widened, with_kwargs=True)


def _widened(head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_wide(each) for each in args), {name: _wide(each) for name, each in kwargs.items()}


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def is_float32(model: Any) -> bool:
    """Whether no parameter and no buffer of `model` is of a shorter floating type."""
    return not _short(model)


@contextmanager
def in_float32(model: Any) -> Iterator[Any]:
    """`model`, without the compiler around it where it is not float32, with all its floating tensors in float32.

    Needs twice the memory of 16-bit weights beside them; what the allocator raises then passes through, and the
    model is as before.
    """
    short = _short(model)
    kept = [tensor.data for tensor in short]
    try:
        for tensor in short:
            tensor.data = tensor.data.float()
        yield getattr(model, "_orig_mod", model) if short else model
    finally:
        for tensor, data in zip(short, kept, strict=True):
            tensor.data = data


def _short(model: Any) -> list[torch.Tensor]:
    tensors = chain(model.parameters(), model.buffers())
    return [tensor for tensor in tensors if tensor.is_floating_point() and tensor.element_size() < 4]

"""A model in float32 for a moment, with the very tensors that it had put back after.

Half precision overflows where float32 does not: a result that is not finite deserves a second look. Casting back
would round twice, and would round the buffers that were float32 all along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch


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

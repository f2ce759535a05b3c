"""Linear layers whose weights lie as oneDNN wants them, where that is faster on the CPU at hand.

With AVX-512 the plain way spends a tenth of its time on laying weights out again at every call; with AVX2 alone, MKL's
plain way is the faster one. So it is timed, at the model's own shapes, before anything is changed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import Linear

WORTH, TRIES = 1.05, 5  # how much faster it has to be, and how often it is timed
_ops: Any = torch.ops.mkldnn


class PrepackedLinear(Linear):
    """A Linear that keeps its weight in both layouts; the plain one serves another dtype (see precision.py)."""

    packed: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As Linear's."""
        if input.dtype != self.packed.dtype:
            return super().forward(input)
        made: torch.Tensor = _ops._linear_pointwise(input, self.packed, self.bias, "none", [], "")
        return made


def prepack(model: Any, tokens: int) -> bool:
    """Change the Linear layers of `model`, if that pays for batches of `tokens`. Returns whether it does."""
    layers = [module for module in model.modules() if type(module) is Linear]
    if not layers:
        return False
    shapes = Counter(tuple(layer.weight.shape) for layer in layers)
    likeliest = max(shapes, key=lambda shape: shapes[shape] * shape[0] * shape[1])
    if not pays(next(layer for layer in layers if tuple(layer.weight.shape) == likeliest), tokens):
        return False
    for layer in layers:
        layer.packed = _ops._reorder_linear_weight(layer.weight.detach(), tokens)
        layer.__class__ = PrepackedLinear
    return True


def pays(layer: Linear, tokens: int) -> bool:
    """Whether `layer` is faster so, by the best of a few tries in turns; a CPU may have no kernel for its dtype."""
    rows = torch.randn(1, tokens, layer.in_features, dtype=layer.weight.dtype)
    with torch.inference_mode():
        try:
            packed = _ops._reorder_linear_weight(layer.weight.detach(), tokens)
        except (RuntimeError, AttributeError):  # AttributeError: a torch built without oneDNN
            return False
        ways = [
            lambda: F.linear(rows, layer.weight, layer.bias),
            lambda: _ops._linear_pointwise(rows, packed, layer.bias, "none", [], ""),
        ]
        times = [[_seconds(way) for way in ways] for _ in range(TRIES)]
    plain, ours = (min(each) for each in zip(*times, strict=True))
    return bool(plain > WORTH * ours)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started

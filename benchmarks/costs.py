"""What a forward pass costs at least, and how fast this machine multiplies: the limit that all routes share.

FLOPs count each multiplication and addition of matrix products on real tokens; what padding, norms and activations
take is no part of them. So no route reaches the whole limit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A transformer encoder, as far as its matrix products go."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a BERT-like config, as an object or as config.json has it."""
        get = config.get if isinstance(config, dict) else lambda name: getattr(config, name)
        return cls(get("num_hidden_layers"), get("hidden_size"), get("intermediate_size"))

    def flops(self, lengths: np.ndarray) -> float:
        """Of one pass over sequences of `lengths` (sequences,) tokens, without padding and without a head."""
        tokens, pairs = float(np.sum(lengths)), float(np.sum(np.asarray(lengths, dtype=np.float64) ** 2))
        linear = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)
        return self.layers * (linear * tokens + 4 * self.hidden * pairs)


def gemm_rate(shape: Shape, device: str, dtype: str, seconds: float, tokens: int = 2048) -> float:
    """FLOP/s of torch's linear at the shapes of one layer, for batches of `tokens`, kept up for `seconds`.

    Not the best of many short tries: what a machine gives for a moment, no route gets for a minute.
    """
    import torch

    sizes = [(shape.hidden, shape.hidden)] * 4 + [
        (shape.hidden, shape.intermediate),
        (shape.intermediate, shape.hidden),
    ]
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    weights = [torch.randn(out, into, **kind) for into, out in sizes]
    inputs = [torch.randn(tokens, into, **kind) for into, _ in sizes]
    flops, made, took = sum(2 * tokens * into * out for into, out in sizes), 0, 0.0
    times = 4 if device == "cpu" else 50
    with torch.inference_mode():
        for given, weight in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(given, weight)
        started = time.perf_counter()
        while not made or took < seconds:
            for _ in range(times):
                for given, weight in zip(inputs, weights, strict=True):
                    torch.nn.functional.linear(given, weight)
            if device != "cpu":
                torch.cuda.synchronize()
            made, took = made + times * flops, time.perf_counter() - started
    return made / took

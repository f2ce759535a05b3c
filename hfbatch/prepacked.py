"""Linear layers whose weights lie as oneDNN wants them, on CPUs where that is faster.

With AVX-512 the plain way lays weights out again at every call, which takes a tenth of the time; with AVX2 alone MKL's
plain way is the faster one, by about as much (benchmarks/RESULTS.md). To time it at each start would be to trust a
few milliseconds of a machine that may be busy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Linear

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


def pays() -> bool:
    """Whether this CPU is one where it is faster."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def prepack(model: Any, tokens: int) -> bool:
    """Change the Linear layers of `model`, which sees batches of about `tokens`; returns whether there were any."""
    layers = [module for module in model.modules() if type(module) is Linear]
    try:
        packed = [_ops._reorder_linear_weight(layer.weight.detach(), tokens) for layer in layers]
    except (RuntimeError, AttributeError):  # no kernel for its dtype, or no oneDNN
        return False
    for layer, weight in zip(layers, packed, strict=True):
        layer.packed = weight
        layer.__class__ = PrepackedLinear
    return bool(layers)

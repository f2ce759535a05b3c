"""Tiny checkpoints of many architectures; their weights depend on the names and shapes of the parameters alone.

So a checkpoint is the same whatever torch or transformers draw first, and what one version of transformers gave for
it (tests/golden/) holds for another. text.py has the text families, media.py pictures and sound.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = 2
HIDDEN = 32
HEADS = 4
WIDE = 64  # the inner size of a feed-forward block


def fill(model, scale: float = 0.4) -> None:
    """Set every floating parameter from a generator seeded by its name; buffers and scalars stay as they are.

    Uniform, with standard deviation `scale` (large, so that outputs differ between inputs): uniform draws are exact
    on every machine. One-dimensional weights are those of norms and stay near 1, biases near 0. A tied weight is
    filled once, under the first of its names.
    """
    import torch

    seen: set[int] = set()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
            if id(parameter) in seen or parameter.ndim == 0 or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            draws = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).random(tuple(parameter.shape))
            values = (2 * draws - 1) * np.sqrt(3)
            if parameter.ndim == 1 and name.endswith("weight"):
                values = 1 + 0.05 * values
            else:
                values *= 0.1 * scale if name.endswith("bias") else scale
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    model.tie_weights()


def save(
    folder: Path,
    head: str,
    config: Any,
    scale: float = 0.4,
    generation: dict[str, Any] | None = None,
    ending: float = 1.0,
) -> Path:
    """A model of transformers' class `head`, filled and saved; `generation` is its generation_config.json.

    `ending` makes the token that ends a text likelier, so that some texts end early and others do not: it is added
    to the token's logit where the architecture has such a bias, else it multiplies the token's output row.
    """
    import torch
    import transformers

    model = getattr(transformers, head)(config).eval()
    fill(model, scale)
    if generation is not None and model.can_generate():
        model.generation_config = transformers.GenerationConfig(**generation)
        with torch.no_grad():
            if hasattr(model, "final_logits_bias"):
                model.final_logits_bias[0, config.eos_token_id] += ending
            else:
                model.get_output_embeddings().weight[config.eos_token_id] *= ending
    model.save_pretrained(folder)
    return folder


def digest(model) -> str:
    """sha256 over names and values of a loaded model's weights: equal digests, equal checkpoints."""
    import hashlib

    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()

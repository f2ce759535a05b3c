"""The last layer for the first tokens alone, where no head reads another: they look at all, and all else is left out.

Of a layer's work ten twelfths are queries, their projection and the feed-forward part of tokens whose results nobody
asks for. Only keys and values of all tokens are needed; attention makes them itself, with the module's projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

_PROJECTIONS = (("key", "value"), ("k_proj", "v_proj"), ("k_lin", "v_lin"))  # as transformers names them


def keys_and_values(module: Any, states: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(1, heads, tokens, size) each, of all `states` (1, tokens, width); None where `module` makes them otherwise."""
    for names in _PROJECTIONS:
        known = [made for name in names if isinstance(made := getattr(module, name, None), torch.nn.Linear)]
        if len(known) == len(names):
            key, value = (made(states).view(*states.shape[:2], -1, size).transpose(1, 2) for made in known)
            return key, value
    return None


def attend(
    runs: Sequence[tuple[int, int, int]], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: Any
) -> torch.Tensor:
    """`query` (1, heads, sequences, size), one a sequence, and all keys and values -> (1, sequences, heads, size).

    `runs`: (first token, sequences, length) of neighbours of one length.
    """
    grouped, made, first = query.shape[1] != key.shape[1], [], 0
    for start, rows, length in runs:
        q = query[0, :, first : first + rows].transpose(0, 1).unsqueeze(2)
        own = (each[0].transpose(0, 1)[start : start + rows * length] for each in (key, value))
        k, v = (each.view(rows, length, *each.shape[1:]).transpose(1, 2) for each in own)
        made.append(F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped).squeeze(2))
        first += rows
    return torch.cat(made).unsqueeze(0)


def widen(states: torch.Tensor, longest: int) -> torch.Tensor:
    """(1, sequences, width) -> (sequences, longest, width): each at its sequence's beginning, zeros behind it."""
    whole = states.new_zeros(states.shape[1], longest, *states.shape[2:])
    whole[:, 0] = states[0]
    return whole

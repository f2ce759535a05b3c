"""Which token comes next: penalties, and sampling whose noise depends on the row alone.

A token is drawn by inverse CDF in the vocabulary's order from one uniform number, a hash of (seed, key of the row,
number of the text, step). No generator has a state, so another batch, order, shard or actor draws the same; as
everywhere else, what may differ is the last bit of a logit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hfbatch.sequences import Array

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor: TypeAlias = Any

Scores: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (ids, logits) -> logits: what transformers calls a processor

_STEP = 0x9E3779B97F4A7C15
_TIES = 8  # tokens as likely as the last of the top_k that may be among the top_k too


def streams(keys: Array, seed: int, texts: int) -> Array:
    """(rows * texts,) uint64, one a text, the texts of a row one after another; `keys` (rows,) uint64."""
    state = _mixed(keys.astype(np.uint64) ^ _mixed(np.array([seed], dtype=np.uint64)))
    numbers = np.arange(1, texts + 1, dtype=np.uint64) * np.uint64(_STEP)
    made: Array = _mixed(state[:, None] + numbers).reshape(-1)
    return made


def uniform(streams: Array, step: int | Array) -> Array:
    """(texts,) float64 in (0, 1): the number of each stream at `step`, or at its own of `step` (texts,) uint64."""
    steps = np.atleast_1d(np.asarray(step, dtype=np.uint64)) + np.uint64(1)
    state = _mixed(streams + steps * np.uint64(_STEP))
    made: Array = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
    return made


def _mixed(state: Array) -> Array:
    """splitmix64's finaliser."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = state ^ (state >> np.uint64(31))
    return mixed


def warpers(settings: Mapping[str, Any]) -> list[Scores]:
    """What narrows the distribution before a token is drawn, in the order in which transformers does it."""
    from transformers.generation import logits_process as known

    made: list[Scores] = []
    for name, idle, build in (
        ("temperature", 1.0, "TemperatureLogitsWarper"),
        ("top_h", None, "TopHLogitsWarper"),
        ("top_k", 0, "TopKLogitsWarper"),
        ("top_p", 1.0, "TopPLogitsWarper"),
        ("min_p", None, "MinPLogitsWarper"),
        ("typical_p", 1.0, "TypicalLogitsWarper"),
        ("epsilon_cutoff", 0.0, "EpsilonLogitsWarper"),
        ("eta_cutoff", 0.0, "EtaLogitsWarper"),
    ):
        value = settings.get(name)
        if value is not None and value != idle:
            made.append(getattr(known, build)(value))
    return made


def penalised(prompt: int, presence: float, frequency: float) -> Scores:
    """OpenAI's penalties over what was generated behind the `prompt` columns: once a token, and once an occurrence."""

    def penalise(ids: Tensor, logits: Tensor) -> Tensor:
        import torch

        generated = ids[:, prompt:]
        counts = torch.zeros_like(logits).scatter_add_(1, generated, torch.ones_like(generated, dtype=logits.dtype))
        return logits - frequency * counts - presence * (counts > 0)

    return penalise


def unrepeated(size: int, padding: Tensor) -> Scores:
    """no_repeat_ngram_size where a decoder's prompts have `padding` (sequences,) columns in front, which are no text.

    transformers' own counts them: a token that spells as the padding does would never come after itself.
    """
    from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

    ban = NoRepeatNGramLogitsProcessor(size)

    def banned(ids: Tensor, logits: Tensor) -> Tensor:
        import torch

        own = padding.repeat_interleave(len(ids) // len(padding))
        front = torch.arange(ids.shape[1], device=ids.device) < own[:, None]
        spread: Tensor = ban(ids.masked_fill(front, logits.shape[1]), logits)  # a token that is never generated
        return spread

    return banned


def drawn(prompt: int, streams: Array, settings: Mapping[str, Any]) -> Scores:
    """Leaves one token possible, so that a greedy search takes it; `prompt` columns come before the first step."""
    narrowing = warpers(settings)

    def draw(ids: Tensor, logits: Tensor) -> Tensor:
        import torch

        token = picked(logits, uniform(streams, ids.shape[1] - prompt), settings, narrowing)
        return torch.full_like(logits, -torch.inf).scatter_(1, token[:, None], 0.0)

    return draw


def picked(logits: Tensor, noise: Array, settings: Mapping[str, Any], narrowing: list[Scores]) -> Tensor:
    """(texts,) int64: the tokens drawn from `logits` (texts, vocabulary) by `noise` (texts,), after `warpers`.

    With top_k the rest of the vocabulary is left out from the start: top_p alone would sort all of it at every step.
    """
    import torch

    scores, place, top_k = logits, None, 0 if settings.get("top_h") else settings.get("top_k") or 0
    if 0 < top_k < logits.shape[1] - _TIES:
        place = logits.topk(top_k + _TIES, dim=-1, sorted=False).indices.sort(dim=-1).values
        scores = logits.gather(1, place)
    for narrow in narrowing:
        scores = narrow(logits, scores)  # none of them looks at ids
    chances = (scores - scores.amax(dim=-1, keepdim=True)).exp().double().cumsum(dim=-1)
    drawn = torch.from_numpy(noise).to(logits.device)[:, None]
    token = torch.searchsorted(chances, drawn * chances[:, -1:], right=True).clamp_(max=scores.shape[1] - 1)
    token = token if place is None else place.gather(1, token)
    return token[:, 0]

"""Token vectors to one vector a text, and what a sentence-transformers directory says about that.

Such a directory has modules.json (a Transformer, a Pooling, perhaps a Normalize), a config.json for the Pooling,
sentence_bert_config.json (max_seq_length, do_lower_case) and config_sentence_transformers.json (prompts).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hfbatch.tasks.base import Batch

if TYPE_CHECKING:
    from torch import Tensor

# What the flags of older directories are called here, in the order in which their vectors are joined.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}
_NAMES = {"mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean", "lasttoken": "last_token"}
_INSTEAD = "write params.pooling to take the token vectors of its transformer, which gives other embeddings"


@dataclass(frozen=True)
class Recipe:
    """How to make an embedding of a text."""

    modes: tuple[str, ...] = ()  # vectors that are joined; none: one vector a token
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    include_prompt: bool = True  # whether the prompt's tokens are pooled as the text's are
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  # its name


def recipe_in(folder: str, pooling: str | None) -> Recipe:
    """How a model's texts become embeddings: as `pooling` says; where that is None, as the model's folder says.

    ValueError for a folder with modules that this package does not run, such as Dense.
    """
    found = _read(folder, "config_sentence_transformers.json") or {}
    prompts = {name: text or "" for name, text in (found.get("prompts") or {}).items()}
    if pooling is not None:
        return Recipe(modes=() if pooling == "none" else (pooling,), prompts=prompts)
    recipe = Recipe(prompts=prompts, default_prompt=found.get("default_prompt_name"))
    modules = _read(folder, "modules.json")
    if not modules:
        return recipe
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0]["path"]:
        raise ValueError(f"its modules are {', '.join(kinds)}: only Transformer, Pooling, Normalize run; {_INSTEAD}")
    own = _read(folder, f"{modules[1]['path']}/config.json") or {}
    model = _read(folder, "sentence_bert_config.json") or {}
    return replace(
        recipe,
        modes=_modes(own),
        normalize="Normalize" in kinds,
        max_length=model.get("max_seq_length"),
        lower_case=bool(model.get("do_lower_case")),
        include_prompt=own.get("include_prompt", True),
    )


def pool(modes: tuple[str, ...], hidden: Tensor, batch: Batch, prompt: int = 0) -> Tensor:
    """(sequences, modes x dim) float32 of `hidden` (sequences, longest, dim), without the first `prompt` tokens."""
    import torch

    mask = batch.mask.float().unsqueeze(-1)
    mask[:, :prompt] = 0
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device).unsqueeze(-1)
    first = torch.where(batch.lengths > prompt, prompt, 0)
    ways: dict[str, Callable[[], Tensor]] = {
        "cls": lambda: hidden[torch.arange(len(hidden), device=hidden.device), first],
        "max": lambda: hidden.masked_fill(mask == 0, torch.finfo(hidden.dtype).min).amax(dim=1),
        "mean": lambda: (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1),
        "mean_sqrt_len": lambda: (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1).sqrt(),
        "weighted_mean": lambda: (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1),
        "last_token": lambda: batch.last(hidden),
    }
    return torch.cat([ways[mode]().float() for mode in modes], dim=-1)


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """How many tokens of every sequence are the prompt's, special tokens before it counted."""
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    return len(ids) - bool(ids and ids[-1] in tokenizer.all_special_ids)


def _modes(pooling: Mapping[str, Any]) -> tuple[str, ...]:
    written = pooling.get("pooling_mode")
    if written is None:
        written = [mode for flag, mode in _FLAGS.items() if pooling.get(flag)] or ["mean"]
    modes = tuple(_NAMES.get(mode, mode) for mode in ([written] if isinstance(written, str) else written))
    if unknown := set(modes) - set(_FLAGS.values()):
        raise ValueError(f"it pools by {', '.join(sorted(unknown))}, which is not known here; {_INSTEAD}")
    return modes


def _read(folder: str, name: str) -> Any:
    """A JSON file of the folder, None where it is not there."""
    try:
        with open(f"{folder}/{name}", encoding="utf-8") as file:  # noqa: PTH123  # no task imports pathlib
            return json.load(file)
    except FileNotFoundError:
        return None

"""One pass of a language model over prompts, and how it scores given tokens at given places of them.

The tokens that all prompts begin with, the front, go through the model once: every batch starts from their keys and
values. Prompts are padded behind their ends, or not at all, where nothing that counts looks at. The head sees only the
places that are asked about, and has no more rows than there are tokens to score. Branches share a prompt: tokens of a
sequence with the same number in `branch`, from 1 on, see each other and the prompt, whose tokens have 0.

Each of these is tried at start, on a few prompts and beside a plain pass of each. What a model gives other values for,
or cannot be asked, it is not asked.

    input_ids      behind the front                   at      places whose next token is scored, in input_ids
    front.shape    tokens of the front before it      token   which, as a number of `tokens` or of the vocabulary
    branch, place  with branches: of each token       option  to which option a score belongs, ascending
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.base import Flat

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor: TypeAlias = Any

FRONT = "front.shape"  # the name of a shape: only sequences with the same share a batch
HOST = (FRONT, "at", "token", "branch", "place")  # all but `option`, by which scores are to be summed
_SHARED = 16  # tokens: a shorter front is not worth it
_CLOSE, _CLOSE_16 = 1e-3, 0.1  # how far scores may be off, of the largest; with 16 bits
_DYNAMIC = ("dynamic", "longrope")  # rotary positions that depend on the longest row
_WINDOWS = ("window_size", "attention_window", "local_attention", "attention_chunk_size")  # what no cache tells


def shared_front(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all `prompts` begin with, short of a whole one; nothing where that is little."""
    first, most = prompts[0], min(len(each) for each in prompts) - 1
    for other in prompts[1:]:
        most = next((place for place in range(most) if other[place] != first[place]), most)
    return list(first[:most]) if most >= _SHARED else []


class Prefill:
    """The passes of one model."""

    def __init__(self, model: Any, front: Sequence[int], tokens: Sequence[int] | None, tries: Sequences) -> None:
        """`tokens`: the only ones that are ever scored, by their logits; None: any, by their log-probabilities."""
        self.front, self.tokens = np.array(front, dtype=np.int64), tokens
        self.branches, self.reason = False, ""  # what is not shared, and why
        self._layers: list[_Layer] = []
        self._head: Any = None  # where it is asked about some places only
        self._now = threading.local()
        expected = np.concatenate([self._scores(model, tries.take(np.array([i]))) for i in range(len(tries))])
        whole = model.get_output_embeddings()
        if self._fails(model, tries, expected, self._take_head):
            self._head = None
            self._hook.remove()
            model.set_output_embeddings(whole)
        if len(self.front) and (reason := self._fails(model, tries, expected, self._take_front)):
            self._layers, self.reason = [], f"whole prompts: {reason}"
        if "branch" in tries.columns and (reason := self._fails(model, tries, expected, self._take_branches)):
            self.branches, self.reason = False, f"one option at a time: {reason}"

    def __call__(self, model: Any, sequences: Sequences) -> Flat:
        """The score of each `token` at its place."""
        import torch

        lengths = sequences.ragged("at").lengths
        if "branch" not in sequences.columns or self.branches:
            return Flat(self._pass(model, sequences), lengths)
        single, most = _unbranched(sequences), len(sequences)
        parts = [np.arange(start, min(start + most, len(single))) for start in range(0, len(single), most)]
        return Flat(torch.cat([self._pass(model, single.take(part)) for part in parts]), lengths)

    def _fails(self, model: Any, tries: Sequences, expected: Array, take: Any) -> str:
        """What speaks against what `take` does; nothing: it is done."""
        kind = model.config.model_type
        try:
            take(model)
            found = self._scores(model, tries)
        except Exception as error:  # whatever it is that this model does not take
            return f"{kind} refuses it: {str(error)[:100] or type(error).__name__}"
        close = _CLOSE if model.dtype.itemsize >= 4 else _CLOSE_16
        off = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
        return "" if off <= close else f"{kind} gives other values, {off:.1g} off"

    def _scores(self, model: Any, sequences: Sequences) -> Array:
        import torch

        with torch.inference_mode():
            found: Array = self(model, sequences).values.cpu().numpy()
        return found

    def _take_head(self, model: Any) -> None:
        """Only the rows of `tokens`, where they can be had, and only at the places that are asked about."""
        import torch

        self._head = model.get_output_embeddings()
        if type(self._head) is torch.nn.Linear and self.tokens is not None:
            self._head = _rows_of(self._head, self.tokens)
            model.set_output_embeddings(self._head)
        self._hook = self._head.register_forward_pre_hook(self._pick)

    def _pick(self, _: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        places = getattr(self._now, "places", None)
        return None if places is None else (given[0][places][None], *given[1:])

    def _take_front(self, model: Any) -> None:
        import torch
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        config = model.config.get_text_config(decoder=True)
        cache = DynamicCache(config=config)
        others = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
        if others - {DynamicSlidingWindowLayer.__name__} or not cache.layers:
            raise ValueError(f"it keeps {', '.join(sorted(others)) or 'nothing'} in its cache")
        if any(kind in str(getattr(config, "rope_parameters", None)) for kind in _DYNAMIC):
            raise ValueError("its rotary positions depend on the longest row")
        if any(getattr(config, name, None) is not None for name in _WINDOWS):
            raise ValueError("it attends within a window")
        with torch.inference_mode():
            model(input_ids=torch.from_numpy(self.front[None]).to(model.device), past_key_values=cache, use_cache=True)
            if not all(bool(torch.isfinite(layer.keys).all()) for layer in cache.layers):
                raise ValueError("the front's keys are not finite")
        self._layers = [_Layer(layer, len(self.front)) for layer in cache.layers]

    def _take_branches(self, model: Any) -> None:
        from transformers.cache_utils import DynamicCache, DynamicLayer

        config = model.config.get_text_config(decoder=True)
        if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
            raise ValueError("its layers look at different things")
        if any(getattr(config, name, None) is not None for name in _WINDOWS):
            raise ValueError("it attends within a window")
        self.branches = True

    def _pass(self, model: Any, sequences: Sequences) -> Tensor:
        """(scores,) float32, in the order of `at`."""
        import torch

        front = _one(sequences.dense(FRONT))
        before = 0 if self._layers else front  # what is not in the cache is in the way of every sequence
        at, token = sequences.ragged("at"), torch.from_numpy(sequences.ragged("token").values).to(model.device)
        ids = np.pad(_padded(sequences.ragged("input_ids")), ((0, 0), (before, 0)))
        ids[:, :before] = self.front[:before]
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(model.device), "use_cache": False}
        if "branch" in sequences.columns:
            inputs |= self._branched(model, sequences, front)
        if front and self._layers:
            inputs |= {"past_key_values": _cache(self._layers), "use_cache": True}
        row = np.repeat(np.arange(len(sequences)), at.lengths)
        places, each = np.unique(np.stack([row, at.values + before]), axis=1, return_inverse=True)
        logits = self._logits(model, inputs, torch.from_numpy(places).to(model.device))
        scores = logits.log_softmax(-1) if self.tokens is None else logits
        return scores[torch.from_numpy(each.reshape(-1)).to(model.device), token]

    def _logits(self, model: Any, inputs: dict[str, Any], places: Tensor) -> Tensor:
        """(places, tokens or vocabulary) float32; `places` (2, places): row and place."""
        with self._asking(places):
            logits: Tensor = model(**inputs).logits
        logits = (logits[0] if self._head is not None else logits[places[0], places[1]]).float()
        if self.tokens is None or logits.shape[-1] == len(self.tokens):
            return logits
        return logits[:, list(self.tokens)]

    @contextmanager
    def _asking(self, places: Tensor) -> Iterator[None]:
        """In this thread the head is given `places` alone."""
        self._now.places = (places[0], places[1]) if self._head is not None else None
        try:
            yield
        finally:
            self._now.places = None

    def _branched(self, model: Any, sequences: Sequences, front: int) -> dict[str, Any]:
        """Positions, and what each token sees; padding sees what it likes."""
        import torch

        branch, place = (_padded(sequences.ragged(name)) for name in ("branch", "place"))
        size, own = branch.shape[1], np.tri(branch.shape[1], dtype=bool)
        sees = np.ones((len(branch), 1, size, front + size), dtype=bool)
        sees[:, 0, :, front:] = own & ((branch[:, None] == 0) | (branch[:, None] == branch[:, :, None]))
        positions = place + front
        if not self._layers:  # the front is in the way, and sees itself
            whole = np.broadcast_to(np.tri(front, front + size, dtype=bool), (len(branch), 1, front, front + size))
            sees = np.concatenate([whole, sees], axis=2)
            positions = np.concatenate([np.broadcast_to(np.arange(front), (len(branch), front)), positions], axis=1)
        mask = torch.zeros(sees.shape, dtype=model.dtype, device=model.device)
        mask.masked_fill_(~torch.from_numpy(sees).to(model.device), torch.finfo(model.dtype).min)
        return {"attention_mask": mask, "position_ids": torch.from_numpy(positions).to(model.device)}


class _Layer:
    """A layer's keys and values of the front, for all rows: a CacheLayerMixin of transformers that keeps nothing."""

    is_compileable = is_croppable = supports_early_init = False
    is_initialized = True

    def __init__(self, filled: Any, tokens: int) -> None:
        """`filled`: the layer of a cache that the front's `tokens` went into, alone."""
        self.keys, self.values = filled.keys, filled.values  # (1, heads, tokens or a window's, size)
        self.is_sliding, self._tokens = filled.is_sliding, tokens

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The front before what each row, or all of them one after another, made."""
        return _behind(self.keys, keys), _behind(self.values, values)

    def get_seq_length(self) -> int:
        """Tokens before those of a call."""
        return self._tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens attended to, and the first of them."""
        kept = int(self.keys.shape[2])
        return kept + query_length, self._tokens - kept

    def get_max_length(self) -> int:
        """Any."""
        return -1


def _cache(layers: list[_Layer]) -> Any:
    from transformers.cache_utils import Cache, CacheLayerMixin

    CacheLayerMixin.register(_Layer)  # which is what it is, and this module loads without torch
    return Cache(layers=layers)


def _behind(front: Tensor, made: Tensor) -> Tensor:
    import torch

    return torch.cat([front.to(made.dtype).expand(len(made), -1, -1, -1), made], dim=2)


def _rows_of(head: Any, tokens: Sequence[int]) -> Any:
    """A Linear for `tokens` alone."""
    import torch

    small = torch.nn.Linear(head.in_features, len(tokens), head.bias is not None, head.weight.device, head.weight.dtype)
    with torch.no_grad():
        small.weight.copy_(head.weight[list(tokens)])
        if head.bias is not None:
            small.bias.copy_(head.bias[list(tokens)])
    return small.requires_grad_(False).eval()


def _one(values: Array) -> int:
    """The one value of a batch. ValueError where there are several, which only a trial of a layout puts together."""
    if (values != values.flat[0]).any():
        raise ValueError("sequences with and without the front")
    return int(values.flat[0])


def _padded(column: Ragged) -> Array:
    """(sequences, longest) int64, zeros behind the ends."""
    padded = np.zeros((len(column), int(column.lengths.max(initial=0))), dtype=np.int64)
    padded[np.arange(padded.shape[1]) < column.lengths[:, None]] = column.values
    return padded


def _unbranched(sequences: Sequences) -> Sequences:
    """A sequence for each option, without branches; all their scores in the order they had."""
    made: dict[str, list[Array]] = {name: [] for name in ("input_ids", "at", "token", "option")}
    row = list[int]()
    for number in range(len(sequences)):
        own = {name: sequences.ragged(name)[number] for name in (*made, "branch")}
        for option in np.unique(own["option"]):
            kept, scored = np.isin(own["branch"], (0, option + 1)), own["option"] == option
            row.append(number)
            made["input_ids"].append(own["input_ids"][kept])
            made["at"].append((np.cumsum(kept) - 1)[own["at"][scored]])
            for name in ("token", "option"):
                made[name].append(own[name][scored])
    index = np.array(row)
    columns: dict[str, Column] = {name: Ragged.from_arrays(arrays, np.int64) for name, arrays in made.items()}
    return Sequences(sequences.row[index], {**columns, FRONT: sequences.dense(FRONT)[index]})

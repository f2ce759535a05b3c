"""Texts by model.generate, one padded batch at a time: beams, and whatever decoding.py does not know.

A batch runs until its last row has ended. What a row gets is still its own: padding is masked, noise is keyed, and each
row stops at its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from hfbatch.sequences import Array
from hfbatch.tasks.base import Flat, Outputs
from hfbatch.tasks.sampling import Scores, drawn, penalised, streams, unrepeated

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.tasks.generation import Generator
else:
    Tensor: TypeAlias = Any

_BEAMS = ("early_stopping", "length_penalty")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Padded:
    """What is known of a batch beside the model's inputs, left-padded for a decoder."""

    keys: Array | None = None  # (sequences,) uint64, needed to sample
    prompt: int = 1  # columns before what is generated: all of a decoder's input_ids, 1 for an encoder-decoder
    room: Array | None = None  # (sequences,) the most tokens of each, which overrides max_new_tokens and max_length


def search(generator: Generator, model: Any, inputs: Mapping[str, Tensor], batch: Padded) -> Outputs:
    """What Generator.completions reads; `inputs`: what model.generate takes."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    copies, limits = generator.texts if generator.samples else 1, None
    inputs = {name: value.repeat_interleave(copies, dim=0) for name, value in inputs.items()}
    unused = ("do_sample", *_SAMPLING, *(_BEAMS if generator.beams == 1 else ()))
    settings = {name: value for name, value in generator.settings.items() if name not in unused}
    settings["num_return_sequences"] = generator.texts // copies
    processors, mask = _processors(generator, batch), inputs.get("attention_mask")
    if mask is not None and mask.shape[1] == batch.prompt and (size := settings.pop("no_repeat_ngram_size", 0)):
        processors.insert(0, unrepeated(size, batch.prompt - mask.sum(dim=1)))
    if batch.room is not None:
        settings = {name: value for name, value in settings.items() if name not in ("max_length", "min_length")}
        settings["max_new_tokens"] = int(batch.room.max())
        limits = torch.from_numpy(batch.room).to(next(iter(inputs.values())).device)
    config = model.generation_config = GenerationConfig(**settings)  # where models look up what they lack
    made = model.generate(
        **inputs,
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList(_criteria(generator, batch.prompt, limits)),
    )
    return _cut(generator, made[:, batch.prompt :], limits)


def _processors(generator: Generator, batch: Padded) -> list[Scores]:
    """What changes logits beside transformers' own processors, which come first."""
    made: list[Scores] = []
    params = generator.params
    if params.presence_penalty or params.frequency_penalty:
        made.append(penalised(batch.prompt, params.presence_penalty, params.frequency_penalty))
    if generator.samples:
        if batch.keys is None or params.seed is None:
            raise AssertionError("sampling needs the keys of the rows, and a seed")
        noise = streams(batch.keys, params.seed, generator.texts)
        made.append(drawn(batch.prompt, noise, {"top_k": 50, **generator.settings}))  # transformers' default
    return made


def _criteria(generator: Generator, prompt: int, limits: Tensor | None) -> list[Callable[..., Tensor]]:
    """What ends a text beside an end token and the length of the batch."""
    made: list[Callable[..., Tensor]] = []
    if limits is not None and bool((limits != limits[0]).any()):
        own = limits.repeat_interleave(max(generator.texts, generator.beams))
        made.append(lambda ids, scores, **_: ids.shape[1] - prompt >= own)
    if generator.stop:
        made.append(_stops(generator, prompt))
    return made


def _stops(generator: Generator, prompt: int) -> Callable[..., Tensor]:
    """Looks at as many last tokens as a stop string may have bytes; `completions` finds the place."""

    def stops(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        tails = generator.tokenizer.batch_decode(ids[:, max(prompt, ids.shape[1] - generator.reach) :])
        found = [any(stop in tail for stop in generator.stop) for tail in tails]
        return ids.new_tensor(found).bool()

    return stops


def _cut(generator: Generator, made: Tensor, limits: Tensor | None) -> Outputs:
    """The tokens (texts, longest) up to where each ends, on the device."""
    import torch

    longest = made.shape[1]
    ended = torch.isin(made, torch.tensor(generator.ends, device=made.device, dtype=made.dtype))
    first = torch.where(ended.any(dim=1), ended.int().argmax(dim=1), longest)
    lengths = (first + 1).clamp(max=longest)
    if limits is not None:
        lengths = torch.minimum(lengths, limits.repeat_interleave(generator.texts))
    tokens = made[torch.arange(longest, device=made.device) < lengths[:, None]]
    counts = lengths.reshape(-1, generator.texts)
    return {
        "tokens": Flat(tokens.int(), counts.sum(dim=1)),
        "token_counts": counts.int(),
        "ended": (first < lengths).reshape(-1, generator.texts),
    }

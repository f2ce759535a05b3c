"""Text from a model: the parameters, the search, and what came of it. What all tasks that generate share.

`Generator` settles at plan time what is asked for, from the params, the checkpoint's generation_config and the
defaults of transformers' pipeline; on the device the search runs, by continuous batching where model and settings allow
it (decoding.py), else by model.generate (padded.py); afterwards texts are made of tokens. A result depends on the row
alone: batches are padded where the model does not look, and noise is keyed (sampling.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hfbatch.sequences import Array, Ragged, Sequences
from hfbatch.tasks.base import Outputs, Params
from hfbatch.tasks.decoding import way_of
from hfbatch.tasks.padded import Padded, search

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.checkpoint import Checkpoint
    from hfbatch.tasks.choosing import Row
else:
    Tensor: TypeAlias = Any

_LENGTHS = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))
# Of a checkpoint's settings: nobody may end a text by the clock, and what else is returned is ours to say.
_DROPPED = ("transformers_version", "max_time", "stop_strings", "return_dict_in_generate", "output_scores")

StopString = Annotated[str, Field(min_length=1)]


class GenerationParams(Params):
    """How text is generated; null: what the checkpoint's generation_config says, else transformers' default."""

    max_new_tokens: PositiveInt | None = Field(default=None, description="most tokens to generate")
    min_new_tokens: NonNegativeInt | None = Field(default=None, description="fewest tokens to generate")
    do_sample: bool | None = Field(default=None, description="draw tokens by their probability; false: the likeliest")
    temperature: NonNegativeFloat | None = Field(
        default=None, description="of sampling: below 1 sharper, above 1 flatter; 0: the likeliest token, no sampling"
    )
    top_k: NonNegativeInt | None = Field(default=None, description="sample from the likeliest k tokens; 0: from all")
    top_p: float | None = Field(default=None, gt=0, le=1, description="sample from the likeliest that sum to top_p")
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="sample from tokens at least min_p times as likely as the likeliest"
    )
    num_beams: PositiveInt | None = Field(default=None, description="beams of a beam search; 1: none")
    num_return_sequences: PositiveInt | None = Field(default=None, description="texts a row; more than 1: lists")
    repetition_penalty: PositiveFloat | None = Field(
        default=None, description="above 1: tokens seen before, in a decoder's prompt too, become less likely"
    )
    no_repeat_ngram_size: NonNegativeInt | None = Field(default=None, description="no n-gram of this size comes twice")
    length_penalty: float | None = Field(default=None, description="of a beam search: above 0 favours longer texts")
    early_stopping: bool | Literal["never"] | None = Field(
        default=None, description="a beam search ends as soon as it has num_beams whole texts"
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="taken off the logit of each token that was generated before"
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="taken off a token's logit for each time it was generated before"
    )
    stop: StopString | list[StopString] | None = Field(
        default=None, description="strings that end a text; they are not part of it"
    )
    seed: NonNegativeInt | None = Field(
        default=None, description="of sampling; null: drawn when the job is planned, and logged in `parameters`"
    )


class Completion(NamedTuple):
    """One generated text."""

    text: str  # without special tokens, up to the first stop string
    tokens: int  # generated, the one that ended the text counted
    stopped: bool  # by an end token or a stop string; else by its length


class Generator:
    """What is to be generated, and how; see `__call__` and `completions`.

    ValueError where the settings contradict each other.
    """

    def __init__(
        self,
        params: GenerationParams,
        checkpoint: Checkpoint,
        below: Mapping[str, Any] | None = None,
        above: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
    ) -> None:
        """`below`: defaults that the checkpoint's own generation_config overrides; `above`: those that override it.

        `tokenizer`: another than the checkpoint's own.
        """
        self.params, self.tokenizer = params, checkpoint.tokenizer if tokenizer is None else tokenizer
        saved = checkpoint.generation_config
        stop = params.stop or getattr(saved, "stop_strings", None) or []
        self.stop = [stop] if isinstance(stop, str) else list(stop)
        self.settings = self._settle(saved, below or {}, above or {})
        self.texts = int(self.settings.get("num_return_sequences") or 1)
        self.beams = int(self.settings.get("num_beams") or 1)
        self.samples = bool(self.settings.get("do_sample"))
        end = self.settings.get("eos_token_id")
        self.ends: list[int] = [] if end is None else [end] if isinstance(end, int) else list(end)
        if self.settings.get("pad_token_id") is None:
            pad = getattr(self.tokenizer, "pad_token_id", None)
            self.settings["pad_token_id"] = pad if pad is not None else next(iter(self.ends), 0)
        self.way = ""  # how it is done, once `settle` has seen the model
        self._refuse_contradictions()

    def _settle(self, config: Any, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
        """All settings that are not transformers' global defaults; of two that say the same the nearer one counts."""
        asked = _set({name: value for name, value in self.params if hasattr(config, name)})
        if asked.get("temperature") == 0:
            asked = {"do_sample": False, **asked}
        made: dict[str, Any] = {}
        for layer in (below, _set(config.to_diff_dict()), above, asked):
            for pair in _LENGTHS:
                if any(name in layer for name in pair):
                    made = {name: value for name, value in made.items() if name not in pair}
            made |= layer
        return made

    def room(self, prompts: Array, limit: int | None) -> Array:
        """(sequences,) int64: the most tokens a decoder may generate behind prompts of so many tokens.

        `limit`: the most that the model takes, prompt and all.
        """
        wanted, limit = self._wanted(limit)
        room = np.full(len(prompts), wanted, dtype=np.int64)
        return room if limit is None else np.maximum(np.minimum(room, limit - prompts), 1)

    def prompt_limit(self, limit: int | None) -> int | None:
        """The most tokens of a decoder's prompt; None: any number.

        What the job asks for has room behind it; what is only a default has at least half of `limit`.
        """
        wanted, limit = self._wanted(limit)
        if limit is None:
            return None
        if self.params.max_new_tokens is None:
            wanted = min(wanted, limit // 2)
        if wanted >= limit:
            raise ValueError(
                f"params.max_new_tokens: {wanted} leaves no room for a prompt, the limit is {limit} tokens"
            )
        return limit - wanted

    def _wanted(self, limit: int | None) -> tuple[int, int | None]:
        """New tokens, and the most with the prompt's; a decoder's max_length is such a limit."""
        total = self.settings.get("max_length")
        wanted = int(self.settings.get("max_new_tokens") or total or 20)
        return wanted, min((each for each in (limit, total) if each is not None), default=None)

    def _refuse_contradictions(self) -> None:
        if self.samples and self.beams > 1:
            raise ValueError("params.do_sample and num_beams above 1 do not go together: set do_sample: false")
        if not self.samples and self.texts > self.beams:
            more = f"num_return_sequences {self.texts} needs do_sample: true, or num_beams of at least as many"
            raise ValueError(f"params.num_return_sequences: {more}")
        if self.beams > 1 and self.stop:
            raise ValueError("params.stop: a beam search knows no stop strings: set num_beams: 1")
        if self.settings.get("no_repeat_ngram_size") == 1:
            raise ValueError("params.no_repeat_ngram_size: 1 would ban every token of the prompt: set 2 or more")
        if self.samples and self.settings.get("temperature") == 0:
            raise ValueError("params.temperature: 0 means the likeliest token: leave out do_sample: true")

    def __call__(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        keys: Array | None = None,
        prompt: int = 1,
        room: Array | None = None,
    ) -> Outputs:
        """What `completions` reads, for a padded batch of sequences; see padded.search."""
        return search(self, model, inputs, Padded(keys, prompt, room))

    def settle(self, model: Any) -> bool:
        """Whether rows can join and leave while `model` generates; `way` says how it is done, and why."""
        reason = way_of(self, model)
        self.way = "continuous batching" if reason is None else f"model.generate, a padded batch at a time: {reason}"
        return reason is None

    def over(self, rows: Sequence[Row]) -> list[bool]:
        """Which `rows` their last token ends; those that an end token does are marked."""
        for row in rows:
            row.ended = int(row.ids[row.length - 1]) in self.ends
        if not self.stop:
            return [row.ended for row in rows]
        tails = [row.ids[max(row.prompt, row.length - self.reach) : row.length].tolist() for row in rows]
        texts = self.tokenizer.batch_decode(tails)
        stopped = [any(stop in text for stop in self.stop) for text in texts]
        return [row.ended or now for row, now in zip(rows, stopped, strict=True)]

    @property
    def reach(self) -> int:
        """Last tokens among which a stop string is, if the last of them ended it."""
        return max(len(stop.encode()) for stop in self.stop) + 4

    def completions(self, outputs: Sequences, clean_up: bool | None = None) -> list[list[Completion]]:
        """For each sequence its texts; `clean_up`: see clean_up_tokenization_spaces, None is the tokenizer's own."""
        counts, ended = outputs.dense("token_counts"), outputs.dense("ended")
        tokens = Ragged.from_lengths(outputs.ragged("tokens").values, counts.reshape(-1))
        made = [self._completion(tokens[i], bool(ended.flat[i]), clean_up) for i in range(len(tokens))]
        return [made[start : start + self.texts] for start in range(0, len(made), self.texts)]

    def _completion(self, tokens: Array, ended: bool, clean_up: bool | None) -> Completion:
        stopped = self._first_stop(tokens) if self.stop else None
        if stopped is not None:
            tokens = tokens[:stopped]
        text = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=clean_up)
        if stopped is not None:
            text = text[: min(place if (place := text.find(stop)) >= 0 else len(text) for stop in self.stop)]
        return Completion(text, len(tokens), ended or stopped is not None)

    def _first_stop(self, tokens: Array) -> int | None:
        """The fewest tokens whose text holds a stop string: the search may have gone on after it."""

        def stops(count: int) -> bool:
            text = self.tokenizer.decode(tokens[:count].tolist())
            return any(stop in text for stop in self.stop)

        if not stops(len(tokens)):
            return None
        return bisect_left(range(len(tokens)), True, key=stops)


def _set(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None and name not in _DROPPED}

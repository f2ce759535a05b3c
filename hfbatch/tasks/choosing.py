"""The next token of rows of different lengths, as transformers' processors choose it for each row alone.

A row's ids are its own: nothing is padded in front of them, so "the last n tokens", "behind the prompt" and "the
first token" mean the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hfbatch.sequences import Array
from hfbatch.tasks.sampling import picked, streams, uniform, warpers

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.tasks.generation import Generator
else:
    Tensor: TypeAlias = Any

Change: TypeAlias = "Callable[[Tensor, Written], Tensor]"  # (rows, vocabulary) -> the same shape


@dataclass(eq=False)
class Row:
    """A text in the making: `ids` (prompt + room,) int64, of which the first `prompt` + `made` are there."""

    sequence: int
    ids: Array
    prompt: int
    stream: int = 0  # of its noise
    cost: int = 0  # tokens that it takes at its longest, an encoder's counted
    made: int = 0
    ended: bool = False  # by an end token

    @property
    def length(self) -> int:
        """Tokens that are there."""
        return self.prompt + self.made

    @property
    def full(self) -> bool:
        """Whether there is no room for another."""
        return self.length == len(self.ids)

    def add(self, token: int) -> None:
        """Write one more token."""
        self.ids[self.length] = token
        self.made += 1


class Written:
    """What rows have so far, as tensors on a device; made when asked for."""

    def __init__(self, rows: Sequence[Row], device: Any) -> None:
        self.rows, self.device = rows, device

    def column(self, values: Sequence[Any]) -> Tensor:
        """(rows, 1)."""
        import torch

        return torch.tensor(values, device=self.device)[:, None]

    def ids(self, begin: int | None = None) -> tuple[Tensor, Tensor]:
        """(rows, longest) int64, filled up with a row's last token, and a mask of what is no filling.

        `begin`: leave out so much of a prompt; None: all of it.
        """
        import torch

        own = [row.ids[: row.length] if begin is None else row.ids[row.prompt : row.length] for row in self.rows]
        longest = max(len(ids) for ids in own)
        made, real = np.zeros((len(own), longest), dtype=np.int64), np.zeros((len(own), longest), dtype=bool)
        for number, ids in enumerate(own):
            made[number, : len(ids)], real[number, : len(ids)] = ids, True
            if len(ids):
                made[number, len(ids) :] = ids[-1]
        return torch.from_numpy(made).to(self.device), torch.from_numpy(real).to(self.device)


def repeated(penalty: float) -> Change:
    """The repetition_penalty of transformers: tokens that were seen become less likely."""

    def change(logits: Tensor, written: Written) -> Tensor:
        import torch

        ids, _ = written.ids()
        seen = logits.gather(1, ids)
        return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))

    return change


def counted(presence: float, frequency: float) -> Change:
    """OpenAI's penalties, see sampling.penalised."""

    def change(logits: Tensor, written: Written) -> Tensor:
        import torch

        ids, real = written.ids(begin=0)
        counts = torch.zeros_like(logits).scatter_add_(1, ids, real.to(logits.dtype))
        return logits - frequency * counts - presence * (counts > 0)

    return change


def banned(tokens: Sequence[int], when: Callable[[Row], bool]) -> Change:
    """`tokens` cannot come in rows of which `when` is true."""

    def change(logits: Tensor, written: Written) -> Tensor:
        now = [when(row) for row in written.rows]
        if not any(now):
            return logits
        masked = logits.clone()
        masked[:, list(tokens)] = logits[:, list(tokens)].masked_fill(written.column(now), -float("inf"))
        return masked

    return change


def forced(tokens: Sequence[int], when: Callable[[Row], bool]) -> Change:
    """Only `tokens` can come in rows of which `when` is true."""

    def change(logits: Tensor, written: Written) -> Tensor:
        import torch

        now = [when(row) for row in written.rows]
        if not any(now):
            return logits
        only = torch.full_like(logits, -float("inf"))
        only[:, list(tokens)] = 0.0
        return torch.where(written.column(now), only, logits)

    return change


def each_row(processor: Callable[[Tensor, Tensor], Tensor]) -> Change:
    """A processor of transformers that looks at ids, row by row."""

    def change(logits: Tensor, written: Written) -> Tensor:
        import torch

        own = [torch.from_numpy(row.ids[None, : row.length]).to(logits.device) for row in written.rows]
        return torch.cat([processor(ids, logits[number : number + 1]) for number, ids in enumerate(own)])

    return change


class Choice:
    """What a Generator's settings make of logits, for rows with lengths of their own."""

    # Settings that are done here, or have nothing to do with which token comes next.
    KNOWN = frozenset(
        "repetition_penalty no_repeat_ngram_size bad_words_ids min_length min_new_tokens forced_bos_token_id "
        "forced_eos_token_id suppress_tokens begin_suppress_tokens max_length max_new_tokens num_beams do_sample "
        "num_return_sequences bos_token_id eos_token_id pad_token_id decoder_start_token_id use_cache temperature "
        "top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff early_stopping length_penalty "
        "output_attentions output_hidden_states _from_model_config".split()
    )

    def __init__(self, generator: Generator, decoder: bool) -> None:
        """`decoder`: whether a row's ids begin with a prompt, of which min_length takes no notice."""
        self.changes = _changes(generator.settings, generator.ends, decoder)
        params = generator.params
        if params.presence_penalty or params.frequency_penalty:
            self.changes.append(counted(params.presence_penalty, params.frequency_penalty))
        self.samples, self.sampling = generator.samples, {"top_k": 50, **generator.settings}
        self.narrowing = warpers(self.sampling) if self.samples else []

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """(rows,) int64: the token that each gets; `logits` (rows, vocabulary) float32."""
        written = Written(rows, logits.device)
        for change in self.changes:
            logits = change(logits, written)
        if not self.samples:
            return logits.argmax(dim=-1)
        noise = uniform(
            np.array([row.stream for row in rows], dtype=np.uint64),
            np.array([row.made for row in rows], dtype=np.uint64),
        )
        return picked(logits, noise, self.sampling, self.narrowing)


def _changes(settings: Mapping[str, Any], ends: Sequence[int], decoder: bool) -> list[Change]:
    """In the order of transformers."""
    from transformers.generation import logits_process as known

    made: list[Change] = []
    if (penalty := settings.get("repetition_penalty") or 1.0) != 1.0:
        made.append(repeated(penalty))
    if size := settings.get("no_repeat_ngram_size"):
        made.append(each_row(known.NoRepeatNGramLogitsProcessor(size)))
    if words := settings.get("bad_words_ids"):
        made.append(each_row(known.NoBadWordsLogitsProcessor(words, list(ends) or None)))
    least, shortest = settings.get("min_new_tokens") or 0, 0 if decoder else settings.get("min_length") or 0
    if ends and (least or shortest):
        made.append(banned(ends, lambda row: row.made < least or row.length < shortest))
    if (first := settings.get("forced_bos_token_id")) is not None:
        made.append(forced([first], lambda row: row.length == 1))
    if (last := settings.get("forced_eos_token_id")) is not None:
        made.append(forced([last] if isinstance(last, int) else last, lambda row: row.length == len(row.ids) - 1))
    if tokens := settings.get("suppress_tokens"):
        made.append(banned(tokens, lambda row: True))
    if tokens := settings.get("begin_suppress_tokens"):
        begin = 1 if first is not None else 0
        made.append(banned(tokens, lambda row: row.made == (begin if row.prompt == 1 else 0)))
    return made


def seeded(keys: Array, generator: Generator) -> Array:
    """(sequences, texts) uint64: the stream of each text's noise; zeros where nothing is drawn."""
    if not generator.samples:
        return np.zeros((len(keys), generator.texts), dtype=np.uint64)
    if generator.params.seed is None:
        raise AssertionError("sampling needs a seed")
    return streams(keys, generator.params.seed, generator.texts).reshape(-1, generator.texts)

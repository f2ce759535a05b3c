"""A long text as windows, each within the model's limit and `stride` tokens shared with the next; and back by mean.

The tokenizer cuts them, so every window has its special tokens and, for a pair, the text that is not cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.text import MOST_CHARACTERS, TextParams, has_types

_AT_ONCE = 256  # texts; the tokenizer holds some 200 bytes for each of their tokens


class WindowParams(TextParams):
    """What tasks can be told that fold windows back into one result a text."""

    stride: NonNegativeInt | None = Field(
        default=None,
        description="read a text over the limit in windows that share this many tokens; null: cut it at the limit",
    )


def check_stride(tokenizer: Any, limit: int | None, stride: int) -> None:
    """ValueError unless windows of `limit` tokens can overlap by `stride`."""
    if not tokenizer.is_fast:
        raise ValueError("params.stride needs a fast tokenizer (tokenizer.json), and this model has none; leave it out")
    if limit is None:
        raise ValueError("params.stride: this model has no limit of its own; set params.max_length, the window's size")
    room = limit - tokenizer.num_special_tokens_to_add()
    if stride >= room:
        raise ValueError(f"params.stride is {stride}, and a window holds {room} tokens of text; write less than that")


def windows(
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None = None,
    *,
    limit: int | None,
    stride: int = 0,
    cut: str = "longest_first",
) -> Iterator[tuple[int, Any]]:
    """(text, tokenizers.Encoding) for every window of every text, in order. The tokenizer must be a fast one.

    `cut` names what is cut of a pair: only_first or only_second. Where that has less room than `stride`, the
    tokenizer panics with something that is no Exception: see to it before.
    """
    for start in range(0, len(texts), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        encoded = tokenizer(
            texts[part],
            None if pairs is None else pairs[part],
            truncation=cut if limit is not None else False,
            max_length=limit,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        for text, encoding in zip(encoded["overflow_to_sample_mapping"], encoded.encodings, strict=True):
            yield start + text, encoding


def tokenise_windows(tokenizer: Any, limit: int, stride: int, texts: list[str]) -> Sequences:
    """One sequence a window: `input_ids`, `token_type_ids` where they are not all 0; `truncated`, which is false."""
    errors, inputs, row = refused(texts), Inputs(tokenizer), list[int]()
    for number, encoding in windows(tokenizer, without(texts, errors), limit=limit, stride=stride):
        if not encoding.ids:
            errors.setdefault(number, RowError("empty_input", "the text has no tokens"))
        if number not in errors:
            row.append(number)
            inputs.add(encoding)
    columns = {**inputs.columns(), "truncated": np.zeros(len(row), dtype=bool)}
    return Sequences(np.array(row, dtype=np.int64), columns, errors)


class Inputs:
    """The model inputs of windows, gathered one by one: 8 bytes a token, where an Encoding has 200."""

    def __init__(self, tokenizer: Any, *, pairs: bool = False) -> None:
        self.ids: list[Array] = []
        self.types: list[Array] | None = [] if has_types(tokenizer, pairs) else None

    def add(self, encoding: Any) -> None:
        """Those of the next window."""
        self.ids.append(np.array(encoding.ids, dtype=np.int32))
        if self.types is not None:
            self.types.append(np.array(encoding.type_ids, dtype=np.int32))

    def columns(self) -> dict[str, Column]:
        """`input_ids`, and `token_type_ids` where they are not all 0."""
        made: dict[str, Column] = {"input_ids": Ragged.from_arrays(self.ids, dtype=np.int32)}
        if self.types is not None:
            made["token_type_ids"] = Ragged.from_arrays(self.types, dtype=np.int32)
        return made


def refused(texts: list[str]) -> dict[int, RowError]:
    """Errors for the texts that are too long to be tokenised at all."""
    why = "{:,} characters, of which at most " + f"{MOST_CHARACTERS:,} are read in windows"
    return {i: RowError("too_long", why.format(len(t))) for i, t in enumerate(texts) if len(t) > MOST_CHARACTERS}


def without(texts: list[str], errors: dict[int, RowError]) -> list[str]:
    """`texts` with nothing in place of those that have an error."""
    return ["" if number in errors else text for number, text in enumerate(texts)]


def rows_of(arrays: list[Array], width: int) -> Ragged:
    """One (tokens, width) int32 array a window as a ragged column."""
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    return Ragged.from_lengths(np.concatenate([np.zeros((0, width), dtype=np.int32), *arrays]), lengths)


def mean_by_row(values: Array, row: Array, rows: int) -> Array:
    """(rows, ...): the mean over each row's windows. `row` (windows,) never decreases and names every row."""
    if len(row) == rows:
        return values
    first = np.searchsorted(row, np.arange(rows))
    counts = np.bincount(row, minlength=rows).reshape(-1, *(1 for _ in values.shape[1:]))
    return np.asarray(np.add.reduceat(values, first, axis=0) / counts, dtype=values.dtype)

"""Text to token ids: what all text tasks share. One place decides how long a sequence may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.base import Params
from hfbatch.tokens import encoded

# Their position ids start at padding_idx + 1, so that many of max_position_embeddings are never used.
_POSITIONS_AFTER_PADDING = frozenset(
    "camembert data2vec-text esm ibert layoutlmv3 lilt longformer luke mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)


_Long: TypeAlias = tuple[str, list[int], list[int]]  # a text with all of its token ids and types

_LONG = 64  # characters a token: texts over twice that many are first cut to it
MOST_CHARACTERS = 10_000_000  # tokenised at once, at some 200 bytes of memory each


class TextParams(Params):
    """What every text task can be told about long texts."""

    truncation: bool = Field(
        default=True, description="cut a text at the limit and say so in `truncated`; false: such a row is an error"
    )
    max_length: PositiveInt | None = Field(
        default=None, description="limit in tokens, special tokens counted; null: the model's own"
    )


def model_max_length(tokenizer: Any, config: Any) -> int | None:
    """The longest sequence the model takes, in tokens with special tokens; None: no limit is known.

    The smaller of the tokenizer's limit (1e30 stands for none there) and the positions the model has learned.
    """
    limits = []
    if tokenizer is not None and 0 < tokenizer.model_max_length < 10**9:
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        if config.model_type in _POSITIONS_AFTER_PADDING:
            positions -= (config.pad_token_id if config.pad_token_id is not None else 1) + 1
        limits.append(positions)
    return min(limits, default=None)


def limit_for(tokenizer: Any, config: Any, params: TextParams) -> int | None:
    """The longest sequence of a job: the model's limit, or `max_length` where that is lower."""
    limits = [limit for limit in (model_max_length(tokenizer, config), params.max_length) if limit is not None]
    return min(limits, default=None)


def tokenise(tokenizer: Any, config: Any, params: TextParams, texts: list[str]) -> Sequences:
    """One sequence a text: `input_ids`, `token_type_ids` where they are not all 0, and `truncated`.

    A tokenizer's stored truncation and padding play no part. Texts over the limit are cut as the tokenizer cuts
    them, keeping special tokens, or refused with `too_long` when params.truncation is off.
    """
    limit = limit_for(tokenizer, config, params)
    whole = texts
    if limit is not None:
        texts = [beginning(tokenizer, text, limit) for text in whole]
    short = [text if len(text) <= MOST_CHARACTERS else "" for text in texts]
    ids, types = encoded(tokenizer, short, partial(_encode, tokenizer))
    lengths = np.fromiter((len(item) for item in ids), dtype=np.int64, count=len(ids))
    over = np.flatnonzero(lengths > limit) if limit is not None else np.zeros(0, dtype=np.int64)
    errors: dict[int, RowError] = {}
    if len(over) and params.truncation:
        assert limit is not None
        for row, cut in zip(over, _cut(tokenizer, [(texts[i], ids[i], types[i]) for i in over], limit), strict=True):
            ids[row], types[row] = cut
    elif len(over):
        more = {i: "over " if len(texts[i]) < len(whole[i]) else "" for i in over}
        errors = {int(i): RowError("too_long", f"{more[i]}{lengths[i]} tokens, the limit is {limit}") for i in over}
    for number, text in enumerate(texts):
        if len(text) > MOST_CHARACTERS:
            errors[number] = RowError("too_long", f"{len(text):,} characters with no word end to cut at")
    for row in np.flatnonzero(lengths == 0):
        errors.setdefault(int(row), RowError("empty_input", "the text has no tokens"))
    keep = np.array([i for i in range(len(texts)) if i not in errors], dtype=np.int64)
    columns: dict[str, Column] = {"input_ids": Ragged.from_lists([ids[i] for i in keep])}
    if has_types(tokenizer, pairs=False):
        columns["token_type_ids"] = Ragged.from_lists([types[i] for i in keep])
    columns["truncated"] = np.isin(keep, over)
    return Sequences(keep, columns, errors)


def beginning(tokenizer: Any, text: str, limit: int) -> str:
    """A part of a long `text` that begins with the same `limit` tokens and has more of them; else all of it.

    Where words end depends on the characters around the end, so words that are followed by a gap and another word do
    not change with what comes after, and no token crosses words. The gap is there for pre-tokenizers that look further
    ahead, such as those that group digits from the right. A tokenizer that knows no words gets the whole text.
    """
    size = _LONG * limit
    if len(text) <= 2 * size or not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return text
    encoding = tokenizer(text[:size], add_special_tokens=False, verbose=False)
    words = encoding.word_ids()
    if len(words) <= limit or words[limit] is None or words[limit] == words[-1]:
        return text
    after = text[encoding.token_to_chars(limit).end : size]
    return text[:size] if any(not sign.isalnum() for sign in after[: len(after) // 2]) else text


def _cut(tokenizer: Any, long: list[_Long], limit: int) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and types of `long` texts, as the tokenizer cuts them to `limit`.

    It leaves out what stands before the special tokens at the end. Where the first text shows that it does, it need not
    see the others a second time.
    """

    def shortened(values: list[int]) -> list[int]:
        return values[: limit - after] + values[max(0, len(values) - after) :]

    texts = [text for text, _, _ in long]
    if tokenizer.is_fast and tokenizer.truncation_side == "right":
        special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        after = next((number for number, each in enumerate(reversed(special)) if not each), limit)
        made = [(shortened(ids), shortened(types)) for _, ids, types in long]
        if made[:1] == list(zip(*_encode(tokenizer, texts[:1], limit), strict=True)):
            return iter(made)
    return zip(*_encode(tokenizer, texts, limit), strict=True)


def _encode(tokenizer: Any, texts: list[str], max_length: int | None = None) -> tuple[list[list[int]], list[list[int]]]:
    if not texts:
        return [], []
    encoding = tokenizer(
        texts,
        truncation=max_length is not None,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )
    ids: list[list[int]] = encoding["input_ids"]
    return ids, encoding.get("token_type_ids") or [[]] * len(ids)


def has_types(tokenizer: Any, pairs: bool) -> bool:
    """Whether token_type_ids are other than 0, which is what a model takes when it is given none."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return False
    return pairs or any(tokenizer("a")["token_type_ids"])


def by_row(values: Array, row: Array, rows: int) -> Array:
    """(rows,) bool: whether any sequence of a row says so."""
    flags = np.zeros(rows, dtype=bool)
    flags[row[values]] = True
    return flags


def structs(fields: dict[str, Any], lengths: Sequence[int] | Array, schema: pa.StructType) -> pa.ListArray:
    """Flat columns as list<struct>: row i holds the next `lengths[i]` structs."""
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int32)
    arrays = [pa.array(fields[entry.name], entry.type) for entry in schema]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(arrays, fields=list(schema)))

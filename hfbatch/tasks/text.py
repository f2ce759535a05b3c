"""Text to token ids: what all text tasks share. One place decides how long a sequence may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.base import Params

# Their position ids start at padding_idx + 1, so that many of max_position_embeddings are never used.
_POSITIONS_AFTER_PADDING = frozenset(
    "camembert data2vec-text esm ibert layoutlmv3 lilt longformer luke mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)


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


def tokenise(
    tokenizer: Any, config: Any, params: TextParams, texts: list[str], pairs: list[str] | None = None
) -> Sequences:
    """One sequence a text: `input_ids`, `token_type_ids` where they are not all 0, and `truncated`.

    A tokenizer's stored truncation and padding play no part. Texts over the limit are cut as the tokenizer cuts
    them, keeping special tokens, or refused with `too_long` when params.truncation is off.
    """
    limit = model_max_length(tokenizer, config)
    if params.max_length is not None:
        limit = params.max_length if limit is None else min(limit, params.max_length)
    ids, types = _encode(tokenizer, texts, pairs)
    lengths = np.fromiter((len(item) for item in ids), dtype=np.int64, count=len(ids))
    over = np.flatnonzero(lengths > limit) if limit is not None else np.zeros(0, dtype=np.int64)
    errors: dict[int, RowError] = {}
    if len(over) and params.truncation:
        cut_pairs = [pairs[i] for i in over] if pairs is not None else None
        cut_ids, cut_types = _encode(tokenizer, [texts[i] for i in over], cut_pairs, max_length=limit)
        for position, row in enumerate(over):
            ids[row] = cut_ids[position]
            types[row] = cut_types[position]
    elif len(over):
        errors = {int(i): RowError("too_long", f"{lengths[i]} tokens, the limit is {limit}") for i in over}
    for row in np.flatnonzero(lengths == 0):
        errors[int(row)] = RowError("empty_input", "the text has no tokens")
    keep = np.array([i for i in range(len(texts)) if i not in errors], dtype=np.int64)
    columns: dict[str, Column] = {"input_ids": Ragged.from_lists([ids[i] for i in keep])}
    if _has_types(tokenizer, pairs is not None):
        columns["token_type_ids"] = Ragged.from_lists([types[i] for i in keep])
    columns["truncated"] = np.isin(keep, over)
    return Sequences(keep, columns, errors)


def _encode(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    if not texts:
        return [], []
    encoding = tokenizer(
        texts,
        pairs,
        truncation=max_length is not None,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )
    ids: list[list[int]] = encoding["input_ids"]
    return ids, encoding.get("token_type_ids") or [[]] * len(ids)


def _has_types(tokenizer: Any, pairs: bool) -> bool:
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

"""Two texts in one sequence, and several such pairs a row: for tasks that judge one text by another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.text import MOST_CHARACTERS, TextParams, beginning, has_types, limit_for


@dataclass(frozen=True, eq=False)
class Pairs:
    """Texts that share a sequence, and the rows they are of, which never decrease."""

    first: list[str]
    second: list[str]
    row: Array  # (pairs,) int64
    lone: bool = False  # whether a first text stands alone where the second is empty

    def take(self, index: Array) -> Pairs:
        """The pairs of `index`."""
        return Pairs([self.first[i] for i in index], [self.second[i] for i in index], self.row[index], self.lone)


def entries_of(lists: list[list[Any]], name: str) -> tuple[list[str], Array, dict[int, RowError]]:
    """All texts in the rows' lists and the row of each. A list that is empty or holds a null is its row's error."""
    errors = dict[int, RowError]()
    for number, own in enumerate(lists):
        if not own:
            errors[number] = RowError("empty_input", f"{name} is an empty list")
        elif None in own:
            errors[number] = RowError("null_input", f"{name}[{own.index(None)}] is null")
    row = np.repeat(np.arange(len(lists)), [0 if i in errors else len(own) for i, own in enumerate(lists)])
    return [text for i, own in enumerate(lists) if i not in errors for text in own], row, errors


def pair_limit(tokenizer: Any, config: Any, params: TextParams) -> int | None:
    """The most tokens a pair may have, special tokens counted; None: no limit is known.

    ValueError where a token of each text would not fit.
    """
    limit = limit_for(tokenizer, config, params)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if limit is not None and limit < least:
        raise ValueError(f"params.max_length: {limit} tokens are too few for two texts; write {least} or more")
    return limit


def tokenise_pairs(
    tokenizer: Any, pairs: Pairs, limit: int | None, cut: Literal["only_first", "longest_first"] | None
) -> Sequences:
    """One sequence a pair: `input_ids`, `token_type_ids` where the tokenizer makes them, and `truncated`.

    `cut` says which text gives way where a pair has more than `limit` tokens. A pair is refused with `too_long` where
    `cut` is None, or where only the first may be cut and none of it would be left. A row with a pair that is refused
    has no sequences.
    """
    pairs, changed = _without_ends(tokenizer, pairs, limit)
    refused = _endless(pairs)
    ids, types = _encode(tokenizer, pairs)
    lengths = np.fromiter((len(each) for each in ids), dtype=np.int64, count=len(ids))
    over = np.flatnonzero(lengths > limit) if limit is not None else np.zeros(0, dtype=np.int64)
    if cut is None:
        said = {int(i): f"{'over ' if changed[i] else ''}{lengths[i]} tokens, the limit is {limit}" for i in over}
        refused |= {i: RowError("too_long", text) for i, text in said.items() if i not in refused}
    elif cut == "only_first":
        refused |= _without_room(tokenizer, pairs, over, limit)
    cutting = np.setdiff1d(over, list(refused))
    cut_ids, cut_types = _encode(tokenizer, pairs.take(cutting), truncation=cut, max_length=limit)
    for position, i in enumerate(cutting):
        ids[i], types[i] = cut_ids[position], cut_types[position]
    errors = {int(pairs.row[i]): refused[i] for i in sorted(refused, reverse=True)}  # a row's first stays
    keep = np.flatnonzero(~np.isin(pairs.row, list(errors)))
    columns: dict[str, Column] = {"input_ids": Ragged.from_lists([ids[i] for i in keep])}
    if has_types(tokenizer, True):
        columns["token_type_ids"] = Ragged.from_lists([types[i] for i in keep])
    return Sequences(pairs.row[keep], {**columns, "truncated": np.isin(keep, over)}, errors)


def _without_ends(tokenizer: Any, pairs: Pairs, limit: int | None) -> tuple[Pairs, list[bool]]:
    """The same pairs without the ends of long texts that are cut away in any case; and which pairs that changes.

    Those are texts beside one that has fewer tokens than the limit. Where both have more, how much of each stays
    depends on how many they are, so they are left as they are.
    """
    known: dict[str, str] = {}

    def begin(text: str, other: str) -> str:
        if limit is None or len(text) <= limit or len(other.encode()) > limit:
            return text
        if text not in known:
            known[text] = beginning(tokenizer, text, limit)
        return known[text]

    both = list(zip(pairs.first, pairs.second, strict=True))
    cut = [(begin(one, other), begin(other, one)) for one, other in both]
    changed = [now != before for now, before in zip(cut, both, strict=True)]
    return Pairs([one for one, _ in cut], [other for _, other in cut], pairs.row, pairs.lone), changed


def _endless(pairs: Pairs) -> dict[int, RowError]:
    """Pairs with a text that would take too much memory, which is then emptied."""
    refused = {}
    for texts in (pairs.first, pairs.second):
        for i, text in enumerate(texts):
            if len(text) > MOST_CHARACTERS:
                refused[i] = RowError("too_long", f"{len(text):,} characters with no word end to cut at")
                texts[i] = ""
    return refused


def _without_room(tokenizer: Any, pairs: Pairs, over: Array, limit: int | None) -> dict[int, RowError]:
    """Of the pairs `over` the limit, those whose second text leaves no token to the first."""
    seconds = list(dict.fromkeys(pairs.second[i] for i in over))
    if limit is None or not seconds:
        return {}
    alone = tokenizer(seconds, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    lengths = {text: len(ids) for text, ids in zip(seconds, alone, strict=True)}
    special = tokenizer.num_special_tokens_to_add(pair=True)
    return {
        int(i): RowError("too_long", f"{taken} tokens beside the text leave it no room, the limit is {limit}")
        for i in over
        if (taken := lengths[pairs.second[i]] + special) >= limit
    }


def _encode(tokenizer: Any, pairs: Pairs, **cut: Any) -> tuple[list[list[int]], list[list[int]]]:
    ids, types = ([list[int]() for _ in pairs.first] for _ in range(2))
    alone = np.array([pairs.lone and not text for text in pairs.second], dtype=bool)
    for index in (np.flatnonzero(alone), np.flatnonzero(~alone)):
        if not len(index):
            continue
        part = pairs.take(index)
        second = None if alone[index[0]] else part.second
        encoding = tokenizer(part.first, second, **cut, padding=False, return_attention_mask=False, verbose=False)
        for name, made in (("input_ids", ids), ("token_type_ids", types)):
            for i, own in zip(index, encoding.get(name) or (), strict=False):
                made[i] = own
    return ids, types

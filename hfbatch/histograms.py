"""Counts small enough for a receipt: token lengths, labels, scores, one message an error; and how they add up.

Made once a shard, where its rows are at hand: no picture of a run reads its output again. All are bounded, whatever
the rows hold: at most 16 lengths, 50 labels, 20 bins of scores, 20 messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.sequences import Array

LENGTHS, LABELS, SCORES, MESSAGES, POINTS = 16, 50, 20, 20, 200
_LABEL_CHARS, _MESSAGE_CHARS = 80, 200
_SLACK = 1e-3  # a float32 softmax may pass 1
# What tasks write. A row has one label, or a list, best first; or finds several things, each with its label.
_ONE, _BEST, _FOUND = ("label", "score"), ("labels", "scores"), ("objects", "entities")
_KINDS = ("label", "entity", "entity_group")


def length_bins(lengths: Array) -> list[int]:
    """How many of `lengths` (sequences,) are up to 1, 2, 4, 8 ... tokens; the 16th count has all that are longer.

    It ends with the longest that there is.
    """
    bins = np.searchsorted(2 ** np.arange(LENGTHS - 1), lengths, side="left")
    return [int(rows) for rows in np.bincount(bins)] if len(lengths) else []


def of_rows(table: pa.Table, prefix: str = "", keep: Collection[str] = ()) -> dict[str, Any]:
    """What a shard's rows show: `labels` (label -> rows, the 50 most frequent) and `scores` (20 bins of [0, 1]).

    Of a row that has its labels as a list only the best counts; of one that has found several things, all of them.
    Each is there only if the task writes such a column. `scores` is empty where one lies outside [0, 1].
    """
    columns = {name: table[prefix + name] for name in (*_ONE, *_BEST, *_FOUND) if _is_made(name, table, prefix, keep)}
    labels, scores = list[pa.ChunkedArray](), list[pa.ChunkedArray]()
    for name, column in columns.items():
        several = pa.types.is_list(column.type)
        if several:
            best = name == "labels" or (name == "scores" and "labels" in columns)
            column = pc.list_flatten(pc.list_slice(column, 0, 1) if best else column)
        if pa.types.is_struct(column.type):
            fields = {field.name for field in column.type}
            labels += [pc.struct_field(column, kind) for kind in _KINDS if kind in fields]
            scores += [pc.struct_field(column, "score")] if "score" in fields else []
        elif pa.types.is_floating(column.type):
            scores.append(column)
        elif pa.types.is_string(column.type) and name in ("label", "labels"):
            labels.append(column)
    made: dict[str, Any] = {"labels": label_counts(labels[0])} if labels else {}
    return made | ({"scores": score_bins(scores[0])} if scores else {})


def _is_made(name: str, table: pa.Table, prefix: str, keep: Collection[str]) -> bool:
    """Whether the task made such a column: a kept one of that name is the dataset's."""
    return prefix + name in table.column_names and prefix + name not in keep


def label_counts(labels: pa.ChunkedArray) -> dict[str, int]:
    """Label -> rows, the most frequent first; nulls count nowhere, long labels are cut."""
    counted = Counter[str]()
    for entry in labels.drop_null().value_counts().to_pylist():
        counted[_cut(entry["values"], _LABEL_CHARS)] += entry["counts"]
    return dict(counted.most_common(LABELS))


def score_bins(scores: pa.ChunkedArray) -> list[int]:
    """(20,) how many scores lie in each twentieth of [0, 1]; nulls and NaN count nowhere.

    Empty where one lies outside: logits are no probabilities.
    """
    values = scores.drop_null().to_numpy().astype(np.float64)
    values = values[np.isfinite(values)]
    if len(values) and (values.min() < -_SLACK or values.max() > 1 + _SLACK):
        return []
    return [int(rows) for rows in np.histogram(np.clip(values, 0, 1), SCORES, (0, 1))[0]]


def of_errors(errors: Iterable[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Texts `code: message` -> rows by code, and the first message of each."""
    counted, first = Counter[str](), dict[str, str]()
    for error in errors:
        code, _, message = error.partition(":")
        counted[code] += 1
        if code not in first and len(first) < MESSAGES:
            first[code] = _cut(message.strip(), _MESSAGE_CHARS)
    return dict(counted), first


def of_notes(notes: pa.ChunkedArray) -> dict[str, int]:
    """Texts `rule: what it did` -> rows, most frequent first. `notes` (rows,): list<struct<name, action, detail>>."""
    flat = pc.list_flatten(notes)
    name, action = pc.struct_field(flat, "name"), pc.struct_field(flat, "action")
    return label_counts(pc.binary_join_element_wise(name, action, ": "))


def summed(parts: Iterable[Sequence[int]]) -> list[int]:
    """Counts of the same bins, added up."""
    return [sum(bins) for bins in zip_longest(*parts, fillvalue=0)]


def merged_scores(parts: Iterable[Sequence[int]]) -> list[int]:
    """`score_bins` of several shards; empty where one of them is."""
    parts = list(parts)
    return summed(parts) if all(parts) else []


def merged_labels(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """`label_counts` of several shards."""
    counted = Counter[str]()
    for part in parts:
        counted.update(part)
    return dict(counted.most_common(LABELS))


def finished(spans: Sequence[tuple[float, float, int]]) -> list[tuple[float, int]]:
    """(seconds since the first batch, rows finished by then), at most 200 points, from 0 rows to all.

    `spans`: of each shard the first batch and the last, in seconds of any clock, and its rows; between the two they
    are taken to finish evenly.
    """
    if not spans:
        return []
    first, last, rows = (np.array(column, dtype=np.float64) for column in zip(*spans, strict=True))
    last = np.maximum(last, first + 1e-6)
    times = np.unique(np.concatenate([first, last]))
    if len(times) > POINTS:
        times = np.linspace(times[0], times[-1], POINTS)
    total = np.zeros(len(times))
    for start, end, own in zip(first, last, rows, strict=True):
        total += own * np.clip((times - start) / (end - start), 0, 1)
    return [(round(float(t - times[0]), 3), round(float(n))) for t, n in zip(times, total, strict=True)]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

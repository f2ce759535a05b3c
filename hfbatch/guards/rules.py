"""What each rule finds in columns of texts, labels and scores, as functions of Arrow arrays: row -> what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.guards.language import foreign
from hfbatch.guards.passages import Passages
from hfbatch.guards.patterns import denied
from hfbatch.guards.pii import Span, found, hidden, merged
from hfbatch.guards.repetition import repetitive
from hfbatch.guards.spec import DenyPatterns, LanguageRail, MaxChars, MaxRepetition, Pii
from hfbatch.kinds import item_of
from hfbatch.sequences import Array


def too_long(texts: pa.Array, limit: int) -> dict[int, str]:
    """Rows of `texts` (rows,) with more than `limit` characters."""
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_numpy()
    rows = np.flatnonzero(lengths > limit)
    return {int(row): f"{lengths[row]:,} characters, the limit is {limit:,}" for row in rows}


OF_TEXTS: Mapping[type, Callable[[pa.Array, Any], dict[int, str]]] = {
    MaxChars: lambda texts, spec: too_long(texts, spec.limit),
    LanguageRail: lambda texts, spec: foreign(texts, spec.allow, spec.min_confidence),
    DenyPatterns: lambda texts, spec: denied(texts, spec.patterns),
    MaxRepetition: lambda texts, spec: repetitive(texts, spec.limit, spec.n),
}


def classified(labels: pa.ChunkedArray, refused: Collection[str], threshold: float) -> dict[int, str]:
    """Rows in which one of `refused` has a score of `threshold` or more. `labels`: list<struct<label, score>>."""
    told = {}
    for row, own in enumerate(labels.to_pylist()):
        high = [(each["score"], each["label"]) for each in own or () if each["label"] in refused]
        if high and max(high)[0] >= threshold:
            score, label = max(high)
            told[row] = f"{label} {score:.2f}, the threshold is {threshold:g}"
    return told


def persons(passages: Passages, spec: Pii, entities: pa.ChunkedArray | None) -> dict[int, list[Span]]:
    """Number in `passages.texts` -> what is data about a person there, by its form or a model's `entities` (rows,)."""
    spans = found(passages.texts, spec.kinds)
    for row, own in enumerate([] if entities is None else entities.to_pylist()):
        for entity in own or ():
            counts = spec.labels is None or entity["entity_group"] in spec.labels
            if counts and entity["score"] >= spec.threshold:
                for text, start, stop in passages.parts(row, entity["start"], entity["end"]):
                    spans.setdefault(text, []).append(Span(start, stop, entity["entity_group"]))
    return {text: merged(own) for text, own in spans.items()}


def redacted(passages: Passages, spans: Mapping[int, Sequence[Span]]) -> pa.Array:
    """The column (rows,) without what `persons` found."""
    return passages.replaced({text: hidden(passages.texts[text].as_py(), own) for text, own in spans.items()})


def told(passages: Passages, spans: Mapping[int, Sequence[Span]]) -> dict[int, str]:
    """Row -> how much of what kind `persons` found."""
    row, counts = passages.row, dict[int, Counter[str]]()
    for text, own in spans.items():
        counts.setdefault(int(row[text]), Counter()).update(span.kind for span in own)
    return {row: ", ".join(f"{n:,} {kind}" for kind, n in count.items()) for row, count in counts.items()}


def holds_scores(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read by `best_scores`."""
    return bool(pa.types.is_floating(item_of(kind) or kind))


def best_scores(column: pa.ChunkedArray) -> Array:
    """(rows,) float64 of a column of scores, or of lists of them, of which the best counts; NaN where there is none."""
    if item_of(column.type) is None:
        return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy())
    return np.array(
        [max((score for score in own or () if score is not None), default=np.nan) for own in column.to_pylist()]
    )

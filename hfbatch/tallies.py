"""One column of two outputs, counted as rows come by: labels, scores, vectors, anything else. Nothing of a row is kept
but what a person wants to look at: the rows that differ most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.comparison import Change, Column, Labels, Scores, Values, Vectors
from hfbatch.sequences import Array

MOST_LABELS, MOST_PAIRS = 1000, 10_000  # that are told apart; the rest is OTHER
OTHER = "(other)"
DIFFERENCES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.5, float("inf"))  # of two scores, without sign
COSINES = (-1.0, 0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 1.0)


@dataclass(frozen=True)
class Rows:
    """Rows of both outputs in which neither failed."""

    a: pa.Table
    b: pa.Table
    about: Callable[[int], tuple[str, str | None]]  # row -> its place and its text


class Tally(ABC):
    """Counts one column; `read` makes an array of a table."""

    def __init__(self, column: str, read: Callable[[pa.Table], pa.Array]) -> None:
        self.column, self.read = column, read
        self.rows = self.null_a = self.null_b = 0

    def add(self, rows: Rows) -> None:
        """Some more rows."""
        a, b = self.read(rows.a), self.read(rows.b)
        there_a, there_b = (np.asarray(each.is_valid()) for each in (a, b))
        both = np.flatnonzero(there_a & there_b)
        self.rows += len(both)
        self.null_a += int((there_b & ~there_a).sum())
        self.null_b += int((there_a & ~there_b).sum())
        if len(both):
            self.count(a.take(pa.array(both)), b.take(pa.array(both)), both, rows)

    @abstractmethod
    def count(self, a: pa.Array, b: pa.Array, index: Array, rows: Rows) -> None:
        """`a` and `b` without nulls; `index`: which of `rows` they are of."""

    @abstractmethod
    def result(self) -> Column:
        """What was counted."""

    def counted(self) -> dict[str, str | int]:
        """What every Column has."""
        return {"column": self.column, "rows": self.rows, "null_a": self.null_a, "null_b": self.null_b}


class LabelTally(Tally):
    """See Labels."""

    def __init__(self, column: str, read: Callable[[pa.Table], pa.Array]) -> None:
        super().__init__(column, read)
        self.pairs, self.a, self.b = Counter[tuple[str, str]](), Counter[str](), Counter[str]()
        self.equal = 0

    def count(self, a: pa.Array, b: pa.Array, index: Array, rows: Rows) -> None:
        """By distinct pairs."""
        grouped = pa.table({"a": a, "b": b}).group_by(["a", "b"]).aggregate([([], "count_all")])
        for pair in grouped.to_pylist():
            one, other, many = pair["a"], pair["b"], pair["count_all"]
            self.equal += many if one == other else 0
            one, other = _known(self.a, one), _known(self.b, other)
            self.a[one] += many
            self.b[other] += many
            full = len(self.pairs) >= MOST_PAIRS and (one, other) not in self.pairs
            self.pairs[(OTHER, OTHER) if full else (one, other)] += many

    def result(self) -> Labels:
        """With the labels of b in the order of those of a."""
        confusion = [(a, b, many) for (a, b), many in self.pairs.most_common()]
        counts = {"a": dict(self.a.most_common()), "b": dict(self.b.most_common())}
        return Labels(**self.counted(), equal=self.equal, **counts, confusion=confusion)


class ScoreTally(Tally):
    """See Scores; keeps the `top` rows that differ most, with their labels if there are."""

    def __init__(
        self,
        column: str,
        read: Callable[[pa.Table], pa.Array],
        top: int,
        label: Callable[[pa.Table], pa.Array] | None = None,
    ) -> None:
        super().__init__(column, read)
        self.top, self.label = _Top(top), label
        self.change = self.difference = self.largest = 0.0
        self.bins: Array = np.zeros(len(DIFFERENCES) - 1, dtype=np.int64)

    def count(self, a: pa.Array, b: pa.Array, index: Array, rows: Rows) -> None:
        """A NaN, which hfbatch itself never writes, is no change."""
        one, other = (np.asarray(each.to_numpy(zero_copy_only=False), dtype=np.float64) for each in (a, b))
        change = np.nan_to_num(other - one, nan=0.0)
        size = np.abs(change)
        self.change += float(change.sum())
        self.difference += float(size.sum())
        self.largest = max(self.largest, float(size.max()))
        self.bins += np.histogram(size, DIFFERENCES)[0]
        labels = [self.label(table) for table in (rows.a, rows.b)] if self.label is not None else None

        def made(at: int) -> Change:
            place, text = rows.about(int(index[at]))
            told = [each[int(index[at])].as_py() for each in labels] if labels else [None, None]
            both = {"a": float(one[at]), "b": float(other[at]), "label_a": told[0], "label_b": told[1]}
            return Change(column=self.column, place=place, text=text, difference=float(change[at]), **both)

        self.top.add(size, made)

    def result(self) -> Scores:
        """Means over the rows with a score in both."""
        rows = max(1, self.rows)
        means = {"mean_change": self.change / rows, "mean_difference": self.difference / rows}
        differences = _named(DIFFERENCES, self.bins)
        return Scores(**self.counted(), **means, largest_difference=self.largest, differences=differences)


class VectorTally(Tally):
    """See Vectors; keeps the `top` rows that are least alike."""

    def __init__(self, column: str, read: Callable[[pa.Table], pa.Array], top: int) -> None:
        super().__init__(column, read)
        self.top, self.sum, self.lowest = _Top(top), 0.0, 1.0
        self.bins: Array = np.zeros(len(COSINES) - 1, dtype=np.int64)

    def count(self, a: pa.Array, b: pa.Array, index: Array, rows: Rows) -> None:
        """A vector of length 0 is like another such, and like nothing else."""
        one, other = (_matrix(each) for each in (a, b))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines = np.einsum("ij,ij->i", one, other) / np.where(lengths > 0, lengths, 1)
        cosines = np.where((lengths == 0) & (one == other).all(axis=1), 1.0, np.clip(np.nan_to_num(cosines), -1, 1))
        self.sum += float(cosines.sum())
        self.lowest = min(self.lowest, float(cosines.min()))
        self.bins += np.histogram(cosines, COSINES)[0]

        def made(at: int) -> Change:
            place, text = rows.about(int(index[at]))
            return Change(column=self.column, place=place, text=text, difference=float(1 - cosines[at]))

        self.top.add(1 - cosines, made)

    def result(self) -> Vectors:
        """The most alike first."""
        cosines = dict(reversed(_named(COSINES, self.bins).items()))
        mean = self.sum / self.rows if self.rows else 1.0
        return Vectors(**self.counted(), mean_cosine=mean, lowest_cosine=self.lowest, cosines=cosines)


class ValueTally(Tally):
    """See Values."""

    equal = 0

    def count(self, a: pa.Array, b: pa.Array, index: Array, rows: Rows) -> None:
        """As Arrow compares, else as Python does."""
        if pa.types.is_nested(a.type):
            self.equal += sum(one == other for one, other in zip(a.to_pylist(), b.to_pylist(), strict=True))
        else:
            self.equal += int(pc.sum(pc.equal(a, b)).as_py() or 0)

    def result(self) -> Values:
        """What was equal."""
        return Values(**self.counted(), equal=self.equal)


class _Top:
    """The rows with the largest differences, largest first; equal ones as they came."""

    def __init__(self, most: int) -> None:
        self.most, self.rows = most, list[tuple[float, Change]]()

    def add(self, size: Array, made: Callable[[int], Change]) -> None:
        """`made` tells of a row that may be among them."""
        least = self.rows[-1][0] if len(self.rows) == self.most and self.rows else 0.0
        order = np.argsort(-size, kind="stable")[: self.most]
        fresh = [(float(size[at]), made(int(at))) for at in order if size[at] > least]
        self.rows = sorted([*self.rows, *fresh], key=lambda row: -row[0])[: self.most]


def tallies_for(name: str, kind: pa.DataType, names: Sequence[str], top: int) -> list[Tally]:
    """What counts the column `name`; `names`: all columns that are there. A list of labels counts by its best."""
    types = pa.types

    def whole(table: pa.Table) -> pa.Array:
        return _array(table[name])

    def best(field: str) -> Callable[[pa.Table], pa.Array]:
        item = kind.value_type.field(field).type

        def read(table: pa.Table) -> pa.Array:
            return pa.array([each[0][field] if each else None for each in table[name].to_pylist()], item)

        return read

    if (types.is_string(kind) or types.is_large_string(kind)) and name.endswith("label"):
        return [LabelTally(name, whole)]
    if types.is_floating(kind):
        label = name.removesuffix("score") + "label"
        beside = (lambda table: _array(table[label])) if label != name and label in names else None
        return [ScoreTally(name, whole, top, beside)]
    if types.is_fixed_size_list(kind) and types.is_floating(kind.value_type):
        return [VectorTally(name, whole, top)]
    fields = {field.name for field in kind.value_type} if _is_list_of_structs(kind) else set[str]()
    if name.endswith("labels") and {"label", "score"} <= fields:
        return [LabelTally(name, best("label")), ScoreTally(name, best("score"), top, best("label"))]
    return [ValueTally(name, whole)]


def _is_list_of_structs(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def _known(counts: Counter[str], label: str) -> str:
    return label if label in counts or len(counts) < MOST_LABELS else OTHER


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _matrix(vectors: pa.Array) -> Array:
    return np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(vectors), -1)


def _named(edges: Sequence[float], bins: Array) -> dict[str, int]:
    """Rows by words such as `0.1 to 0.2`."""
    words = [f"{low:g} to {high:g}" if high < float("inf") else f"over {low:g}" for low, high in pairwise(edges)]
    return dict(zip(words, (int(rows) for rows in bins), strict=True))

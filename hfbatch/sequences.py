"""Sequences: what a task makes of its rows for the model, and what the model makes of them.

Ragged and flat, never padded: numpy arrays for the code, nested Arrow lists for the way between stages.
One row may own several sequences (windows of a long text, candidate labels); the batcher sees only sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from hfbatch.errors import RowError

Array: TypeAlias = np.ndarray[Any, Any]
SHAPE = ".shape"
_LONG_ITEM = 256  # values; items longer than this are copied whole, shorter ones value by value


@dataclass(frozen=True, eq=False)
class Ragged:
    """A list of arrays of different length, stored flat: item i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Array  # (total, ...)
    offsets: Array  # (items + 1,) int64

    @classmethod
    def from_lengths(cls, values: Array, lengths: Array) -> Ragged:
        """`values` (total, ...) cut into pieces of `lengths` (items,)."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    @classmethod
    def from_arrays(cls, arrays: Sequence[Array], dtype: Any = np.float32) -> Ragged:
        """Arrays of any shapes, flat; put their shapes beside them (see Sequences)."""
        lengths = np.fromiter((array.size for array in arrays), dtype=np.int64, count=len(arrays))
        flat = [np.asarray(array, dtype=dtype).reshape(-1) for array in arrays]
        return cls.from_lengths(np.concatenate(flat) if flat else np.zeros(0, dtype=dtype), lengths)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], dtype: Any = np.int32) -> Ragged:
        """Token ids as a tokenizer gives them."""
        lengths = np.fromiter((len(item) for item in lists), dtype=np.int64, count=len(lists))
        flat = np.fromiter(chain.from_iterable(lists), dtype=dtype, count=int(lengths.sum()))
        return cls.from_lengths(flat, lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, item: int) -> Array:
        return self.values[self.offsets[item] : self.offsets[item + 1]]

    @property
    def lengths(self) -> Array:
        """(items,) int64."""
        return np.diff(self.offsets)

    def take(self, index: Array) -> Ragged:
        """The items of `index`, in that order."""
        lengths = self.lengths[index]
        if lengths.sum() > _LONG_ITEM * len(index):
            return Ragged.from_lengths(np.concatenate([self[item] for item in index]), lengths)
        picked = Ragged.from_lengths(self.values[:0], lengths)
        shift = np.repeat(self.offsets[index] - picked.offsets[:-1], lengths)
        return Ragged(self.values[shift + np.arange(len(shift))], picked.offsets)


Column: TypeAlias = Array | Ragged


@dataclass(frozen=True, eq=False)
class Sequences:
    """Columns of equal length, one entry a sequence, and the row each sequence belongs to.

    `row` never decreases. A row without a sequence has an entry in `errors`. Names with a meaning: `length` is what a
    sequence costs in tokens, where that is not the length of its first ragged model input; a ragged `x` beside a
    dense `x.shape` (sequences, axes) holds arrays of that shape, and only sequences of equal shapes share a batch.
    """

    row: Array  # (sequences,) int64, index into the rows of the table they were made from
    columns: Mapping[str, Column]
    errors: Mapping[int, RowError] = field(default_factory=dict)  # row -> why it has no sequence

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def shapes(self) -> Array | None:
        """(sequences,) int64, equal where all shapes are; None where nothing has a shape."""
        named = [self.dense(name) for name in self.columns if name.endswith(SHAPE)]
        if not named:
            return None
        found: Array = np.unique(np.concatenate(named, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        return found

    def take(self, index: Array) -> Sequences:
        """The sequences of `index`, in that order; errors are left behind."""
        return Sequences(self.row[index], {name: take(column, index) for name, column in self.columns.items()})

    def ragged(self, name: str) -> Ragged:
        """The column `name`, which must be ragged."""
        column = self.columns[name]
        if not isinstance(column, Ragged):
            raise TypeError(f"column {name!r} is not ragged")
        return column

    def dense(self, name: str) -> Array:
        """The column `name`, which must have one fixed shape for all sequences."""
        column = self.columns[name]
        if isinstance(column, Ragged):
            raise TypeError(f"column {name!r} is ragged")
        return column

    def to_arrow(self, rows: int) -> dict[str, pa.Array]:
        """One nested array a column, `rows` long: row -> its sequences -> their values. Errors do not travel."""
        counts = np.bincount(self.row, minlength=rows) if len(self.row) else np.zeros(rows, dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
        return {
            name: pa.LargeListArray.from_arrays(offsets, _to_arrow(column)) for name, column in self.columns.items()
        }

    @classmethod
    def from_arrow(cls, columns: Mapping[str, pa.Array]) -> Sequences:
        """The inverse of `to_arrow`. AssertionError where columns disagree on the sequences of a row."""
        row, decoded = None, dict[str, Column]()
        for name, array in columns.items():
            lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
            own = np.repeat(np.arange(len(array)), lengths)
            if row is not None and not np.array_equal(row, own):
                raise AssertionError(f"column {name!r} has other sequences than {', '.join(decoded)}")
            row, decoded[name] = own, _from_arrow(array.flatten())
        return cls(np.zeros(0, dtype=np.int64) if row is None else row, decoded)


def take(column: Column, index: Array) -> Column:
    """`column[index]` for both kinds of column."""
    return column.take(index) if isinstance(column, Ragged) else column[index]


def scatter(parts: Iterable[tuple[Array, Column]], items: int) -> Column:
    """Put the pieces of one column back where they came from: `parts` pairs positions with values.

    Every position 0..items-1 must be covered exactly once.
    """
    pairs = list(parts)
    order = np.concatenate([index for index, _ in pairs]) if pairs else np.zeros(0, dtype=np.int64)
    if len(order) != items or not np.array_equal(np.sort(order), np.arange(items)):
        raise AssertionError(f"{len(order)} results for {items} sequences: a batch was lost or doubled")
    back = np.empty(items, dtype=np.int64)
    back[order] = np.arange(items)
    return take(concat([column for _, column in pairs]), back)


def concat(columns: list[Column]) -> Column:
    """The entries of all `columns`, which are of one kind, one after another."""
    if isinstance(columns[0], Ragged):
        ragged = [column for column in columns if isinstance(column, Ragged)]
        return Ragged.from_lengths(
            np.concatenate([column.values for column in ragged]), np.concatenate([column.lengths for column in ragged])
        )
    return np.concatenate([column for column in columns if not isinstance(column, Ragged)])


def _to_arrow(column: Column) -> pa.Array:
    if isinstance(column, Ragged):
        return pa.LargeListArray.from_arrays(pa.array(column.offsets, pa.int64()), _fixed(column.values))
    return _fixed(column)


def _fixed(values: Array) -> pa.Array:
    """(n, a, b) as FixedSizeList<FixedSizeList<value, b>, a> of length n."""
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _from_arrow(array: pa.Array) -> Column:
    if pa.types.is_large_list(array.type):
        lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        return Ragged.from_lengths(_unfixed(array.flatten()), lengths)
    return _unfixed(array)


def _unfixed(array: pa.Array) -> Array:
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)

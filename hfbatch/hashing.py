"""Rows in, a 128-bit hash of each row's values out: equal where, and only where, the model would see the same input.

BLAKE2b (RFC 7693) over the names and types of the columns and then, for each row, its values, each with its length
before it: what is hashed can be read back in one way only, so no two rows share a hash but by a chance of 2^-64 among
2^32 rows, whoever wrote them. Text is text, whichever of Arrow's types holds it, and a list is a list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch import kinds
from hfbatch.sequences import Array

HASH = pa.binary(16)

# Some bytes of each row: (buffer, (rows + 1,) int64 offsets into it). Those of all layers together are its value.
Layer: TypeAlias = tuple[memoryview, Array]


def hash_rows(rows: pa.Table) -> pa.Array:
    """(rows,) HASH. Takes about 1.5 us for a row of one short text, and 1 ns for each byte more."""
    columns = [(name, rows[name].combine_chunks()) for name in sorted(rows.column_names)]
    told = "".join(f"{len(name)}:{name}={_tag(column.type)};" for name, column in columns)
    begun = hashlib.blake2b(told.encode(), digest_size=16)
    layers = [(buffer, ends.tolist()) for buffer, ends in _all(column for _, column in columns)]
    digests = list[bytes]()
    for row in range(len(rows)):
        hashed = begun.copy()
        for buffer, ends in layers:
            hashed.update(buffer[ends[row] : ends[row + 1]])
        digests.append(hashed.digest())
    return pa.array(digests, HASH)


def as_numbers(hashes: pa.Array) -> Array:
    """(rows, 2) uint64: the same hashes as numbers. `hashes` has no nulls."""
    raw = hashes.buffers()[1]
    whole = np.frombuffer(b"" if raw is None else raw, dtype=np.uint64).reshape(-1, 2)
    return whole[hashes.offset : hashes.offset + len(hashes)]


class Index:
    """Where hashes stand, for many millions of them: sorted runs of (first half, second half, place), 24 bytes a hash.

    A run is merged with the one before it as soon as that is not twice as long, so there are few, and adding n hashes
    one by one costs n log n.
    """

    def __init__(self) -> None:
        self._runs = list[Array]()  # each (3, hashes) uint64, sorted by its first row

    def __len__(self) -> int:
        return sum(run.shape[1] for run in self._runs)

    def add(self, numbers: Array, places: Array) -> None:
        """`numbers` (hashes, 2) uint64, see as_numbers; `places` (hashes,) not negative. Known hashes keep theirs."""
        if not len(numbers):
            return
        self._runs.append(_sorted(np.vstack([numbers.T, places.astype(np.uint64)])))
        while len(self._runs) > 1 and self._runs[-2].shape[1] < 2 * self._runs[-1].shape[1]:
            last = self._runs.pop()
            self._runs[-1] = _sorted(np.hstack([self._runs[-1], last]))

    def find(self, numbers: Array) -> Array:
        """(hashes,) int64: the place of each; -1 for one that was never added."""
        places: Array = np.full(len(numbers), -1, dtype=np.int64)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run[0], numbers[:, 0]), run.shape[1] - 1)
            found = (run[:2, at] == numbers.T).all(axis=0) & (places < 0)
            places[found] = run[2, at[found]]
        return places


def _sorted(run: Array) -> Array:
    """By first half, each of which stays once: of two hashes that share it, one in 2^64, the later is forgotten."""
    run = run[:, np.argsort(run[0], kind="stable")]
    return run[:, np.concatenate([[True], run[0, 1:] != run[0, :-1]])]


def _tag(kind: pa.DataType) -> str:
    """The type, as far as it says what bytes mean."""
    item = kinds.item_of(kind)
    if item is not None:
        return f"[{_tag(item)}]"
    if pa.types.is_struct(kind):
        return "{" + "".join(f"{len(part.name)}:{part.name}={_tag(part.type)};" for part in kind) + "}"
    if pa.types.is_dictionary(kind):
        return _tag(kind.value_type)
    return "text" if kinds.is_text(kind) else "bytes" if kinds.is_bytes(kind) else str(kind)


def _all(arrays: Iterable[pa.Array]) -> list[Layer]:
    return [layer for array in arrays for layer in _layers(array)]


def _layers(array: pa.Array) -> list[Layer]:
    """The values of `array`, so that they could be read back by who knows its tag."""
    kind = array.type
    if pa.types.is_null(kind):
        return []
    if pa.types.is_dictionary(kind):
        return _layers(array.dictionary_decode())
    if kinds.item_of(kind) is not None:
        return _of_lists(array)
    if pa.types.is_struct(kind):
        return [_fixed(np.asarray(array.is_valid()).astype(np.uint8)), *_all(array.flatten())]
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _of_numbers(array)
    if not (kinds.is_text(kind) or kinds.is_bytes(kind)):  # dates, decimals, maps: none of them a model's input as yet
        array = pa.array([None if each is None else repr(each) for each in array.to_pylist()], pa.string())
    return _of_bytes(array.cast(pa.large_binary()))


def _of_bytes(array: pa.Array) -> list[Layer]:
    """Lengths, -1 for null, and what is in them. Of a null Arrow may keep bytes that mean nothing."""
    lengths = pc.binary_length(array).fill_null(-1).to_numpy()
    _, ends, data = array.fill_null(b"").buffers() if array.null_count else array.buffers()
    first = 0 if array.null_count else array.offset
    offsets = np.frombuffer(ends, dtype=np.int64)[first : first + len(array) + 1]
    return [_fixed(lengths), (memoryview(b"" if data is None else data), offsets)]


def _of_lists(array: pa.Array) -> list[Layer]:
    """Lengths, -1 for null, and the layers of all items, cut by list."""
    lengths = pc.list_value_length(array).cast(pa.int64()).fill_null(-1).to_numpy()
    ends = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0))])
    return [_fixed(lengths), *((buffer, inner[ends]) for buffer, inner in _layers(array.flatten()))]


def _of_numbers(array: pa.Array) -> list[Layer]:
    """Whether they are there, and their bytes."""
    there = np.asarray(array.is_valid())
    filled = array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array
    values = filled.fill_null(0) if array.null_count else filled
    return [_fixed(there.astype(np.uint8)), _fixed(values.to_numpy(zero_copy_only=False))]


def _fixed(values: Array) -> Layer:
    """One number a row."""
    return memoryview(values.tobytes()), np.arange(len(values) + 1) * values.itemsize

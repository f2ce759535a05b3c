"""The texts in a column: one a row, or several where a row holds a list of texts or the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.kinds import is_bytes, is_text, item_of
from hfbatch.sequences import Array


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read as Passages."""
    if pa.types.is_struct(item := item_of(kind) or kind):
        return item_of(kind) is not None and "content" in item.names and _is_one(item.field("content").type)
    return _is_one(item)


class Passages:
    """The texts of a column, apart from the lists and messages that they stand in."""

    def __init__(self, column: pa.Array | pa.ChunkedArray) -> None:
        """`column` (rows,): of a type that `holds_text`."""
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        item = item_of(column.type)
        self._lists = None if item is None else column.cast(pa.large_list(item))
        self._values = column if item is None else pc.list_flatten(self._lists)
        self._rows = len(column)
        is_chat = pa.types.is_struct(self._values.type)
        self._contents = pc.struct_field(self._values, "content") if is_chat else self._values
        self.texts: pa.Array = utf8(self._contents)[0]  # (texts,) large_string; empty where it is no UTF-8

    @property
    def row(self) -> Array:
        """(texts,) int64: the row that each is of."""
        return np.arange(self._rows) if self._lists is None else pc.list_parent_indices(self._lists).to_numpy()

    def joined(self) -> pa.Array:
        """(rows,) large_string: all that a row holds, one text a line; null where the row is."""
        if self._lists is None:
            return self.texts
        return pc.binary_join(self._list_of(self.texts.fill_null("")), pa.scalar("\n", pa.large_string()))

    def parts(self, row: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Characters [start, stop) of a row of `joined`, as (number in `texts`, start, stop)."""
        first, last = np.searchsorted(self.row, [row, row + 1])
        for text in range(first, last):
            length = len(self.texts[text].as_py() or "")
            if max(start, 0) < min(stop, length):
                yield text, max(start, 0), min(stop, length)
            start, stop = start - length - 1, stop - length - 1

    def replaced(self, changed: Mapping[int, str]) -> pa.Array:
        """The column (rows,) with other texts at some places of `texts`; what is no UTF-8 stays what it is."""
        own = with_values(self._contents.cast(pa.large_binary()), changed).view(pa.large_string())
        if self._lists is None:
            return own
        if pa.types.is_struct(self._values.type):
            fields = [own if field.name == "content" else None for field in self._values.type]
            parts = zip(fields, self._values.flatten(), strict=True)
            arrays = [old if new is None else new for new, old in parts]
            own = pa.StructArray.from_arrays(arrays, self._values.type.names, mask=self._values.is_null())
        return self._list_of(own)

    def _list_of(self, values: pa.Array) -> pa.LargeListArray:
        """`values` (texts,) in the lists that they came from."""
        assert self._lists is not None
        lengths = pc.list_value_length(self._lists).fill_null(0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return pa.LargeListArray.from_arrays(offsets, values, mask=self._lists.is_null())


def with_values(column: pa.Array, changed: Mapping[int, str]) -> pa.Array:
    """`column` (rows,) of texts or bytes with others at some rows."""
    if not changed:
        return column
    rows = sorted(changed)
    mask = np.zeros(len(column), dtype=bool)
    mask[rows] = True
    return pc.replace_with_mask(column, mask, pa.array([changed[row] for row in rows], column.type))


def utf8(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """`column` of texts or bytes as large_string, and the rows whose bytes are not UTF-8 (they become empty)."""
    try:
        text = column.cast(pa.large_string())
        text.validate(full=True)
        return text, []
    except pa.ArrowInvalid:
        values, broken = column.cast(pa.large_binary()).to_pylist(), []
    for row, value in enumerate(values):
        try:
            values[row] = None if value is None else value.decode()
        except UnicodeDecodeError:
            values[row] = ""
            broken.append(row)
    return pa.array(values, pa.large_string()), broken


def _is_one(kind: pa.DataType) -> bool:
    return is_text(kind) or is_bytes(kind) or pa.types.is_null(kind)

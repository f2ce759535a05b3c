"""Where reading a block stopped: the next range of the same block goes on there, in the same process.

A row group of a million rows is cut into many shards, and Parquet can only be decoded from a group's first row. One
open reader is kept, with at most one batch: memory does not grow, and reading all shards of a group in order costs one
pass over it instead of one for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import pyarrow as pa

_left: list[Place] = []  # at most one


class Place:
    """The blocks that `key` names, read up to `row`; `source` gives what comes after `rest`."""

    def __init__(self, key: object, row: int, source: Generator[pa.RecordBatch]) -> None:
        self.key, self.row, self.source = key, row, source
        self.rest: pa.RecordBatch | None = None

    def rows(self, start: int, stop: int, most: int) -> Iterator[pa.RecordBatch]:
        """Rows [start, stop), of which none is before `row`, in batches of at most `most`; fewer if there are fewer."""
        while self.row < stop and (batch := self.rest or next(self.source, None)) is not None:
            skip = min(max(0, start - self.row), batch.num_rows)
            piece = batch.slice(skip, min(most, stop - self.row - skip))
            self.rest = batch.slice(skip + piece.num_rows)
            self.row += skip + piece.num_rows
            if piece.num_rows:
                yield piece


def resume(key: object, start: int, first: int, read: Callable[[], Generator[pa.RecordBatch]]) -> Place:
    """The place that was left in the blocks of `key` if row `start` is not behind it; else `read()`, at row `first`."""
    while _left:
        place = _left.pop()
        if place.key == key and place.row <= start:
            return place
        place.source.close()
    return Place(key, first, read())


def leave(place: Place) -> None:
    """Keep `place` for the next range; the one that was kept is closed."""
    _left.append(place)
    while len(_left) > 1:
        _left.pop(0).source.close()

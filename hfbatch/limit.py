"""The first `input.limit` rows that `where` lets through, as the files' blocks cut short.

Without a filter this is arithmetic. With one, the filter's columns are read up to the row that fills the limit, and
no further.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from hfbatch.formats import Block, FileRef, Inspected, read_rows
from hfbatch.sequences import Array
from hfbatch.shards import SourceFile
from hfbatch.where import columns_of, parse_where


def source_files(
    files: Sequence[Inspected], limit: int | None, where: str | None, schema: pa.Schema
) -> list[SourceFile]:
    """All files with all their rows, or as many as fill `limit`."""
    sources = [SourceFile(file.file.path, file.file.fingerprint, file.blocks) for file in files]
    if limit is None:
        return sources
    short = []
    for source, file in zip(sources, files, strict=True):
        if limit == 0:
            break
        stop, taken = _end_of(limit, file, where, schema)
        short.append(replace(source, blocks=tuple(_shortened(source.blocks, stop))))
        limit -= taken
    return short


def matches(batch: pa.RecordBatch, where: str, schema: pa.Schema) -> Array:
    """(rows,) int64: the positions in `batch` of the rows for which `where` holds."""
    numbered = pa.table({**{name: batch[name] for name in batch.schema.names}, "": np.arange(len(batch))})
    return np.asarray(numbered.filter(parse_where(where, schema))[""].to_numpy())


def _end_of(wanted: int, file: Inspected, where: str | None, schema: pa.Schema) -> tuple[int, int]:
    """(the row after the last one taken, how many were taken) when up to `wanted` are."""
    if where is None:
        taken = min(file.rows, wanted)
        return taken, taken
    taken = 0
    for start, found in _found(file, where, schema):
        if taken + len(found) >= wanted:
            return start + int(found[wanted - taken - 1]) + 1, wanted
        taken += len(found)
    return file.rows, taken


def _found(file: Inspected, where: str, schema: pa.Schema) -> Iterator[tuple[int, Array]]:
    """(first row, matching positions) for each batch of the filter's columns."""
    names, start = sorted(columns_of(where)) or schema.names[:1], 0
    ref = FileRef.of(file, pa.schema([schema.field(name) for name in names]))
    for batch in read_rows(ref, 0, file.rows, names):
        yield start, matches(batch, where, schema)
        start += len(batch)


def _shortened(blocks: tuple[Block, ...], rows: int) -> Iterator[Block]:
    """The blocks up to `rows` rows."""
    for block in blocks:
        take = min(block.rows, rows)
        if take:
            yield replace(block, rows=take, nbytes=block.nbytes * take // block.rows)
        rows -= take

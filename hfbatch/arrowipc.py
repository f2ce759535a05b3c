"""Arrow IPC files and streams (.arrow, .feather, .ipc): rows of each record batch, and batches one at a time.

Only the wanted columns' bytes are read from a file; a stream has no index, so reading one begins at its first batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.ipc

from hfbatch.access import open_seekable, redact
from hfbatch.files import ListedFile
from hfbatch.schemas import SchemaProblem


def inspect_arrow(file: ListedFile) -> tuple[pa.Schema, list[int]]:
    """The schema, and the rows of each record batch, counted by the narrowest column."""
    with open_seekable(file.url) as source:
        with _reader(source, file, None) as reader:
            schema = reader.schema
        source.seek(0)
        with _reader(source, file, _narrowest(schema)) as reader:
            return schema, [batch.num_rows for batch in _batches(reader, 0, None)]


def read_arrow(file: ListedFile, first: int, count: int, names: Sequence[str]) -> Generator[pa.RecordBatch]:
    """Record batches [first, first + count), with the columns `names` only."""
    with open_seekable(file.url) as source:
        with _reader(source, file, None) as reader:
            wanted = [reader.schema.get_field_index(name) for name in names]
        source.seek(0)
        with _reader(source, file, wanted) as reader:
            for batch in _batches(reader, first, count):
                batch.validate()
                yield batch


def _reader(source: IO[bytes], file: ListedFile, fields: list[int] | None) -> Any:
    """A reader of the file or of the stream format, for the columns at `fields` only."""
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    magic = source.read(6)
    source.seek(0)
    if magic.startswith(b"FEA1"):
        raise SchemaProblem(f"{redact(file.path)} is Feather version 1", "write it with pyarrow.feather, version 2")
    if magic == b"ARROW1":
        return pa.ipc.open_file(source, options=options)
    return pa.ipc.open_stream(source, options=options)


def _batches(reader: Any, first: int, count: int | None) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for index in range(first, reader.num_record_batches if count is None else first + count):
            yield reader.get_batch(index)
        return
    for index, batch in enumerate(reader):
        if count is not None and index >= first + count:
            return
        if index >= first:
            yield batch


def _narrowest(schema: pa.Schema) -> list[int]:
    """The position of the column with the fewest bits a row."""

    def bits(index: int) -> int:
        try:
            return int(schema.field(index).type.bit_width)
        except ValueError:
            return 1 << 16

    return sorted(range(len(schema)), key=bits)[:1]

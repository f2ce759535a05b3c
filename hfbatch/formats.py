"""A data file in, its schema and read units out (`inspect`); a range of its rows in, record batches out (`read_rows`).

| format  | inspected from                          | read                                                        |
|---------|-----------------------------------------|-------------------------------------------------------------|
| parquet | the footer                              | the row groups of the range, streamed page by page          |
| arrow   | its narrowest column (arrowipc.py)      | the record batches of the range                             |
| jsonl   | one streaming pass (text.py)            | the 8 MiB chunks of the range                               |
| csv     | the same                                | the same                                                    |
| dataset | the folder's own index                  | datasets' memory-mapped tables, its indices honoured        |

Reading from the middle of a row group decodes the rows before it and drops them: pyarrow cannot skip pages. So that
the shards of one large row group do not each begin at its first row, a process goes on where it stopped (place.py).
Page checksums are verified where the file has them; without them a flipped bit that still decodes is not seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch.access import open_seekable, redact, reporting
from hfbatch.arrowipc import inspect_arrow, read_arrow
from hfbatch.errors import StorageError
from hfbatch.files import FileProblem, ListedFile, check_unchanged
from hfbatch.partitions import filled, values_of, with_folders
from hfbatch.place import leave, resume
from hfbatch.schemas import SchemaProblem, conform, merge_schemas, plain_schema
from hfbatch.spec import InputFormat
from hfbatch.text import Chunk, inspect_text, read_text

MOST_BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20  # batches of rows that are large have fewer of them
_BUFFER_BYTES = 4 << 20  # of one column chunk, held while it is read
_PIECE_ROWS = 16_384


@dataclass(frozen=True)
class Block:
    """A natural read unit: a row group, a record batch, a chunk of lines."""

    rows: int
    nbytes: int
    offset: int = 0  # of a chunk of text, in the decompressed file


@dataclass(frozen=True)
class Inspected:
    """A file with its schema, in plain types, and its blocks in order."""

    file: ListedFile
    schema: pa.Schema
    blocks: tuple[Block, ...]
    untyped: frozenset[str] = frozenset()  # columns of a CSV file without any value: string, until a file says better

    @property
    def rows(self) -> int:
        """Rows of all blocks."""
        return sum(block.rows for block in self.blocks)


@dataclass(frozen=True)
class FileRef:
    """What a worker needs to read a file: small and picklable. `part` makes it smaller still."""

    file: ListedFile
    own: pa.Schema  # the columns the file has, in its own types
    schema: pa.Schema  # the columns to deliver; one that the file lacks comes as nulls
    blocks: tuple[Block, ...]
    first_block: int = 0  # position in the file of blocks[0]
    first_row: int = 0  # the row at which blocks[0] begins

    @classmethod
    def of(cls, inspected: Inspected, schema: pa.Schema) -> FileRef:
        """All rows of a file, as the columns of `schema`: its own columns, or those of `unify` over many files."""
        better = [schema.field(name) for name in inspected.untyped if name in schema.names]
        return cls(inspected.file, _with_fields(inspected.schema, better), schema, inspected.blocks)

    @property
    def rows(self) -> int:
        """Rows of the blocks it knows."""
        return sum(block.rows for block in self.blocks)

    def part(self, start: int, stop: int) -> FileRef:
        """The same file with only the blocks that hold rows [start, stop), which keep their numbers."""
        kept = [(index, first) for index, first, block in self._placed() if first < stop and first + block.rows > start]
        if not kept:
            return replace(self, blocks=(), first_row=start)
        low, high = kept[0][0], kept[-1][0] + 1
        return replace(self, blocks=self.blocks[low:high], first_block=self.first_block + low, first_row=kept[0][1])

    def _placed(self) -> Iterator[tuple[int, int, Block]]:
        first = self.first_row
        for index, block in enumerate(self.blocks):
            yield index, first, block
            first += block.rows


def inspect(file: ListedFile) -> Inspected:
    """Schema and blocks of a file; of Parquet and datasets without reading data.

    FileProblem: columns that cannot be used. StorageError: the file is damaged. AccessRefused: the store said no.
    """
    with reporting(file.url, FileProblem, SchemaProblem), _pointing(file):
        schema, blocks = _INSPECTORS[file.format](file)
        if schema.names or blocks:
            schema = plain_schema(schema, redact(file.path))
        untyped = [field.name for field in schema if file.format == "csv" and pa.types.is_null(field.type)]
        texts = _with_fields(schema, [pa.field(name, pa.string()) for name in untyped])
        return Inspected(file, texts, tuple(blocks), frozenset(untyped))


def unify(inspected: Sequence[Inspected]) -> pa.Schema:
    """One schema over all files: every column, in types that hold all files' (int with float is float), and folder.

    FileProblem names column, both files and both types where no type holds both.
    """
    entries = {each.file.path: each.file for each in inspected}
    try:
        known = [_with_fields(each.schema, [pa.field(name, pa.null()) for name in each.untyped]) for each in inspected]
        named = ((each.file.path, with_folders(own, each.file)) for each, own in zip(inspected, known, strict=True))
        schema = merge_schemas(named)
    except SchemaProblem as problem:
        raise FileProblem(entries[problem.name].entry, problem.message, problem.fix) from problem
    untyped = frozenset[str]().union(*(each.untyped for each in inspected))
    return _with_fields(
        schema, [pa.field(name, pa.string()) for name in untyped if schema.field(name).type == pa.null()]
    )


def _with_fields(schema: pa.Schema, fields: Sequence[pa.Field]) -> pa.Schema:
    """`schema` with these in place of its fields of the same names."""
    for field in fields:
        schema = schema.set(schema.get_field_index(field.name), field)
    return schema


def read_rows(ref: FileRef, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) of the file, in its order, in small batches of `columns` (default: all of ref.schema).

    Conflict: the file changed since it was listed, be it while it was read: then after the last batch, so use none
    before all are there. StorageError: it is damaged, or a value does not fit the type of the column.
    """
    schema = ref.schema if columns is None else pa.schema([ref.schema.field(name) for name in columns])
    if not schema.names:
        raise ValueError(f"{ref.file.path}: no column to read")
    if not ref.first_row <= start <= stop <= ref.first_row + ref.rows:
        raise ValueError(f"{ref.file.path}: rows {start} to {stop} are not all in {ref.first_row} + {ref.rows}")
    if start == stop:
        return
    part = ref.part(start, stop)
    folders = {name: value for name, value in values_of(ref.file).items() if name in schema.names}
    present = pa.schema([ref.own.field(n) for n in schema.names if n in ref.own.names and n not in folders])
    read = 0
    with _unchanged(ref.file, start, stop):
        read_part = _READERS[ref.file.format] if present.names else _rows_only
        key = (ref.file, ref.file.fingerprint, part.first_block, len(part.blocks), present)
        place = resume(key, start, part.first_row, lambda: read_part(part, present))
        for batch in place.rows(start, stop, _batch_rows(part)):
            read += batch.num_rows
            yield conform(filled(batch, folders), schema)
        if read != stop - start:
            raise StorageError(f"{redact(ref.file.url)}: {stop - start} rows wanted, {read} found: the file is damaged")
    if place.row < part.first_row + part.rows:
        leave(place)


@contextmanager
def _pointing(file: ListedFile) -> Iterator[None]:
    try:
        yield
    except SchemaProblem as problem:
        raise FileProblem(file.entry, problem.message, problem.fix) from problem


@contextmanager
def _unchanged(file: ListedFile, start: int, stop: int) -> Iterator[None]:
    """What goes wrong inside is said with the rows; a file replaced by then is a Conflict, whatever it looked like."""
    check_unchanged(file)
    try:
        with reporting(file.url, SchemaProblem):
            yield
    except SchemaProblem as problem:
        fix = problem.fix or "write the column with one type in every file"
        raise StorageError(f"{redact(file.url)}: cannot be read as planned: {problem.message}; {fix}") from problem
    except StorageError as error:
        check_unchanged(file)
        raise StorageError(f"{error} (rows {start:,} to {stop:,})") from error
    check_unchanged(file)


def _batch_rows(ref: FileRef) -> int:
    """Rows of one batch: a thousand, or fewer when they are large."""
    row_bytes = sum(block.nbytes for block in ref.blocks) // max(1, ref.rows)
    return max(1, min(MOST_BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))


def _rows_only(ref: FileRef, present: pa.Schema) -> Generator[pa.RecordBatch]:
    """As many rows as there are, for columns that the file does not have."""
    for block in ref.blocks:
        for begin in range(0, block.rows, MOST_BATCH_ROWS):
            rows = min(MOST_BATCH_ROWS, block.rows - begin)
            yield pa.RecordBatch.from_arrays([pa.nulls(rows)], names=[""])


# parquet


def _inspect_parquet(file: ListedFile) -> tuple[pa.Schema, list[Block]]:
    with open_seekable(file.url) as source, pq.ParquetFile(source) as parquet:
        groups = (parquet.metadata.row_group(index) for index in range(parquet.num_row_groups))
        blocks = [Block(group.num_rows, group.total_byte_size) for group in groups]
        return parquet.schema_arrow, blocks


def _read_parquet(ref: FileRef, present: pa.Schema) -> Generator[pa.RecordBatch]:
    # pre_buffer (the default) would hold a whole row group, however large
    with (
        open_seekable(ref.file.url) as source,
        pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True) as parquet,
    ):
        for index in range(ref.first_block, ref.first_block + len(ref.blocks)):
            yield from parquet.iter_batches(_batch_rows(ref), [index], present.names, use_threads=False)


# arrow


def _inspect_arrow(file: ListedFile) -> tuple[pa.Schema, list[Block]]:
    schema, rows = inspect_arrow(file)
    total = max(1, sum(rows))
    return schema, [Block(count, file.size * count // total) for count in rows]


def _read_arrow(ref: FileRef, present: pa.Schema) -> Generator[pa.RecordBatch]:
    return read_arrow(ref.file, ref.first_block, len(ref.blocks), present.names)


# text


def _inspect_text(file: ListedFile) -> tuple[pa.Schema, list[Block]]:
    schema, chunks = inspect_text(file)
    return schema, [Block(chunk.rows, chunk.nbytes, chunk.offset) for chunk in chunks]


def _read_text(ref: FileRef, present: pa.Schema) -> Generator[pa.RecordBatch]:
    chunks = [Chunk(block.offset, block.nbytes, block.rows) for block in ref.blocks]
    for table in read_text(ref.file, ref.own, chunks, present):
        yield from table.to_batches()


# datasets.save_to_disk


@functools.lru_cache(maxsize=4)
def _load_dataset(url: str, fingerprint: str) -> Any:
    """The folder's Dataset; kept, because a worker reads many shards of it. It is memory-mapped."""
    import datasets  # here: it takes a second, and most jobs do not need it

    return datasets.load_from_disk(url).with_format("arrow")


def _inspect_dataset(file: ListedFile) -> tuple[pa.Schema, list[Block]]:
    found = _load_dataset(file.url, file.fingerprint)
    counts = [min(_PIECE_ROWS, len(found) - begin) for begin in range(0, len(found), _PIECE_ROWS)]
    row_bytes = found.data.nbytes // max(1, found.data.num_rows)
    return found.features.arrow_schema, [Block(rows, rows * row_bytes) for rows in counts]


def _read_dataset(ref: FileRef, present: pa.Schema) -> Generator[pa.RecordBatch]:
    found = _load_dataset(ref.file.url, ref.file.fingerprint).select_columns(present.names)
    begin, step = ref.first_block * _PIECE_ROWS, _batch_rows(ref)
    for first in range(begin, begin + ref.rows, step):
        yield from found[first : min(first + step, begin + ref.rows)].to_batches()


_INSPECTORS: dict[InputFormat, Callable[[ListedFile], tuple[pa.Schema, list[Block]]]] = {
    "parquet": _inspect_parquet,
    "arrow": _inspect_arrow,
    "jsonl": _inspect_text,
    "csv": _inspect_text,
    "dataset": _inspect_dataset,
}
_READERS: dict[InputFormat, Callable[[FileRef, pa.Schema], Generator[pa.RecordBatch]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_text,
    "csv": _read_text,
    "dataset": _read_dataset,
}

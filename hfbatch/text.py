"""Text files (JSON Lines, CSV, TSV; plain, .gz, .bz2, .zst) as chunks of whole rows, each parsed on its own.

One streaming pass at planning finds the chunks, counts their rows and settles the types over all of them; a chunk is
some 8 MiB and has a byte offset, so a reader of rows 5,000,000 to 5,016,384 seeks there and parses one or two chunks
(a compressed file is decompressed up to there, but not parsed). Types keep what was written: a JSON string is never a
date, a CSV column is a number only when every value in the file is one, and 007 is not.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from hfbatch.access import open_filesystem, redact
from hfbatch.errors import StorageError
from hfbatch.files import COMPRESSIONS, ListedFile
from hfbatch.schemas import SchemaProblem, map_type, merge_schemas

CHUNK_BYTES = 8 << 20
MAX_ROW_BYTES = 512 << 20
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_MISSING = pa.array(["", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None"])  # null in a column of numbers
_BOOLS = pa.array(["true", "false", "True", "False", "TRUE", "FALSE"])
_INT = r"^-?(0|[1-9][0-9]{0,17})$"  # always fits int64, and comes back as it was written
_FLOAT = r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$|^-?inf$"


@dataclass(frozen=True)
class Chunk:
    """Whole rows of a text file: where they stand (in the decompressed bytes) and how many there are."""

    offset: int
    nbytes: int
    rows: int


def inspect_text(file: ListedFile) -> tuple[pa.Schema, list[Chunk]]:
    """Schema over the whole file, and its chunks, from one streaming pass. A column without any value has type null.

    SchemaProblem: a column changes its type, the header is unusable. StorageError: a line that is not a row.
    """
    return _inspect_jsonl(file) if file.format == "jsonl" else _inspect_csv(file)


def read_text(file: ListedFile, own: pa.Schema, chunks: Sequence[Chunk], schema: pa.Schema) -> Iterator[pa.Table]:
    """The chunks as tables, in order, with the columns of `schema`. `own` is the schema that inspection gave."""
    with _opened(file) as stream:
        place = 0
        for chunk in chunks:
            place = _skip(file, stream, place, chunk.offset)
            data = stream.read(chunk.nbytes)
            place += len(data)
            table = _parse_jsonl(file, data, schema) if file.format == "jsonl" else _csv_table(file, data, own, schema)
            if len(data) != chunk.nbytes or table.num_rows != chunk.rows:
                raise StorageError(f"{redact(file.url)}: {table.num_rows} rows where {chunk.rows} were; plan again")
            yield table


@contextmanager
def _opened(file: ListedFile) -> Iterator[IO[bytes]]:
    """The decompressed bytes. pyarrow decompresses: fsspec would need another package for zstd."""
    fs, path = open_filesystem(file.url)
    compression = COMPRESSIONS.get(PurePosixPath(path).suffix.lower())
    with fs.open(path, "rb") as raw:
        if compression is None:
            yield raw
        else:
            with pa.input_stream(raw, compression=compression) as stream:
                yield stream


def _skip(file: ListedFile, stream: IO[bytes], place: int, offset: int) -> int:
    """Moves from byte `place` on to byte `offset`: a seek, or reading on where the stream is compressed."""
    if PurePosixPath(open_filesystem(file.url)[1]).suffix.lower() not in COMPRESSIONS:
        return stream.seek(offset)
    while place < offset and (data := stream.read(min(CHUNK_BYTES, offset - place))):
        place += len(data)
    return place


def _whole_rows(file: ListedFile, rows_end: Callable[[bytes], int]) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of chunks of whole rows. `rows_end` says where the last whole row of some bytes ends."""
    with _opened(file) as stream:
        offset, held, wanted = 0, b"", CHUNK_BYTES
        while True:
            data = stream.read(wanted)
            held += data
            if offset == 0:
                if held.startswith(_UTF16_BOMS) or b"\0" in held[:4]:
                    raise StorageError(
                        f"{redact(file.url)}: not UTF-8 text but UTF-16; convert the file (iconv -f UTF-16 -t UTF-8)"
                    )
                offset = len(_BOM) if held.startswith(_BOM) else 0
                held = held[offset:]
            end = rows_end(held) if data else len(held)
            if not data and held and rows_end(held + b"\n") <= len(held):
                raise StorageError(f"{redact(file.url)}: a quote is opened and never closed; repair the file")
            if end:
                yield offset, held[:end]
            if not data:
                return
            offset, held = offset + end, held[end:]
            wanted = CHUNK_BYTES if end else len(held)  # doubling: a row of any size is scanned a few times only
            if len(held) > MAX_ROW_BYTES:
                raise StorageError(
                    f"{redact(file.url)}: a row of over {MAX_ROW_BYTES >> 20} MiB at byte {offset}; "
                    f"is this really {file.format}? Set input.format, or repair the file"
                )


# JSON Lines


def _lines_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _inspect_jsonl(file: ListedFile) -> tuple[pa.Schema, list[Chunk]]:
    schema, chunks, lines = pa.schema([]), [], 0
    for offset, data in _whole_rows(file, _lines_end):
        table = _parse_jsonl(file, data, None, lines)
        found = pa.schema([(field.name, map_type(field.type, _undated)) for field in table.schema])
        label = f"{redact(file.path)} from line {lines + 1:,}"
        schema = merge_schemas([(f"{redact(file.path)} before line {lines + 1:,}", schema), (label, found)])
        chunks.append(Chunk(offset, len(data), table.num_rows))
        lines += data.count(b"\n")
    return schema, [chunk for chunk in chunks if chunk.rows]


def _undated(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_temporal(kind) else kind


def _parse_jsonl(file: ListedFile, data: bytes, schema: pa.Schema | None, lines: int = 0) -> pa.Table:
    """A table of the objects in `data`, which begins after `lines` lines of the file."""
    if not data.strip():
        return (schema or pa.schema([])).empty_table()
    options = pa.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
    )
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    try:
        return pa.json.read_json(pa.BufferReader(data), read_options=reading, parse_options=options)
    except pa.ArrowInvalid as error:
        raise _bad_json(file, data, lines, str(error)) from error


def _bad_json(file: ListedFile, data: bytes, lines: int, reason: str) -> Exception:
    """What to raise for the first bad line of `data`: its number in the file, what is wrong, what to do."""
    written = [(number, line) for number, line in enumerate(data.split(b"\n"), lines + 1) if line.strip()]
    for number, line in written:
        wrong = _wrong_json(line)
        if wrong:
            return StorageError(
                f"{redact(file.url)}: line {number:,}: {wrong}; JSON Lines has one object a line: "
                "repair the line (an array becomes lines with: jq -c '.[]')"
            )
    row = re.search(r" in row (\d+)", reason)
    number = written[min(int(row[1]), len(written) - 1)][0] if row else lines + 1
    changed = re.search(r"Column\(/?(.*)\) changed from (\w+) to (\w+)", reason)
    if changed:
        return SchemaProblem(
            f"{redact(file.path)}: line {number:,}: column {changed[1]!r} is {changed[3]}, before it was {changed[2]}",
            "write the column with one type",
        )
    fix = "write \\ufffd for a half that stands alone" if "surrogate" in reason else "repair the line"
    return StorageError(f"{redact(file.url)}: line {number:,}: {reason.split(' in row')[0]}; {fix}")


def _wrong_json(line: bytes) -> str | None:
    try:
        value = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return None if isinstance(value, dict) else f"a JSON {type(value).__name__}, not an object"


# CSV


def _row_pattern(delimiter: str) -> re.Pattern[bytes]:
    """As many whole rows as there are. A field is quoted only when it begins with a quote, as pyarrow reads it."""
    sign = re.escape(delimiter)
    cell = rf'(?:"[^"]*+(?:""[^"]*+)*+"[^{sign}\n]*+|(?!")[^{sign}\n]*+)'
    return re.compile(rf"(?:{cell}(?:{sign}{cell})*+\n)*+".encode())


def _delimiter(file: ListedFile) -> str:
    suffixes = PurePosixPath(redact(file.url).removesuffix("?***").lower()).suffixes[-2:]
    return "\t" if ".tsv" in suffixes else ","


def _inspect_csv(file: ListedFile) -> tuple[pa.Schema, list[Chunk]]:
    pattern = _row_pattern(_delimiter(file))
    names: list[str] = []
    kinds: dict[str, pa.DataType] = {}
    chunks: list[Chunk] = []
    rows = 1  # the header
    for offset, data in _whole_rows(file, lambda data: pattern.match(data).end()):  # type: ignore[union-attr]
        if not names:
            names, skipped = _header(file, data)
            kinds = dict.fromkeys(names, pa.null())
            offset, data = offset + skipped, data[skipped:]
        table = _parse_csv(file, data, names, rows)
        for name, column in zip(names, table.columns, strict=True):
            kinds[name] = _joined(kinds[name], column)
        chunks.append(Chunk(offset, len(data), table.num_rows))
        rows += table.num_rows
    return pa.schema(list(kinds.items())), [chunk for chunk in chunks if chunk.rows]


def _header(file: ListedFile, data: bytes) -> tuple[list[str], int]:
    """The column names, and how many bytes the header takes."""
    text = io.StringIO(data[: 1 << 20].decode("utf-8", errors="replace"), newline="")
    names = next((row for row in csv.reader(text, delimiter=_delimiter(file)) if row), [])
    shown = redact(file.path)
    if any("\ufffd" in name or "\0" in name for name in names):
        raise StorageError(f"{shown}: the header is not UTF-8 text; convert the file (iconv -t UTF-8)")
    wrong = "an empty name" if not all(name.strip() for name in names) or not names else None
    doubled = next((name for name in names if names.count(name) > 1), None)
    if wrong or doubled is not None:
        wrong = wrong or f"the name {doubled!r} twice"
        raise SchemaProblem(f"{shown}: the first row has {wrong}; it must name the columns", "add a header row")
    return names, len(text.getvalue()[: text.tell()].encode())


def _parse_csv(
    file: ListedFile, data: bytes, names: Sequence[str], rows: int = 0, only: Sequence[str] = ()
) -> pa.Table:
    """`data`, rows without a header, as strings; an unquoted empty field is null. `rows` come before it."""
    if not data.strip():
        return pa.schema([(name, pa.string()) for name in only or names]).empty_table()
    reading = pa.csv.ReadOptions(use_threads=False, column_names=list(names), block_size=len(data) + 1)
    parsing = pa.csv.ParseOptions(delimiter=_delimiter(file), newlines_in_values=True)
    converting = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=list(only),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        check_utf8=False,  # one bad row is that row's error later, not the file's
    )
    try:
        return pa.csv.read_csv(pa.BufferReader(data), reading, parsing, converting)
    except pa.ArrowInvalid as error:
        reason = re.sub(r"Row #(\d+)", lambda match: f"row {int(match[1]) + rows:,}", str(error))[:300]
        raise StorageError(f"{redact(file.url)}: {reason}; repair the row, or quote its fields") from error


def _joined(kind: pa.DataType, column: pa.ChunkedArray) -> pa.DataType:
    """The type for all values so far and those of `column`: null < int64 < double, bool; anything else is string."""
    if pa.types.is_string(kind):
        return kind
    present = column.filter(pc.invert(pc.is_in(column, value_set=_MISSING))).drop_null()
    found = _narrowest(present)
    if pa.types.is_null(found) or found == kind:
        return kind
    if pa.types.is_null(kind) or {kind, found} == {pa.int64(), pa.float64()}:
        return found if pa.types.is_null(kind) else pa.float64()
    return pa.string()


def _narrowest(present: pa.ChunkedArray) -> pa.DataType:
    if len(present) == 0:
        return pa.null()
    if pc.all(pc.is_in(present, value_set=_BOOLS)).as_py():
        return pa.bool_()
    for kind, spelling in ((pa.int64(), _INT), (pa.float64(), _FLOAT)):
        if pc.all(pc.match_substring_regex(present.slice(0, 100), spelling)).as_py() and (
            pc.all(pc.match_substring_regex(present, spelling)).as_py()
        ):
            return kind
    return pa.string()


def _csv_table(file: ListedFile, data: bytes, own: pa.Schema, schema: pa.Schema) -> pa.Table:
    strings = _parse_csv(file, data, own.names, only=schema.names)
    return pa.table([_typed(strings.column(field.name), field.type) for field in schema], schema=schema)


def _typed(strings: pa.ChunkedArray, kind: Any) -> pa.ChunkedArray:
    if pa.types.is_string(kind):
        return strings
    missing = pc.is_in(strings, value_set=_MISSING)
    return pc.if_else(missing, pa.scalar(None, pa.string()), strings).cast(kind)

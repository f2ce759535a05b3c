"""A column of images, sounds or videos in; the encoded bytes of each row out, or why a row has none.

Bytes stand in the column itself, or in the struct {bytes, path} that `datasets` writes. A path is opened only where
`input.allow_media_prefixes` names a prefix of it: a dataset must not make a worker read what it likes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from urllib.parse import unquote

import fsspec
import pyarrow as pa

from hfbatch.errors import RowError
from hfbatch.kinds import AUDIO, is_bytes, is_text
from hfbatch.store_errors import redact

MOST_BYTES = 1 << 30  # of one file; Arrow, decoders and memory have their own limits beyond
_READERS = 16
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")


def read_media(
    name: str, column: pa.Array, kind: pa.DataType, prefixes: Sequence[str]
) -> tuple[pa.Array, dict[int, RowError]]:
    """`column` as large_binary, one encoded file a row; for AUDIO as the struct of that kind. And errors by row.

    Rows with an error are null.
    """
    fields = {} if not pa.types.is_struct(column.type) else {f.name: i for i, f in enumerate(column.type)}
    parts = dict(zip(fields, column.flatten(), strict=True)) if fields else {}  # `flatten` knows the struct's own nulls
    held = column if is_bytes(column.type) else parts.get("bytes")
    paths = column if is_text(column.type) else parts.get("path")
    rows = len(column)
    files: list[bytes | None] = [None] * rows if held is None or not is_bytes(held.type) else held.to_pylist()
    addresses: list[str | None] = [None] * rows if paths is None or not is_text(paths.type) else paths.to_pylist()
    arrays = parts.get("array") if kind == AUDIO else None
    absent = [row for row in range(rows) if files[row] is None and not (arrays is not None and arrays[row].is_valid)]
    named = {row: path for row in absent if (path := addresses[row]) is not None}
    errors = dict[int, RowError]()
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        found = list(pool.map(lambda path: _read(name, path, prefixes), named.values()))
    for row, content in zip(named, found, strict=True):
        if isinstance(content, RowError):
            errors[row] = content
        else:
            files[row] = content
    for row in set(absent) - set(named):
        errors[row] = RowError("null_input", f"{name} is null")
    for row, file in enumerate(files):
        if file is not None and not file:
            errors[row] = RowError("empty_input", f"{name} has no bytes")
            files[row] = None
    made = pa.array(files, pa.large_binary())
    if kind != AUDIO:
        return made, errors
    lists, rates = pa.nulls(rows, AUDIO.field("array").type), pa.nulls(rows, pa.int64())
    if arrays is not None:
        lists, rates = arrays.cast(lists.type), parts["sampling_rate"].cast(rates.type)
    return pa.StructArray.from_arrays([made, lists, rates], fields=list(AUDIO)), errors


def _read(name: str, path: str, prefixes: Sequence[str]) -> bytes | RowError:
    """The bytes of the file at `path`, if it may be opened."""
    if not allowed(path, prefixes):
        shown = redact(path[:200])
        return RowError("path_refused", f"{name} names {shown}, and input.allow_media_prefixes no prefix of it")
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read(MOST_BYTES + 1)
    except Exception as error:  # any backend, any library
        return RowError("unreadable_media", f"{name}: {redact(path[:200])}: {type(error).__name__}")
    if len(content) > MOST_BYTES:
        return RowError("too_long", f"{name}: {redact(path[:200])} has over {MOST_BYTES:,} bytes")
    return content


def allowed(path: str, prefixes: Sequence[str]) -> bool:
    """Whether `path` lies below one of `prefixes`. Local paths are compared with their links followed."""
    if ".." in PurePosixPath(unquote(path)).parts or "::" in path:
        return False
    return any(_below(path, prefix) for prefix in prefixes)


def _below(path: str, prefix: str) -> bool:
    remote = [bool(_SCHEME.match(each)) for each in (path, prefix)]
    if remote[0] != remote[1]:
        return False
    if not remote[0]:
        path, prefix = os.path.realpath(path), os.path.realpath(prefix)
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")

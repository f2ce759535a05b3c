"""A column of images, sounds or videos in; the encoded bytes of each row out, or why a row has none.

Bytes stand in the column itself, or in the struct {bytes, path} that `datasets` writes. A path is opened only where
`input.allow_media_prefixes` names a prefix of it: a dataset must not make a worker read what it likes.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.errors import RowError
from hfbatch.kinds import AUDIO, is_bytes, is_text
from hfbatch.store_errors import http_status, redact

MOST_BYTES = 1 << 30  # of one file; Arrow, decoders and memory have their own limits beyond
_LONGEST = 8192  # bytes of a path; beyond that it is something else, such as an image in base64
_JUDGED = 2048  # characters that are searched for secrets
_READERS = 16
_SILENCE_S = 60  # after which a web server is given up
_FILE = re.compile(r"(file|local)://")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_CONTROL = re.compile(r"[\0-\x1f\x7f]")  # libraries take them out of URLs, so that `.\t.` becomes `..`


def read_media(
    name: str, column: pa.Array, kind: pa.DataType, prefixes: Sequence[str]
) -> tuple[pa.Array, dict[int, RowError]]:
    """`column` as large_binary, one encoded file a row; for AUDIO as the struct of that kind. And errors by row.

    Rows with an error are null.
    """
    rows = len(column)
    fields = {} if not pa.types.is_struct(column.type) else {f.name: i for i, f in enumerate(column.type)}
    parts = dict(zip(fields, column.flatten(), strict=True)) if fields else {}  # `flatten` knows the struct's own nulls
    held = column if is_bytes(column.type) else parts.get("bytes")
    paths = column if is_text(column.type) else parts.get("path")
    arrays = parts.get("array") if kind == AUDIO else None
    files = pa.nulls(rows, pa.large_binary())
    if held is not None and is_bytes(held.type):
        files = held.cast(files.type)
    absent = np.asarray(files.is_null())
    if arrays is not None:
        absent &= np.asarray(arrays.is_null())
    errors = {int(row): RowError("null_input", f"{name} is null") for row in np.flatnonzero(absent)}
    if paths is not None and is_text(paths.type):
        found = _read_all(name, paths, np.flatnonzero(absent & np.asarray(paths.is_valid())), prefixes)
        errors = {row: error for row, error in errors.items() if row not in found}
        errors |= {row: content for row, content in found.items() if isinstance(content, RowError)}
        files = _with(files, {row: content for row, content in found.items() if isinstance(content, bytes)})
    empty = pc.equal(pc.binary_length(files), 0).fill_null(False)
    if pc.any(empty).as_py():
        errors |= {int(row): RowError("empty_input", f"{name} has no bytes") for row in np.flatnonzero(empty)}
        files = pc.if_else(empty, None, files)
    if kind != AUDIO:
        return files, errors
    lists, rates = pa.nulls(rows, AUDIO.field("array").type), pa.nulls(rows, pa.int64())
    if arrays is not None:
        lists, rates = _samples(arrays), parts["sampling_rate"].cast(rates.type, safe=False)
    return pa.StructArray.from_arrays([files, lists, rates], fields=list(AUDIO)), errors


def _samples(arrays: pa.Array) -> pa.ListArray:
    """Lists of any kind, with numbers of any type, as list<float>; by hand, as Arrow errs in casting views.

    A number too large for its type must cost its own row only, which is why casts are unsafe here and for rates.
    """
    ends = pc.cumulative_sum(pc.list_value_length(arrays).fill_null(0).cast(pa.int32()))
    values = arrays.flatten().cast(pa.float32(), safe=False)
    return pa.ListArray.from_arrays(pa.concat_arrays([pa.array([0], ends.type), ends]), values, mask=arrays.is_null())


def _with(files: pa.Array, found: Mapping[int, bytes]) -> pa.Array:
    """`files` with those of `found` (row -> file) put in."""
    if not found:
        return files
    mask = np.zeros(len(files), dtype=bool)
    mask[list(found)] = True
    return pc.replace_with_mask(files, pa.array(mask), pa.array(list(found.values()), files.type))


def _read_all(name: str, paths: pa.Array, rows: np.ndarray, prefixes: Sequence[str]) -> dict[int, bytes | RowError]:
    """Row -> the bytes of the file that it names, or why there are none; rows in order."""
    raw = paths.take(pa.array(rows)).cast(pa.large_binary()).to_pylist()  # strings of a file need not be UTF-8
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        return dict(zip(rows.tolist(), pool.map(lambda path: _read(name, path, prefixes), raw), strict=True))


def _read(name: str, raw: bytes, prefixes: Sequence[str]) -> bytes | RowError:
    """The bytes of the file at the path `raw`, if it may be opened."""
    if len(raw) > _LONGEST:
        return RowError("path_refused", f"{name} holds a text of {len(raw):,} bytes, which is no path; store bytes")
    try:
        path = raw.decode()
        place = allowed(path, prefixes)
    except ValueError:  # not UTF-8, or with a null in it
        return RowError("path_refused", f"{name} names {_shown(repr(raw), 100)}, which is no path")
    shown = _shown(path)
    if place is None:
        return RowError("path_refused", f"{name} names {shown}, and input.allow_media_prefixes no prefix of it")
    try:
        with _open(place, prefixes) as file:
            content = file.read(MOST_BYTES + 1)
            whole = not getattr(file, "length", 0)  # what a web server announced and did not send
    except RowError as error:
        return RowError(error.code, f"{name}: {shown}: {error.message}")
    except Exception as error:  # any backend, any library
        status = http_status(error)
        reason = type(error).__name__ if status is None else f"HTTP {status}"
        return RowError("unreadable_media", f"{name}: {shown}: {reason}")
    if len(content) > MOST_BYTES:
        return RowError("too_long", f"{name}: {shown} has over {MOST_BYTES:,} bytes")
    return content if whole else RowError("unreadable_media", f"{name}: {shown}: the connection broke off")


def _shown(path: str, length: int = 200) -> str:
    """Its beginning for a message; what `redact` hides must not be cut in two, and it is slow with long texts."""
    return redact(path[:_JUDGED])[:length]


def _open(place: str, prefixes: Sequence[str]) -> BinaryIO:
    """`place` as `allowed` gives it. A local one by the system alone: fsspec reads more into a name, such as ~."""
    if _WEB.match(place):
        return _download(place, prefixes)
    path = Path(place)
    if not path.is_absolute():
        opened: BinaryIO = fsspec.open(place, "rb").open()
        return opened
    if path.exists() and not path.is_file():
        raise IsADirectoryError(place)  # or a device or pipe, which might never end
    return path.open("rb")


class _Redirects(HTTPRedirectHandler):
    """Follows a redirect only to where the job may read: a server must not send a worker into another network."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.prefixes = prefixes

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if allowed(newurl, self.prefixes) is None:
            raise RowError(
                "path_refused", f"redirects to {_shown(newurl)}, and input.allow_media_prefixes has no prefix of it"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, prefixes: Sequence[str]) -> BinaryIO:
    """The answer to a GET of `url`; a user and password in it go to its own host alone."""
    parts = urlsplit(quote(url, safe="%/:=&?~#+!$,;'@()*[]"))
    user, _, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers={"User-Agent": "hfbatch"})
    if user:
        request.add_unredirected_header("Authorization", "Basic " + b64encode(unquote(user).encode()).decode())
    answer: BinaryIO = build_opener(_Redirects(prefixes)).open(request, timeout=_SILENCE_S)
    return answer


def allowed(path: str, prefixes: Sequence[str]) -> str | None:
    """Where the file at `path` lies, if that is below one of `prefixes`: a URL, or the path with its links followed.

    ValueError where no file can have that name.
    """
    if _climbs(path) or "::" in path or ("://" in path and _CONTROL.search(path)):
        return None
    place = _place(path)
    return place if any(_below(place, _place(prefix)) for prefix in prefixes) else None


def _climbs(path: str) -> bool:
    """Whether any library or server may read `..` in it: behind one decoding or two, a backslash, with `;x` behind."""
    return any(part.partition(";")[0] == ".." for part in re.split(r"[/\\]", unquote(unquote(path))))


def _place(path: str) -> str:
    """A URL as it is; anything else, and file:// too, as an absolute path with its links followed."""
    local = _FILE.match(path)
    if local is None and _SCHEME.match(path):
        return path
    return os.path.realpath(path[local.end() :] if local else path)


def _below(place: str, prefix: str) -> bool:
    return place == prefix or place.startswith(prefix.rstrip("/") + "/")

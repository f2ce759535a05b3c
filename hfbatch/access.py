"""One way to a URL: open it, fingerprint it, and tell what went wrong without showing a secret.

fsspec's back ends raise the exceptions of their own libraries (botocore, aiohttp, huggingface_hub ...). `reporting`
turns all of them into StorageError or AccessRefused, so that nothing else in hfbatch needs to know these libraries.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from hfbatch.errors import AccessRefused, HfbatchError, StorageError
from hfbatch.store_errors import is_refusal

_USER = re.compile(r"((?<!\w)\w+://)[^/\s@:]*:\S*@")  # an AWS secret may hold '/'
_WEB_USER = re.compile(r"(https?://)[^/\s@?'\"]+@")  # a token alone
_WEB_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")  # a presigned URL keeps its signature here
_QUERY = re.compile(r"((?<!\w)\w+://[^\s?'\"]+)\?[^\s'\"?=]*=[^\s'\"]*")  # elsewhere `?` may be a glob's
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss"})
_SECRET_KEY = re.compile(r"[?&][^=&]*(sig|token|secret|passw|credential|key)[^=&]*=", re.IGNORECASE)
_CONTENT_KEYS = (
    *("ETag", "etag", "blob_id", "sha256", "md5Hash", "content_hash", "Content-MD5", "checksum"),
    "generation",  # GCS: a number that every write raises
)


def redact(text: str) -> str:
    """`text` (a URL, or a message that holds some) with passwords and query strings replaced by `***`."""
    for pattern, shown in ((_USER, r"\1***@"), (_WEB_USER, r"\1***@"), (_WEB_QUERY, r"\1?***"), (_QUERY, r"\1?***")):
        text = pattern.sub(shown, text)
    return text


def redact_all(value: Any) -> Any:
    """Plain data (dicts, lists, texts ...) with every text redacted, for what is written down."""
    if isinstance(value, Mapping):
        return {key: redact_all(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(each) for each in value]
    return redact(value) if isinstance(value, str) else value


def credentials_in(url: str, *, stored: bool) -> bool:
    """Whether `url` holds credentials that belong elsewhere.

    `stored`: it will be written down as it is, so it may hold nothing that `redact` would hide. Else it is only
    opened, and shown and identified as `redact(url)`: a signed web address may stay, a bucket has other ways.
    """
    for part in url.split("::"):
        in_bucket = part.partition("://")[0].lower() in BUCKETS and (_USER.match(part) or _SECRET_KEY.search(part))
        if in_bucket or (stored and redact(part) != part):
            return True
    return False


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url` and the path in it. ValueError: unknown scheme; ImportError: not installed."""
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


@contextmanager
def open_seekable(url: str) -> Iterator[IO[bytes]]:
    """The file, for a reader that knows which bytes it wants: no read-ahead.

    Not memory-mapped: a file cut short by another program is then an error, not a SIGBUS that kills the worker.
    """
    fs, path = open_filesystem(url)
    if is_local(fs):
        with pa.OSFile(path) as local:
            yield local
    else:
        with fs.open(path, "rb", cache_type="none") as remote:
            yield remote


def is_local(fs: Any) -> bool:
    """Whether files of `fs` have plain paths on this machine."""
    return isinstance(fs, LocalFileSystem)


def fingerprint(fs: Any, path: str, info: Mapping[str, Any]) -> str:
    """16 hex digits that change when the file's content does; the content itself is never read.

    Local: size and mtime in nanoseconds. Remote: the store's own content hash, else what fsspec calls `ukey`. A web
    server that tells no hash gives the time of the last change: `ukey` would be of the URL, whose signature differs
    every day.
    """
    if is_local(fs):
        stat = Path(path).stat()
        return digest(stat.st_size, stat.st_mtime_ns)
    known = next((str(info[key]).strip('"') for key in _CONTENT_KEYS if info.get(key)), None)
    if known is None and path.startswith(("http://", "https://")):
        known = info.get("Last-Modified") or redact(path)
    return digest(info.get("size"), known or fs.ukey(path))


def digest(*parts: object) -> str:
    """16 hex digits over the parts' representations."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextmanager
def reporting(url: str, *passing: type[Exception]) -> Iterator[None]:
    """Any failure inside becomes StorageError, or AccessRefused, that names `url`; `passing` and ours pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (HfbatchError, MemoryError, *passing)):
            raise
        raise failure(url, error) from error


def failure(url: str, error: BaseException) -> StorageError | AccessRefused:
    """What to raise for `error`, met while reading `url`."""
    place, reason = redact(url), redact(str(error).strip().partition("\n")[0]) or type(error).__name__
    if refused(error):
        return AccessRefused(
            f"{place}: access refused ({reason}); sign in (AWS_PROFILE, HF_TOKEN, file permissions ...) and run again"
        )
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{place}: the file is gone; put it back, or plan again")
    return StorageError(
        f"{place}: cannot be read ({type(error).__name__}: {reason}); if the file is damaged write it again, "
        "if the storage failed run again"
    )


def refused(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a refusal of credentials or rights."""
    while error is not None:
        if is_refusal(error):
            return True
        error = error.__cause__ or error.__context__
    return False

"""A Store over any fsspec URL; what counts as transient is said here, and retries below are off where they can be.

put-if-absent is one conditional PUT (`If-None-Match: *` on S3). fsspec's default for other file systems asks
"exists?" and then writes: two workers can both win without any probe noticing, so only those protocols are let
in whose `mode="create"` is one request to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import uuid
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from hfbatch.errors import StorageError, UnsafeStore
from hfbatch.store import Names, Store, checked_name
from hfbatch.store_errors import (
    TRANSIENT_STATUS,
    USE_INSTEAD,
    http_status,
    is_refusal,
    redact,
    storage_failure,
    with_retries,
)

ATOMIC_CREATE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
CALL_SECONDS = 120.0  # an answer's deadline, plus a second for each MB that moves: aiohttp's own read timeout is
LONG_SECONDS = 900.0  # at times not armed, so that a silent server held a PUT for ever (3 of 8 tries against moto)
LONG_CALLS = ("find", "cp_file")  # the server works through many keys, or through bytes that we do not see
MARK = "hfbatch-put"  # metadata of an object: which call made it
LARGEST = 5 << 30  # bytes: from here on s3fs would send several requests


def is_transient(error: Exception) -> bool:
    """Whether a second attempt may help. What carries no status (timeouts, broken connections) is tried again."""
    permanent = (FileNotFoundError, FileExistsError, IsADirectoryError, NotImplementedError, TypeError, ValueError)
    if isinstance(error, permanent) or is_refusal(error):
        return False
    status = http_status(error)
    return status is None or status in TRANSIENT_STATUS


class FsspecStore(Store):
    """A bucket or other remote folder. Its fsspec file system is made once in each process."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.protocol = url.partition("://")[0]
        try:
            fsspec.get_filesystem_class(self.protocol)
        except (ImportError, ValueError) as error:  # they say what to install, or that nobody knows the protocol
            raise StorageError(f"cannot open {self.url()}: {error}") from error

    def __reduce__(self) -> tuple[type[FsspecStore], tuple[str]]:
        return type(self), (self._url,)

    def url(self, name: str = "") -> str:
        """The URL without user info and query."""
        return redact(self._url) + (f"/{checked_name(name)}" if name else "")

    def probe(self) -> None:
        """Let in only protocols with an atomic create, then prove it."""
        if self.protocol == "memory":
            raise UnsafeStore(f"{self.url()}: memory:// lives in one process, workers would not see it; {USE_INSTEAD}")
        if self.protocol not in ATOMIC_CREATE:
            raise UnsafeStore(
                f"{self.url()}: {self.protocol}:// has no atomic put-if-absent, so two workers could both commit; "
                + USE_INSTEAD
            )
        try:
            super().probe()
        except StorageError as error:
            if http_status(error) != 501:
                raise
            raise UnsafeStore(f"{self.url()}: it knows no conditional writes (HTTP 501); {USE_INSTEAD}") from error

    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        """One conditional PUT, whatever the size: the very request that `probe` has proven, never multipart.

        A refusal may come from an attempt of our own that landed unheard; the HTTP client repeats a PUT without
        telling, too. So on S3 each put marks its object, and the mark says whose it is that stands.
        """
        path, mark = self._path(name), uuid.uuid4().hex
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if size >= LARGEST:
            excess = f"its {size} bytes are too many for one request, which takes fewer than {LARGEST}"
            raise StorageError(f"cannot write {self.url(name)}: {excess}; lower shard_rows or shard_bytes")
        body = data if isinstance(data, bytes) else data.read_bytes()
        is_s3 = self.protocol in ("s3", "s3a")
        options = {"chunksize": max(1, size), "Metadata": {MARK: mark}} if is_s3 else {}
        try:
            self._call("write", name, "pipe_file", path, body, mode="create", **options)
        except FileExistsError:
            return is_s3 and self._mark(name) == mark
        return True

    def copy_if_absent(self, source: str, target: str) -> bool:
        """A copy on the server's side, in parts where the object is large; it appears when the last one is there."""
        if self.size(target) is not None:
            return False
        self._call(f"copy {self.url(source)} to", target, "cp_file", self._path(source), self._path(target))
        return True

    def put(self, name: str, data: bytes) -> None:
        """Overwrite; object stores show the old or the new object, never a mixture."""
        self._call("write", name, "pipe_file", self._path(name), data)

    def get(self, name: str) -> bytes | None:
        """Fetch the whole object."""
        try:
            return bytes(self._call("read", name, "cat_file", self._path(name)))
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> Names:
        """Ask the server for every key below; placeholders of empty folders are no objects."""
        folder = self._path(prefix) if prefix else self._root
        self.fs.invalidate_cache()
        try:
            found = self._call("list", prefix, "find", folder)
        except FileNotFoundError:
            return []
        below = folder.rstrip("/") + "/"
        return sorted(path[len(self._root) + 1 :] for path in found if path.startswith(below))

    def delete(self, names: Iterable[str]) -> None:
        """Remove one after the other."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._call("delete", name, "rm_file", self._path(name))

    def open_input(self, name: str) -> BinaryIO:
        """Buffered ranged requests, each with its own retries and deadline."""
        size = self.size(name)
        if size is None:
            raise storage_failure("read", self.url(name), FileNotFoundError(errno.ENOENT, "no such object"))
        return io.BufferedReader(_RemoteFile(self, name, size), 1 << 16)

    def size(self, name: str) -> int | None:
        """Ask for the object's metadata."""
        self.fs.invalidate_cache()
        try:
            info = self._call("read", name, "info", self._path(name))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object."""
        return bytes(self._call("read", name, "cat_file", self._path(name), start=start, end=end))

    @cached_property
    def fs(self) -> Any:
        """The fsspec file system: no listing cache, and no retries below ours."""
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self.protocol in ("s3", "s3a"):
            own = fsspec.config.conf.get(self.protocol, {}).get("config_kwargs", {})
            options["config_kwargs"] = {**own, "retries": {"total_max_attempts": 1}}
        fs, _ = fsspec.core.url_to_fs(self._url, **options)
        if hasattr(fs, "retries"):
            fs.retries = 1
        return fs

    @cached_property
    def _root(self) -> str:
        return str(self.fs._strip_protocol(self._url)).rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked_name(name)}"

    def _mark(self, name: str) -> str | None:
        try:
            found: str | None = self._call("read", name, "getxattr", self._path(name), MARK)
        except FileNotFoundError:
            return None
        return found

    def _call(self, act: str, name: str, method: str, *args: Any, **options: Any) -> Any:
        """fs.method(...), retried. FileExistsError, and FileNotFoundError when not writing, are not translated."""
        try:
            return with_retries(lambda: self._once(method, *args, **options), is_transient)
        except Exception as error:
            if isinstance(error, FileExistsError) or http_status(error) == 412:
                raise FileExistsError(self.url(name)) from error
            if isinstance(error, FileNotFoundError) and act in ("read", "list", "delete"):
                raise
            raise storage_failure(act, self.url(name), error) from error

    def _once(self, method: str, *args: Any, **options: Any) -> Any:
        """fs.method(...) under a deadline, after which the request is cancelled, not left to land later."""
        if not isinstance(self.fs, AsyncFileSystem):
            return getattr(self.fs, method)(*args, **options)
        moved = (
            sum(len(arg) for arg in args if isinstance(arg, bytes)) + options.get("end", 0) - options.get("start", 0)
        )
        seconds = LONG_SECONDS if method in LONG_CALLS else CALL_SECONDS + moved / 1e6
        call = getattr(self.fs, f"_{method}")

        async def bounded() -> Any:
            return await asyncio.wait_for(call(*args, **options), seconds)

        return sync(self.fs.loop, bounded)


class _RemoteFile(io.RawIOBase):
    """A remote object as a seekable file; each read is one ranged request with the store's retries."""

    def __init__(self, store: FsspecStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._store.read_range(self._name, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

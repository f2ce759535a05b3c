"""A Store over any fsspec URL; retries, and what counts as transient, are here and nowhere below.

put-if-absent is one conditional PUT (`If-None-Match: *` on S3). fsspec's default for other file systems asks
"exists?" and then writes: two workers can both win without any probe noticing, so only those protocols are let
in whose `mode="create"` is one request to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import itertools
import random
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from hfbatch.errors import StorageError, UnsafeStore
from hfbatch.store import USE_INSTEAD, Names, Store, checked_name
from hfbatch.store_errors import http_status, is_refusal, redact, storage_failure

T = TypeVar("T")

ATOMIC_CREATE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)  # upper ends of the random waits between attempts
CALL_SECONDS = 120.0  # an answer's deadline, plus a second for each MB that moves: aiohttp's own read timeout is
LIST_SECONDS = 900.0  # at times not armed, so that a silent server held a PUT for ever (3 of 8 tries against moto)
TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # 409: S3's "a conflicting write is under way"


def with_retries(call: Callable[[], T], transient: Callable[[Exception], bool]) -> T:
    """call(), repeated while it fails transiently: at most 6 attempts, exponential backoff with full jitter."""
    for attempt in itertools.count():
        try:
            return call()
        except Exception as error:
            if attempt >= len(RETRY_SECONDS) or not transient(error):
                raise
        time.sleep(random.uniform(0, RETRY_SECONDS[attempt]))
    raise AssertionError("unreachable: count() does not end")


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
        super().probe()

    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        """One conditional PUT, whatever the size: the very request that `probe` has proven, never multipart.

        S3 takes 5 GiB in one request.
        """
        body = data if isinstance(data, bytes) else data.read_bytes()
        options = {"chunksize": max(1, len(body))} if self.protocol in ("s3", "s3a") else {}
        try:
            self._call("write", name, "pipe_file", self._path(name), body, mode="create", **options)
        except FileExistsError:
            return False
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

    def _call(self, act: str, name: str, method: str, *args: Any, **options: Any) -> Any:
        """fs.method(...), retried. Only FileExistsError, and FileNotFoundError when reading, are not translated."""
        try:
            return with_retries(lambda: self._once(method, *args, **options), is_transient)
        except Exception as error:
            if isinstance(error, FileExistsError) or http_status(error) == 412:
                raise FileExistsError(self.url(name)) from error
            if isinstance(error, FileNotFoundError) and act != "write":
                raise
            raise storage_failure(act, self.url(name), error) from error

    def _once(self, method: str, *args: Any, **options: Any) -> Any:
        """fs.method(...) under a deadline, after which the request is cancelled, not left to land later."""
        if not isinstance(self.fs, AsyncFileSystem):
            return getattr(self.fs, method)(*args, **options)
        moved = (
            sum(len(arg) for arg in args if isinstance(arg, bytes)) + options.get("end", 0) - options.get("start", 0)
        )
        seconds = LIST_SECONDS if method == "find" else CALL_SECONDS + moved / 1e6
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

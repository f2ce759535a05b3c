"""The few storage operations on which exactly-once rests, over local disk and (in store_remote.py) fsspec.

All of the commit protocol stands on one of them: `put_if_absent`. On a local disk it is `link()`, which POSIX
makes fail when the name exists; on S3 and the like it is one conditional PUT. `probe` proves it before a run.

Names are relative POSIX paths inside the root and may not leave it. Messages never show user info or query
strings of a URL.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

from hfbatch import disk
from hfbatch.errors import UnsafeStore
from hfbatch.store_errors import USE_INSTEAD, storage_failure, with_retries

Names: TypeAlias = list[str]  # inside the classes `list` is a method

TMP = "_hfbatch/tmp"  # half-written files of a local store; `sweep` removes what killed writers left there


class Store(ABC):
    """A folder of whole objects. Picklable: workers open their own connections."""

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        """Create `name` whole, or leave what stands there. True: created; False: it already existed.

        Exact even where an answer was lost, on a local disk and on S3; on other remote stores False may then be
        one's own. Safe to repeat after any error: what stands may be one's own then too.
        """

    @abstractmethod
    def copy_if_absent(self, source: str, target: str) -> bool:
        """Give a whole object a second name, without moving its bytes where the store can. False: target existed.

        The target appears whole or not at all. All who copy to one target must copy the same bytes: on a remote
        store two that come at the same time both write. Safe to repeat. StorageError without a source, unless the
        target is there.
        """

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write `name`, replacing what stands there in one step."""

    @abstractmethod
    def get(self, name: str) -> bytes | None:
        """The content, or None where there is no such object."""

    @abstractmethod
    def list(self, prefix: str) -> Names:
        """Names of all objects below the folder `prefix` ("" is the root), recursive, sorted, never cached.

        They are relative to the root, as every method here takes them.
        """

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; one that is absent is fine."""

    @abstractmethod
    def open_input(self, name: str) -> BinaryIO:
        """A seekable binary file; StorageError where there is none."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of the object, or None where there is none."""

    @abstractmethod
    def url(self, name: str = "") -> str:
        """Where `name` is, for messages: without user info and query."""

    def sweep(self, older_than_s: float) -> Names:
        """Remove half-written files that nobody has touched for so long; their names. Most stores keep none."""
        return []

    def probe(self) -> None:
        """Prove that put-if-absent works here, else UnsafeStore. Leaves nothing behind."""
        name, first, second = f"_hfbatch/probe/{uuid.uuid4().hex}", uuid.uuid4().bytes, uuid.uuid4().bytes
        try:
            self.put_if_absent(name, first)
            refused = not self.put_if_absent(name, second)
            kept = self.get(name) == first
        finally:
            self.delete([name])
        if not (refused and kept):
            raise UnsafeStore(
                f"{self.url()}: a second put-if-absent of one name was not refused, so two workers could both commit; "
                + USE_INSTEAD
            )


def open_store(url: str) -> Store:
    """The store at a path or any fsspec URL. Nothing is read or created yet; `probe` before writing."""
    protocol, separator, path = url.partition("://")
    if not separator:
        return LocalStore(Path(os.path.abspath(Path(url).expanduser())))  # noqa: PTH100 (resolve() would follow links)
    if protocol in ("file", "local"):
        return LocalStore(Path("/" + path.removeprefix("localhost/").lstrip("/")))
    from hfbatch.store_remote import FsspecStore  # here: it needs Store, and local jobs need no fsspec

    return FsspecStore(url)


class LocalStore(Store):
    """A folder on a disk that all workers see."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def url(self, name: str = "") -> str:
        """The absolute path."""
        return str(self._path(name) if name else self.root)

    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        """Write a synced temporary file, then link() it to its name. Exact even on NFS."""
        path = self._path(name)
        with self._failures("write", name):
            disk.make_folder(path.parent, self.root)
            created = False
            if not os.path.lexists(path):
                with self._temporary(data) as temporary:
                    created = disk.link_if_absent(temporary, path)
            disk.sync_folder(path.parent)  # also when refused: what the caller now relies on must survive a power cut
            return created

    def copy_if_absent(self, source: str, target: str) -> bool:
        """link(): no byte moves, and the source may go. What may not be linked (another user's file) is copied."""
        path = self._path(target)
        with self._failures(f"copy {self.url(source)} to", target):
            disk.make_folder(path.parent, self.root)
            try:
                created = not os.path.lexists(path) and disk.link_if_absent(self._path(source), path)
            except UnsafeStore:
                return self.put_if_absent(target, self._path(source))
            disk.sync_folder(path.parent)
            return created

    def put(self, name: str, data: bytes) -> None:
        """Write a synced temporary file, then rename it over what stands there."""
        path = self._path(name)
        with self._failures("write", name), self._temporary(data) as temporary:
            disk.make_folder(path.parent, self.root)
            disk.rename(temporary, path)
            disk.sync_folder(path.parent)

    def get(self, name: str) -> bytes | None:
        """Read the whole file."""
        with self._failures("read", name):
            try:
                return disk.retried(self._path(name).read_bytes)()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str) -> Names:
        """Walk the folder; symlinked folders are not entered."""
        with self._failures("list", prefix):
            found = disk.files_below(self._path(prefix) if prefix else self.root)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def delete(self, names: Iterable[str]) -> None:
        """Unlink, then sync the folders. Empty folders stay: removing them would race with writers."""
        folders = set()
        for name in names:
            path = self._path(name)
            folders.add(path.parent)
            with self._failures("delete", name), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                disk.retried(path.unlink)()
        with self._failures("delete in", ""):
            for folder in folders:
                if folder.is_dir():
                    disk.sync_folder(folder)

    def sweep(self, older_than_s: float) -> Names:
        """Remove what killed writers left in `_hfbatch/tmp`."""
        limit, old = time.time() - older_than_s, []
        for name in self.list(TMP):
            with self._failures("read", name), contextlib.suppress(FileNotFoundError):  # its writer was faster
                if self._path(name).stat().st_mtime < limit:
                    old.append(name)
        self.delete(old)
        return old

    def open_input(self, name: str) -> BinaryIO:
        """Open the file itself."""
        path = self._path(name)
        with self._failures("read", name):
            return with_retries(lambda: path.open("rb"), disk.is_passing)

    def size(self, name: str) -> int | None:
        """Ask stat(); a folder has no size."""
        with self._failures("read", name):
            try:
                found = disk.retried(self._path(name).stat)()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)

    @contextlib.contextmanager
    def _temporary(self, data: bytes | Path) -> Iterator[Path]:
        """A synced file with `data` on the store's own disk, gone afterwards."""
        folder = self.root / TMP
        disk.make_folder(folder, self.root)
        path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            disk.write_synced(path, data)
            yield path
        finally:
            with contextlib.suppress(OSError):  # it is not in the way of what was asked; `sweep` finds it
                disk.retried(path.unlink)(missing_ok=True)

    @contextlib.contextmanager
    def _failures(self, act: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_failure(act, self.url(name), error) from error


def checked_name(name: str) -> str:
    """`name` itself, if it is a plain relative path that stays inside the root; else ValueError."""
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{name!r} is no name in a store; write a relative path such as 'data/x.parquet', without '..'"
        )
    return str(PurePosixPath(*parts))

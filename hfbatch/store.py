"""The few storage operations on which exactly-once rests, over local disk and (in store_remote.py) fsspec.

All of the commit protocol stands on one of them: `put_if_absent`. On a local disk it is `link()`, which POSIX
makes fail when the name exists; on S3 and the like it is one conditional PUT. `probe` proves it before a run.

Names are relative POSIX paths inside the root and may not leave it. Messages never show user info or query
strings of a URL.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

from hfbatch.errors import UnsafeStore
from hfbatch.store_errors import storage_failure

Names: TypeAlias = list[str]  # inside the classes `list` is a method

TMP = "_hfbatch/tmp"  # half-written files of a local store; safe to delete when no run is at work
USE_INSTEAD = "use a local disk, or an S3-compatible bucket with conditional writes (If-None-Match)"


class Store(ABC):
    """A folder of whole objects. Picklable: workers open their own connections."""

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        """Create `name` whole, or leave what stands there. True: created; False: it already existed.

        Safe to repeat after any error. On a remote store False may mean that an earlier attempt of one's own
        landed unheard (its answer was lost): who must know whose it is compares `get(name)` with what was put.
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
            make_folder(path.parent)
            created = False
            if not os.path.lexists(path):
                with self._temporary(data) as temporary:
                    created = link_if_absent(temporary, path)
            sync_folder(path.parent)  # also when refused: what the caller now relies on must survive a power cut
            return created

    def put(self, name: str, data: bytes) -> None:
        """Write a synced temporary file, then rename it over what stands there."""
        path = self._path(name)
        with self._failures("write", name), self._temporary(data) as temporary:
            make_folder(path.parent)
            temporary.replace(path)
            sync_folder(path.parent)

    def get(self, name: str) -> bytes | None:
        """Read the whole file."""
        with self._failures("read", name):
            try:
                return self._path(name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str) -> Names:
        """Walk the folder; symlinked folders are not entered."""
        folder = self._path(prefix) if prefix else self.root
        with self._failures("list", prefix):
            found = [Path(at, file) for at, _, files in os.walk(folder, onerror=_unless_absent) for file in files]
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def delete(self, names: Iterable[str]) -> None:
        """Unlink, then sync the folders. Empty folders stay: removing them would race with writers."""
        folders = set()
        for name in names:
            path = self._path(name)
            with self._failures("delete", name), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                folders.add(path.parent)
        with self._failures("delete in", ""):
            for folder in folders:
                sync_folder(folder)

    def open_input(self, name: str) -> BinaryIO:
        """Open the file itself."""
        with self._failures("read", name):
            return self._path(name).open("rb")

    def size(self, name: str) -> int | None:
        """Ask stat(); a folder has no size."""
        path = self._path(name)
        with self._failures("read", name):
            return path.stat().st_size if path.is_file() else None

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)

    @contextlib.contextmanager
    def _temporary(self, data: bytes | Path) -> Iterator[Path]:
        """A synced file with `data` on the store's own disk, gone afterwards."""
        folder = self.root / TMP
        make_folder(folder)
        path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with path.open("xb") as file, io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

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


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that they survive a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def link_if_absent(source: Path, target: Path) -> bool:
    """Give a finished file its final name. False: the name is taken. UnsafeStore: no hard links here."""
    try:
        os.link(source, target)
    except FileExistsError:
        return source.stat().st_nlink == 2  # NFS: the link was made, its answer lost, the repeat refused
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        raise UnsafeStore(
            f"{target.parent}: this file system has no hard links, so there is no put-if-absent; {USE_INSTEAD}"
        ) from error
    return True


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error

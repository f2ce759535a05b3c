"""Files and folders on a local or network disk: every step is safe to repeat, and no power cut undoes what is done.

A name is given only to a file whose bytes are synced, and the folders above the name are synced afterwards: so at
no moment does a cut leave a name with half its content, and what was reported as done is there after one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from hfbatch.errors import UnsafeStore
from hfbatch.store_errors import USE_INSTEAD, with_retries

P = ParamSpec("P")
T = TypeVar("T")

# What network file systems recover from. EIO is not among them: once a sync has reported it, the next sync of the
# same lost bytes says that all is well.
PASSING = frozenset({errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT})
NO_LINK = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def is_passing(error: Exception) -> bool:
    """Whether a second attempt may help."""
    return isinstance(error, OSError) and error.errno in PASSING


def retried(call: Callable[P, T]) -> Callable[P, T]:
    """`call`, repeated while the disk fails in passing."""

    @functools.wraps(call)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        return with_retries(lambda: call(*args, **kwargs), is_passing)

    return repeated


@retried
def write_synced(path: Path, data: bytes | Path) -> None:
    """Fill the file `path`, which is nobody else's, with bytes or with a copy of another file."""
    with path.open("wb") as file, io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


@retried
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


def make_folder(path: Path, root: Path) -> None:
    """Make `path`, at or below `root`, with all that is missing above it.

    Folders below `root` that exist are synced too: whoever made them a moment ago may not have come to it.
    """
    for folder in (*reversed(path.parents), path):
        if folder.is_dir() and root not in folder.parents:
            continue
        with contextlib.suppress(FileExistsError):
            retried(folder.mkdir)()
        sync_folder(folder.parent)


@retried
def link_if_absent(source: Path, target: Path) -> bool:
    """Give a finished file one more name. False: the name is taken by another. UnsafeStore: no hard links here."""
    try:
        os.link(source, target)
    except FileExistsError:
        return source.samefile(target)  # the link was made, its answer lost, the repeat refused
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        raise UnsafeStore(
            f"{target.parent}: this file system has no hard links, so there is no put-if-absent; {USE_INSTEAD}"
        ) from error
    return True


def rename(source: Path, target: Path) -> None:
    """Give a finished file its final name, away from what has it now."""
    own = retried(source.stat)()
    try:
        retried(source.replace)(target)
    except FileNotFoundError:  # renamed, the answer lost, the repeat finds nothing to rename
        if not os.path.samestat(own, target.stat()):
            raise


@retried
def files_below(folder: Path) -> list[Path]:
    """All files in a folder and those below it; symlinked folders are not entered; none where there is no folder."""
    return [Path(at, file) for at, _, files in os.walk(folder, onerror=_unless_absent) for file in files]


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error

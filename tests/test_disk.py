"""disk.py, under a store: what passes and what does not, full disks, power cuts."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfbatch import store_errors
from hfbatch.errors import HfbatchError, StorageError
from hfbatch.store import Store, open_store
from tests.failing import failing


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT])
def test_a_network_disk_that_recovers_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(store_errors, "RETRY_SECONDS", (0.001,) * 9)
    monkeypatch.setattr(os, "fsync", failing(calls, OSError(number, os.strerror(number)), times=3))
    assert open_store(str(tmp_path)).put_if_absent("a", b"1") is True
    assert len(calls) > 3


@pytest.mark.parametrize("landed", [True, False])
def test_a_rename_whose_source_is_gone_counts_only_if_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    store, replace = open_store(str(tmp_path)), os.replace
    store.put("a", b"old")

    def lose(source: Path, target: Path) -> None:
        replace(source, target if landed else tmp_path / "elsewhere")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "replace", lose)
    if landed:
        store.put("a", b"new")
        assert store.get("a") == b"new"
    else:
        with pytest.raises(StorageError, match=r"cannot write .*/a: No such file"):
            store.put("a", b"new")
        assert store.get("a") == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_does_not_pass_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", failing(calls, OSError(number, os.strerror(number))))
    with pytest.raises(HfbatchError) as caught:
        open_store(str(tmp_path)).put("a", b"1")
    assert caught.value.exit_code == (77 if number == errno.EACCES else 74)
    assert len(calls) == 1


# a full disk

FULL = """
import json, os, sys
from pathlib import Path
from hfbatch.errors import HfbatchError
from hfbatch.store import open_store

disk, spool = Path(sys.argv[1]), Path(sys.argv[2])
store, told = open_store(str(disk / "out")), []

def attempt(call, *args):
    try:
        return told.append(call(*args))
    except HfbatchError as error:
        told.append([error.exit_code, str(error)])

store.put_if_absent("data/kept", b"kept")
store.put("CURRENT", b"old")
attempt(store.put_if_absent, "data/bytes", bytes(2 << 20))
attempt(store.put_if_absent, "data/file", spool)
attempt(store.put, "CURRENT", bytes(2 << 20))
(disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))  # not a byte is left now
attempt(store.put_if_absent, "data/small", b"small")
attempt(store.copy_if_absent, "data/kept", "data/second name")
left = [path.relative_to(disk / "out").as_posix() for path in (disk / "out").rglob("*") if path.is_file()]
state = [sorted(left), store.get("data/kept").decode(), store.get("CURRENT").decode()]
(disk / "filler").unlink()
attempt(store.put_if_absent, "data/small", b"small")
json.dump([told, state], sys.stdout)
"""


def test_a_full_disk_is_named_keeps_what_is_committed_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk, spool = tmp_path / "disk", tmp_path / "spool"
    disk.mkdir()
    spool.write_bytes(bytes(2 << 20))
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(disk)]
    try:
        subprocess.run([*mounted, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine lets nobody mount a small disk in a namespace of their own: {error}")
    child = subprocess.run([*mounted, sys.executable, "-c", FULL, disk, spool], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    told, (left, kept, current) = json.loads(child.stdout)
    for (code, message), name in zip(told[:4], ("data/bytes", "data/file", "CURRENT", "data/small"), strict=True):
        assert code == 74
        assert message == (
            f"cannot write {disk}/out/{name}: No space left on device: the disk is full; free space, then the same "
            "command resumes: what is committed stays"
        )
    assert left[:2] == ["CURRENT", "data/kept"]
    assert told[4] is True or told[4][0] == 74  # a link may need no byte
    assert left[2:] == (["data/second name"] if told[4] is True else [])
    assert (kept, current) == ("kept", "old")
    assert told[5] is True


# power cuts


class Trace:
    """What a disk is told, in order: (folder, name, file) for each new name, (folder or file, size) for each sync."""

    def __init__(self, patch: pytest.MonkeyPatch, deaf_to: Callable[[int], bool] = lambda mode: False) -> None:
        self.events: list[tuple[int, ...] | tuple[int, str, int, int]] = []
        self.deaf_to = deaf_to
        for name in ("link", "replace", "mkdir", "fsync"):
            patch.setattr(os, name, self.traced(getattr(os, name), getattr(self, name)))

    def traced(self, call: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def both(*args: Any, **options: Any) -> Any:
            answer = call(*args, **options)
            note(*args)
            return answer

        return both

    def link(self, _: Path, target: Path) -> None:
        found = Path(target).stat()
        self.events.append((Path(target).parent.stat().st_ino, Path(target).name, found.st_ino, found.st_size))

    replace = link

    def mkdir(self, path: Path, *_: object) -> None:
        self.link(path, path)

    def fsync(self, opened: int) -> None:
        found = os.fstat(opened)
        if not self.deaf_to(found.st_mode):
            self.events.append((found.st_ino, found.st_size))

    def cuts(self, top: Path, upto: int | None = None) -> Iterator[dict[str, bool]]:
        """All that a cut may leave after any of the events (after number `upto`): name -> whether its bytes are there.

        A folder's names since its last sync may each be there or not. A file's bytes are there as of its last sync.
        """
        ends = range(len(self.events) + 1) if upto is None else (upto,)
        for end in ends:
            past = self.events[:end]
            sure, open_names = [], []
            for at, event in enumerate(past):
                if len(event) == 4:
                    synced = any(later[0] == event[0] and len(later) == 2 for later in past[at:])
                    (sure if synced else open_names).append((at, event))
            sizes = {event[0]: event[1] for event in past if len(event) == 2}
            for chosen in itertools.product((False, True), repeat=len(open_names)):
                kept = sorted([*sure, *itertools.compress(open_names, chosen)])
                yield self.tree(top.stat().st_ino, "", [event for _, event in kept], sizes)

    def tree(self, folder: int, path: str, entries: list[Any], sizes: dict[int, int]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for at, name, inode, size in entries:
            if at == folder:
                found[path + name] = sizes.get(inode) == size
                found |= self.tree(inode, f"{path}{name}/", entries, sizes)
        return found


def objects(state: dict[str, bool]) -> dict[str, bool]:
    return {name: whole for name, whole in state.items() if Path(name).suffix == ".bin"}


PUTS: dict[str, Callable[[Store], Any]] = {
    "put_if_absent": lambda store: store.put_if_absent("data/deep/x.bin", b"content"),
    "put": lambda store: store.put("data/deep/x.bin", b"content"),
    "copy_if_absent": lambda store: (store.put("y.bin", b"content"), store.copy_if_absent("y.bin", "data/deep/x.bin")),
}


def traced(tmp_path: Path, put: str, deaf_to: Callable[[int], bool]) -> tuple[Trace, Path]:
    """A put into an output whose folder another process has just made, and not yet synced."""
    (tmp_path / "out/_hfbatch/tmp").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        trace = Trace(patch, deaf_to)
        (tmp_path / "out/data").mkdir()
        PUTS[put](open_store(str(tmp_path / "out")))
    return trace, tmp_path / "out"


@pytest.mark.parametrize("put", PUTS)
def test_a_power_cut_leaves_only_whole_objects_and_all_that_was_reported(tmp_path: Path, put: str) -> None:
    """Every prefix of what the disk was told, and every choice of what it had not yet written."""
    trace, top = traced(tmp_path, put, deaf_to=lambda mode: False)
    seen = [objects(state) for state in trace.cuts(top)]
    assert {} in seen
    assert all(whole for state in seen for whole in state.values())
    assert all("data/deep/x.bin" in state for state in trace.cuts(top, len(trace.events)))


def test_a_new_output_and_the_folders_above_it_survive_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(monkeypatch)
    open_store(str(tmp_path / "new/out")).put_if_absent("x.bin", b"content")
    assert all("new/out/x.bin" in state for state in trace.cuts(tmp_path, len(trace.events)))


def test_a_power_cut_never_takes_what_put_replaces(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("x.bin", b"old")
    with pytest.MonkeyPatch.context() as patch:
        trace = Trace(patch)
        trace.link(tmp_path / "x.bin", tmp_path / "x.bin")
        trace.events += [((tmp_path / "x.bin").stat().st_ino, 3), (tmp_path.stat().st_ino, 0)]
        begin = len(trace.events)
        store.put("x.bin", b"new, longer")
    for end in range(begin, len(trace.events) + 1):
        assert all(objects(state) == {"x.bin": True} for state in trace.cuts(tmp_path, end))


@pytest.mark.parametrize("put", ["put_if_absent", "put"])
def test_the_model_of_a_power_cut_sees_a_sync_that_is_missing(tmp_path: Path, put: str) -> None:
    trace, top = traced(tmp_path / "a", put, deaf_to=stat.S_ISREG)
    assert not all(whole for state in trace.cuts(top) for whole in objects(state).values())
    trace, top = traced(tmp_path / "b", put, deaf_to=stat.S_ISDIR)
    assert not all("data/deep/x.bin" in state for state in trace.cuts(top, len(trace.events)))

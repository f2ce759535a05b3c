"""store.py and store_remote.py: one contract, checked on a local disk and on a real S3 server."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import store_errors
from hfbatch.errors import AccessRefused, StorageError, UnsafeStore
from hfbatch.store import LocalStore, Store, open_store
from tests.fake_s3 import FakeS3, fake_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "RETRY_SECONDS", (0.01, 0.01))


@pytest.fixture
def bucket(s3: FakeS3, tmp_path: Path) -> Store:
    s3.faults.clear()
    s3.requests.clear()
    return open_store(f"{s3.url}{tmp_path}")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out")) if request.param == "local" else request.getfixturevalue("bucket")


def test_the_first_put_creates_and_the_second_is_refused(store: Store) -> None:
    assert store.put_if_absent("commits/a.json", b"first") is True
    assert store.put_if_absent("commits/a.json", b"second") is False
    assert store.get("commits/a.json") == b"first"


def test_a_file_is_put_whole_and_stays_where_it_was(store: Store, tmp_path: Path) -> None:
    spool = tmp_path / "spool.parquet"
    spool.write_bytes(os.urandom(3_000_000))
    assert store.put_if_absent("data/x.parquet", spool) is True
    spool_bytes = spool.read_bytes()
    spool.write_bytes(b"reused by the next shard")
    assert store.get("data/x.parquet") == spool_bytes
    assert store.put_if_absent("data/x.parquet", spool) is False


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.put_if_absent("empty", b"")
    assert store.get("empty") == b""
    assert store.size("empty") == 0
    assert not store.put_if_absent("empty", b"more")


def test_put_replaces(store: Store) -> None:
    store.put("_hfbatch/CURRENT", b"one")
    store.put("_hfbatch/CURRENT", b"two, longer")
    assert store.get("_hfbatch/CURRENT") == b"two, longer"


def test_what_is_absent_reads_as_none_and_lists_as_nothing(store: Store) -> None:
    assert store.get("no/such") is None
    assert store.size("no/such") is None
    assert store.list("no/such") == []
    store.put("a", b"x")
    assert store.get("a/below-a-file") is None
    assert store.list("a") == []
    store.delete(["no/such", "a/below-a-file"])


def test_names_are_listed_below_a_folder_sorted_and_fresh(store: Store) -> None:
    for name in ("data/b", "data/a/deep", "data/a!", "database/c", "top"):
        store.put(name, b"x")
    assert store.list("data") == ["data/a!", "data/a/deep", "data/b"]
    open_store(store.url()).put("data/from-another-process", b"x")
    assert "data/from-another-process" in store.list("data")
    store.delete(["data/b"])
    assert store.list("data") == ["data/a!", "data/a/deep", "data/from-another-process"]
    assert set(store.list("")) >= {"top", "database/c"}


def test_size_and_deletion(store: Store) -> None:
    store.put("x", b"12345")
    assert store.size("x") == 5
    store.delete(["x", "x"])
    assert store.get("x") is None
    assert store.size("x") is None


def test_a_second_name_is_given_once(store: Store) -> None:
    store.put_if_absent("staged/x", b"whole")
    assert store.copy_if_absent("staged/x", "data/x") is True
    assert store.copy_if_absent("staged/x", "data/x") is False
    store.put("staged/y", b"other")
    assert store.copy_if_absent("staged/y", "data/x") is False
    store.delete(["staged/x"])
    assert store.copy_if_absent("staged/x", "data/x") is False
    assert store.get("data/x") == b"whole"


def test_a_copy_of_nothing_is_an_error_that_names_both(store: Store) -> None:
    with pytest.raises(StorageError, match=r"cannot copy .*/no/such to .*/data/x: [Nn]o such .*; check the path"):
        store.copy_if_absent("no/such", "data/x")
    assert store.list("") == []


def test_what_a_killed_probe_left_is_listed(store: Store) -> None:
    store.put_if_absent("_hfbatch/probe/0123", b"x")
    assert store.list("_hfbatch/probe") == ["_hfbatch/probe/0123"]
    assert store.sweep(0) == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/.", "./a", "a/", "a\0b"])
def test_a_name_may_not_leave_the_root(store: Store, name: str) -> None:
    for operation in (
        store.get,
        store.size,
        store.open_input,
        lambda n: store.put(n, b""),
        lambda n: store.delete([n]),
    ):
        with pytest.raises(ValueError, match="no name in a store"):
            operation(name)
    with pytest.raises(ValueError, match="no name in a store"):
        store.put_if_absent(name, b"")


def test_parquet_is_read_through_open_input(store: Store, tmp_path: Path) -> None:
    table = pa.table({"n": range(100_000), "text": [f"row {n}" for n in range(100_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=20_000)
    store.put_if_absent("t.parquet", tmp_path / "t.parquet")
    with store.open_input("t.parquet") as file:
        parquet = pq.ParquetFile(file)
        assert parquet.read_row_group(3, columns=["n"])["n"][0].as_py() == 60_000
        assert parquet.read().equals(table)
        assert file.seek(-4, os.SEEK_END) > 0
        assert file.read() == b"PAR1"
        assert file.read() == b""


def test_opening_what_is_absent_names_it(store: Store) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*no/such\.parquet.*check the path"):
        store.open_input("no/such.parquet")


def test_one_of_eight_threads_wins(store: Store) -> None:
    stores = [pickle.loads(pickle.dumps(store)) for _ in range(8)]
    for name in ("race/1", "race/2", "race/3"):
        with ThreadPoolExecutor(8) as pool:
            puts = [pool.submit(stores[i].put_if_absent, name, b"by %d" % i) for i in range(8)]
        won = [put.result() for put in puts]
        assert won.count(True) == 1
        assert store.get(name) == b"by %d" % won.index(True)


def test_the_probe_passes_and_leaves_nothing(store: Store) -> None:
    store.probe()
    assert store.list("") == []


# local disk


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put_if_absent("a", b"1")
    store.put_if_absent("a", b"2")
    store.put("a", b"3")
    assert store.list("") == ["a"]


def test_a_copy_moves_no_byte_where_links_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, link = open_store(str(tmp_path)), os.link
    store.put("a", b"1")
    store.copy_if_absent("a", "b/c")
    assert (tmp_path / "a").samefile(tmp_path / "b/c")

    def link_only_new_files(source: Path, target: Path) -> None:
        if "tmp" not in source.parent.name:
            raise OSError(errno.EPERM, "another user's file")
        link(source, target)

    monkeypatch.setattr(os, "link", link_only_new_files)
    assert store.copy_if_absent("a", "d") is True
    assert store.copy_if_absent("a", "d") is False
    assert store.get("d") == b"1"
    assert not (tmp_path / "a").samefile(tmp_path / "d")


def test_what_killed_writers_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    code = """
        import os, stat, sys
        from hfbatch.store import open_store
        os.fsync = lambda opened: stat.S_ISREG(os.fstat(opened).st_mode) and os.kill(os.getpid(), 9)
        open_store(sys.argv[1]).put_if_absent("a", b"half")
    """
    tmp = tmp_path / "_hfbatch/tmp"
    tmp.mkdir(parents=True)
    (tmp_path / "_hfbatch/kept").write_bytes(b"no temporary file")
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path])
    assert child.returncode == -9
    (old,) = tmp.iterdir()
    assert open_store(str(tmp_path)).sweep(3600) == []
    os.utime(old, (0, 0))
    (tmp / "young").write_bytes(b"a live writer's")
    assert open_store(str(tmp_path)).sweep(3600) == [f"_hfbatch/tmp/{old.name}"]
    assert open_store(str(tmp_path)).list("") == ["_hfbatch/kept", "_hfbatch/tmp/young"]


def test_a_lost_answer_to_link_still_counts_as_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_and_lose_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    assert open_store(str(tmp_path)).put_if_absent("a", b"1") is True


def test_a_disk_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(UnsafeStore, match=r"no hard links.*use a local disk, or an S3-compatible bucket") as caught:
        open_store(str(tmp_path)).probe()
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, StorageError, "the disk is full; free space"),
        (errno.EDQUOT, StorageError, "the disk is full; free space"),
        (errno.EACCES, AccessRefused, "grant this user the right"),
        (errno.EIO, StorageError, "check the path, the disk"),
    ],
)
def test_a_failing_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], text: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=text) as caught:
        open_store(str(tmp_path)).put_if_absent("a/b", b"1")
    assert f"{tmp_path}/a/b" in str(caught.value)
    monkeypatch.undo()
    assert open_store(str(tmp_path)).list("") == []


def test_paths_and_file_urls_are_local_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("out", "./x/../out", str(tmp_path / "out"), f"file://{tmp_path}/out", f"local://{tmp_path}/out"):
        store = open_store(url)
        assert isinstance(store, LocalStore)
        assert store.url("a") == f"{tmp_path}/out/a"

"""store_remote.py and store_errors.py: what remote stores do besides the contract, and how their failures read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from hfbatch import store_errors, store_remote
from hfbatch.errors import AccessRefused, StorageError, UnsafeStore
from hfbatch.store import Store, open_store
from hfbatch.store_errors import redact
from hfbatch.store_remote import FsspecStore
from tests.fake_s3 import SILENT, TORN, UNHEARD, FakeS3, Fault, fake_s3


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


@pytest.mark.parametrize("status", [500, 503, 409, UNHEARD, TORN])
def test_transient_errors_are_tried_again(bucket: Store, s3: FakeS3, status: int) -> None:
    bucket.put("x", b"twelve bytes")
    s3.faults += [Fault("GET", status), Fault("GET", status)]
    assert bucket.get("x") == b"twelve bytes"
    assert s3.faults == []


@pytest.mark.parametrize("status", [500, 503, 409])
def test_a_refused_first_attempt_is_put_again(bucket: Store, s3: FakeS3, status: int) -> None:
    s3.faults.append(Fault("PUT", status))
    assert bucket.put_if_absent("x", b"mine") is True
    assert bucket.put_if_absent("x", b"other") is False
    assert bucket.get("x") == b"mine"


def test_a_put_that_succeeded_unheard_is_known_to_be_ones_own(bucket: Store, s3: FakeS3) -> None:
    s3.faults.append(Fault("PUT", UNHEARD))
    assert bucket.put_if_absent("x", b"mine") is True
    assert bucket.put_if_absent("x", b"mine") is False
    assert bucket.get("x") == b"mine"


def test_a_silent_server_is_given_up_and_asked_again(
    bucket: Store, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("warm", b"")
    monkeypatch.setattr(store_remote, "CALL_SECONDS", 0.5)
    s3.faults += [Fault("PUT", SILENT), Fault("GET", SILENT)]
    assert bucket.put_if_absent("x", b"mine") is True
    assert bucket.get("x") == b"mine"


def test_the_probe_is_not_fooled_by_a_lost_answer(bucket: Store, s3: FakeS3) -> None:
    s3.faults.append(Fault("PUT", UNHEARD))
    bucket.probe()
    assert s3.faults == []
    assert bucket.list("_hfbatch/probe") == []


def test_retries_end(bucket: Store, s3: FakeS3) -> None:
    s3.faults += [Fault("PUT", 503)] * 9
    with pytest.raises(StorageError, match=r"cannot write s3://bucket/.*/x: SlowDown, HTTP 503; .*run again"):
        bucket.put_if_absent("x", b"x")
    assert [method for method, _ in s3.requests] == ["PUT"] * 3


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "ExpiredToken")])
def test_refused_credentials_are_not_retried(bucket: Store, s3: FakeS3, status: int, code: str) -> None:
    s3.faults.append(Fault("PUT", status))
    with pytest.raises(AccessRefused, match=rf"{code}, HTTP {status}; log in, or grant") as caught:
        bucket.put_if_absent("x", b"x")
    assert caught.value.exit_code == 77
    assert len(s3.requests) == 1


def test_a_full_server_is_told_as_a_full_disk(bucket: Store, s3: FakeS3) -> None:
    s3.faults.append(Fault("PUT", 507))
    with pytest.raises(StorageError, match=r"XMinioStorageFull, HTTP 507: the disk is full; free space, then the same"):
        bucket.put("x", b"x")
    assert len(s3.requests) == 1


def test_an_object_that_needs_several_requests_is_refused_before_the_first(
    bucket: Store, s3: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_remote, "LARGEST", 10)
    (tmp_path / "spool").write_bytes(b"ten bytes.")
    for data in (b"ten bytes.", tmp_path / "spool"):
        with pytest.raises(StorageError, match=r"x: its 10 bytes are too many for one request.*lower shard_rows"):
            bucket.put_if_absent("x", data)
    assert s3.requests == []


def test_a_large_copy_that_breaks_in_the_middle_appears_whole(
    bucket: Store, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(range(256)) * (6 << 12)
    bucket.put_if_absent("x", body)
    monkeypatch.setattr(s3fs.core, "MANAGED_COPY_THRESHOLD", 1 << 20)  # over it: one request for each part
    s3.faults += [Fault("PUT", 503), Fault("PUT", UNHEARD)]
    assert bucket.copy_if_absent("x", "y") is True
    assert bucket.get("y") == body
    assert s3.faults == []
    assert bucket.copy_if_absent("gone", "y") is False


def test_a_missing_bucket_is_named(s3: FakeS3) -> None:
    with pytest.raises(StorageError, match=r"s3://nobody-made-this/x: NoSuchBucket, HTTP 404.*must exist"):
        open_store("s3://nobody-made-this").put_if_absent("x", b"x")


def test_a_large_object_is_one_conditional_request(bucket: Store, s3: FakeS3) -> None:
    body = bytes(101 << 20)  # over s3fs' own threshold for multipart
    assert bucket.put_if_absent("large", body) is True
    assert bucket.put_if_absent("large", body) is False
    assert [method for method, _ in s3.requests] == ["PUT", "PUT", "HEAD"]  # the last: is what stands our own?


def test_a_store_that_ignores_the_condition_is_refused(bucket: FsspecStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = bucket.fs._pipe_file
    monkeypatch.setattr(bucket.fs, "_pipe_file", lambda path, data, mode, **_: pipe(path, data))
    with pytest.raises(UnsafeStore, match=r"second put-if-absent of one name was not refused.*use a local disk"):
        bucket.probe()
    assert bucket.list("") == []


def test_a_server_that_does_not_know_the_condition_is_refused(bucket: Store, s3: FakeS3) -> None:
    s3.unconditional = True
    try:
        with pytest.raises(UnsafeStore, match="second put-if-absent of one name was not refused") as caught:
            bucket.probe()
    finally:
        s3.unconditional = False
    assert caught.value.exit_code == 78
    assert bucket.list("") == []


def test_a_server_that_refuses_conditional_writes_is_refused(bucket: Store, s3: FakeS3) -> None:
    s3.faults.append(Fault("PUT", 501))
    with pytest.raises(UnsafeStore, match=r"knows no conditional writes \(HTTP 501\); use a local disk") as caught:
        bucket.probe()
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("url", "text"),
    [("memory://out", "lives in one process"), ("ftp://user:secret@host/out", "ftp:// has no atomic put-if-absent")],
)
def test_stores_without_an_atomic_create_are_refused(url: str, text: str) -> None:
    with pytest.raises(UnsafeStore, match=text) as caught:
        open_store(url).probe()
    assert "use a local disk, or an S3-compatible bucket" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unknown_protocol_is_an_error_that_names_it() -> None:
    with pytest.raises(StorageError, match=r"cannot open nonsense://x: .*nonsense"):
        open_store("nonsense://x")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://key:se/cr?et@bucket/a", "s3://bucket/a"),
        ("https://hf_secret@host/x", "https://host/x"),
        ("https://host/x?sig=secret#secret", "https://host/x"),
        ("zip://a.zip::s3://k:secret@bucket/a?secret", "zip://a.zip::s3://bucket/a"),
        ("hf://datasets/owner/name@rev/x", "hf://datasets/owner/name@rev/x"),
        ("/plain/path?x@y", "/plain/path?x@y"),
    ],
)
def test_secrets_are_cut_from_urls(url: str, shown: str) -> None:
    assert redact(url) == shown

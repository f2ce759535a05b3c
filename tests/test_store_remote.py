"""store_remote.py and store_errors.py: what remote stores do besides the contract, and how their failures read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hfbatch import store_remote
from hfbatch.errors import AccessRefused, StorageError, UnsafeStore
from hfbatch.store import Store, open_store
from hfbatch.store_errors import redact
from hfbatch.store_remote import FsspecStore
from tests.fake_s3 import SILENT, UNHEARD, FakeS3, Fault, fake_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_remote, "RETRY_SECONDS", (0.01, 0.01))


@pytest.fixture
def bucket(s3: FakeS3, tmp_path: Path) -> Store:
    s3.faults.clear()
    s3.requests.clear()
    return open_store(f"{s3.url}{tmp_path}")


@pytest.mark.parametrize("status", [500, 503, 409, UNHEARD])
def test_transient_errors_are_tried_again(bucket: Store, s3: FakeS3, status: int) -> None:
    bucket.put("x", b"x")
    s3.faults += [Fault("GET", status), Fault("GET", status)]
    assert bucket.get("x") == b"x"


@pytest.mark.parametrize("status", [500, 503, 409])
def test_a_refused_first_attempt_is_put_again(bucket: Store, s3: FakeS3, status: int) -> None:
    s3.faults.append(Fault("PUT", status))
    assert bucket.put_if_absent("x", b"mine") is True
    assert bucket.put_if_absent("x", b"other") is False
    assert bucket.get("x") == b"mine"


def test_a_put_that_succeeded_unheard_is_safe_to_repeat(bucket: Store, s3: FakeS3) -> None:
    s3.faults.append(Fault("PUT", UNHEARD))
    assert bucket.put_if_absent("x", b"mine") is False  # as the contract says: compare the content
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


def test_refused_credentials_are_not_retried(bucket: Store, s3: FakeS3) -> None:
    s3.faults.append(Fault("PUT", 403))
    with pytest.raises(AccessRefused, match=r"AccessDenied, HTTP 403; log in, or grant") as caught:
        bucket.put_if_absent("x", b"x")
    assert caught.value.exit_code == 77
    assert len(s3.requests) == 1


def test_a_missing_bucket_is_named(s3: FakeS3) -> None:
    with pytest.raises(StorageError, match=r"s3://nobody-made-this/x: NoSuchBucket, HTTP 404.*must exist"):
        open_store("s3://nobody-made-this").put_if_absent("x", b"x")


def test_a_large_object_is_one_conditional_request(bucket: Store, s3: FakeS3) -> None:
    body = bytes(101 << 20)  # over s3fs' own threshold for multipart
    assert bucket.put_if_absent("large", body) is True
    assert bucket.put_if_absent("large", body) is False
    assert [method for method, _ in s3.requests] == ["PUT", "PUT"]


def test_a_store_that_ignores_the_condition_is_refused(bucket: FsspecStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = bucket.fs._pipe_file
    monkeypatch.setattr(bucket.fs, "_pipe_file", lambda path, data, mode, chunksize: pipe(path, data))
    with pytest.raises(UnsafeStore, match=r"second put-if-absent of one name was not refused.*use a local disk"):
        bucket.probe()
    assert bucket.list("") == []


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

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest

from hfbatch.access import failure, redact, reporting
from hfbatch.errors import AccessRefused, Conflict, StorageError
from hfbatch.files import FileProblem, check_unchanged, data_format, list_files
from tests.fake_s3 import fake_s3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/b.parquet", "data/a.parquet", "data/day=1/c.parquet", "data/_SUCCESS", "data/.tmp/x.parquet"):
        write(name)
    return tmp_path


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of an object store, as far as fsspec is concerned."""
    fs = fsspec.filesystem("memory")
    for name in ("x.jsonl", "y/z.jsonl", "_log.jsonl"):
        fs.pipe(f"/bucket/in/{name}", b'{"a": 1}\n')
    yield "memory://bucket/in"
    fs.rm("/bucket", recursive=True)


def write(name: str, content: bytes = b"x") -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)


def paths(*entries: str, format: str | None = None) -> list[str]:
    return [file.path for file in list_files(entries, format)]  # type: ignore[arg-type]


def problem(*entries: str, format: str | None = None) -> FileProblem:
    with pytest.raises(FileProblem) as caught:
        list_files(entries, format)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("data/a.parquet", ["data/a.parquet"]),
        ("./data/a.parquet", ["./data/a.parquet"]),
        ("data", ["data/a.parquet", "data/b.parquet", "data/day=1/c.parquet"]),
        ("data/", ["data/a.parquet", "data/b.parquet", "data/day=1/c.parquet"]),
        ("data/*.parquet", ["data/a.parquet", "data/b.parquet"]),
        ("data/**/*.parquet", ["data/a.parquet", "data/b.parquet", "data/day=1/c.parquet"]),
        ("data/**", ["data/a.parquet", "data/b.parquet", "data/day=1/c.parquet"]),
        ("data/day=*", ["data/day=1/c.parquet"]),
        ("*/[ab].parquet", ["data/a.parquet", "data/b.parquet"]),
        ("data/?.parquet", ["data/a.parquet", "data/b.parquet"]),
        ("data/.tmp/*", ["data/.tmp/x.parquet"]),
    ],
)
def test_files_globs_and_folders_are_named_as_the_job_file_names_them(
    folder: Path, entry: str, expected: list[str]
) -> None:
    assert paths(entry) == expected
    listed = list_files([entry], None)
    assert all(Path(file.url).is_absolute() and Path(file.url).samefile(file.path) for file in listed)
    assert {(file.size, file.format) for file in listed} == {(1, "parquet")}


def test_absolute_paths_and_file_urls_name_the_same_files(folder: Path) -> None:
    assert paths(f"{folder}/data/*.parquet") == [f"{folder}/data/{name}.parquet" for name in "ab"]
    [file] = list_files([f"file://{folder}/data/a.parquet"], None)
    assert (file.path, file.url) == (f"file://{folder}/data/a.parquet", f"{folder}/data/a.parquet")


def test_a_list_is_sorted_and_each_file_is_in_it_once(folder: Path) -> None:
    assert paths("data/b.parquet", "data/*.parquet", str(folder / "data/a.parquet")) == [
        *("data/a.parquet", "data/b.parquet")
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("", ["/x.jsonl", "/y/z.jsonl"]),
        ("/", ["/x.jsonl", "/y/z.jsonl"]),
        ("/*.jsonl", ["/x.jsonl"]),
        ("/**/*.jsonl", ["/x.jsonl", "/y/z.jsonl"]),
        ("/y/z.jsonl", ["/y/z.jsonl"]),
    ],
)
def test_any_fsspec_url_can_be_listed(bucket: str, entry: str, expected: list[str]) -> None:
    listed = list_files([bucket + entry], None)
    assert [file.path for file in listed] == [bucket + name for name in expected]
    assert all(file.url == file.path and file.format == "jsonl" and file.size == 9 for file in listed)


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(folder: Path) -> None:
    write("data/c[1].jsonl")
    assert paths("data/c[1].jsonl") == ["data/c[1].jsonl"]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.arrow", "arrow"),
        ("a.feather", "arrow"),
        ("a.json", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson.zst", "jsonl"),
        ("a.csv.bz2", "csv"),
        ("a.tsv", "csv"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("README.md", None),
    ],
)
def test_the_name_says_the_format(name: str, format: str | None) -> None:
    assert data_format(name) == format


def test_a_given_format_takes_a_file_of_any_name_and_a_folders_files_without_suffix(folder: Path) -> None:
    write("raw/part-00000")
    write("raw/notes.md")
    write("raw/more.csv")
    assert paths("raw/notes.md", format="jsonl") == ["raw/notes.md"]
    assert paths("raw", format="csv") == ["raw/more.csv", "raw/part-00000"]
    assert paths("raw") == ["raw/more.csv"]


def test_a_fingerprint_changes_with_the_file_and_only_then(folder: Path) -> None:
    [before] = list_files(["data/a.parquet"], None)
    check_unchanged(before)
    assert list_files(["data"], None)[0].fingerprint == before.fingerprint
    os.utime("data/a.parquet", ns=(1, 1))
    with pytest.raises(Conflict, match=r"data/a.parquet changed after it was planned .* run again"):
        check_unchanged(before)


def test_a_remote_fingerprint_changes_with_the_object(bucket: str) -> None:
    [before] = list_files([f"{bucket}/x.jsonl"], None)
    check_unchanged(before)
    fsspec.filesystem("memory").pipe("/bucket/in/x.jsonl", b'{"a": 2}\n')
    with pytest.raises(Conflict):
        check_unchanged(before)


def test_a_file_that_is_gone_is_a_storage_error(folder: Path) -> None:
    [file] = list_files(["data/a.parquet"], None)
    Path("data/a.parquet").unlink()
    with pytest.raises(StorageError, match=r"a.parquet: the file is gone"):
        check_unchanged(file)


@pytest.mark.parametrize(
    ("entry", "message", "fix"),
    [
        ("data/aa.parquet", "data/aa.parquet does not exist", "write data/a.parquet"),
        ("date/a.parquet", "date/a.parquet does not exist", "write data"),
        ("data/*.jsonl", "nothing matches data/*.jsonl", "data holds 2 .parquet files: write data/*.parquet"),
        ("date/*.parquet", "nothing matches date/*.parquet", "write data"),
        ("notes.md", "does not say the format", "set input.format"),
        ("empty.jsonl", "empty.jsonl is empty (0 bytes)", "leave it out"),
        ("docs", "folder docs holds no data file (a.md)", ".parquet"),
        ("  ", "an empty path names no file", "write a file"),
        ("s4://bucket/x", "Protocol not known: s4", "s3://"),
        ("memory://nowhere/x.jsonl", "memory://nowhere/x.jsonl does not exist", ""),
    ],
)
def test_what_names_no_data_is_told_with_the_nearest_name(folder: Path, entry: str, message: str, fix: str) -> None:
    write("notes.md")
    write("docs/a.md")
    write("empty.jsonl", b"")
    found = problem("data", entry)
    assert found.index == 1
    assert message in str(found)
    assert fix in (found.fix or "")


def test_a_remote_name_has_a_nearest_name_too(bucket: str) -> None:
    assert problem(f"{bucket}/xx.jsonl").fix == f"write {bucket}/x.jsonl"


def test_two_formats_are_refused_with_both_files(folder: Path) -> None:
    write("more/x.jsonl")
    found = problem("data", "more")
    assert found.index == 1
    assert str(found) == "two formats in one input: data/day=1/c.parquet is parquet, more/x.jsonl is jsonl"
    assert "input.format" in (found.fix or "")


def test_a_datasets_folder_is_one_file(folder: Path) -> None:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    made = Dataset.from_dict({"a": [1, 2]})
    made.save_to_disk("saved/train")
    for format in (None, "dataset"):
        [file] = list_files(["saved/*"], format)  # type: ignore[arg-type]
        assert (file.path, file.url, file.format) == ("saved/train", str(folder / "saved/train"), "dataset")
    check_unchanged(file)
    os.utime("saved/train/data-00000-of-00001.arrow", ns=(1, 1))
    with pytest.raises(Conflict, match="saved/train changed"):
        check_unchanged(file)
    DatasetDict({"train": made, "test": made}).save_to_disk("both")
    found = problem("both")
    assert (str(found), found.fix) == (
        "both holds the splits train, test; a job reads one",
        "write both/train or both/test",
    )
    assert "save_to_disk" in str(problem("data", format="dataset"))
    assert "is a file" in str(problem("data/a.parquet", format="dataset"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a.parquet", "https://***@host/a.parquet"),
        ("https://host/a.parquet?X-Amz-Signature=abc&b=c", "https://host/a.parquet?***"),
        ("az://c/a.parquet?sv=1&sig=abc", "az://c/a.parquet?***"),
        ("cannot read 'https://u:p@h/x?tok' now", "cannot read 'https://***@h/x?***' now"),
        ("s3://bucket/part-?.parquet", "s3://bucket/part-?.parquet"),
        ("hf://datasets/owner/name@main/x", "hf://datasets/owner/name@main/x"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("sftp://u:p@ss@host/x", "sftp://***@host/x"),
    ],
)
def test_secrets_are_never_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"failed at https://host/x?sig=secret ({status})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize("error", [ClientError(403), PermissionError("no"), NoCredentialsError("none")])
def test_a_refusal_of_credentials_has_its_own_error(error: Exception) -> None:
    message = r"s3://b/x: access refused .*AWS_PROFILE"
    with pytest.raises(AccessRefused, match=message) as caught, reporting("s3://b/x"):
        raise error
    assert "secret" not in str(caught.value)


def test_a_refusal_is_found_behind_a_missing_file() -> None:
    gone = FileNotFoundError("https://host/x")
    gone.__cause__ = ClientError(401)
    assert isinstance(failure("https://host/x", gone), AccessRefused)


def test_any_other_failure_is_a_storage_error_without_secrets() -> None:
    message = r"^s3://b/x\?\*\*\*: cannot be read \(ClientError"
    with pytest.raises(StorageError, match=message) as caught, reporting("s3://b/x?sig=secret"):
        raise ClientError(500)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("written", ["in", "in/*", "in/**"])
def test_a_file_that_came_since_an_earlier_plan_of_this_process_is_found(written: str) -> None:
    with fake_s3() as s3:
        client = boto3.client("s3", endpoint_url=s3.endpoint)
        for number in (1, 2):
            client.put_object(Bucket="bucket", Key=f"in/part-{number}", Body=b"1")
            assert len(list_files([f"{s3.url}/{written}"], "jsonl")) == number


def test_s3_is_listed_without_its_folder_markers_and_fingerprints_are_etags() -> None:
    with fake_s3() as s3:
        client = boto3.client("s3", endpoint_url=s3.endpoint)
        for key, body in {"in/": b"", "in/sub/": b"", "in/part-0": b"1", "in/sub/part-1": b"2"}.items():
            client.put_object(Bucket="bucket", Key=key, Body=body)
        listed = list_files([f"{s3.url}/in"], "jsonl")
        assert [file.path for file in listed] == ["s3://bucket/in/part-0", "s3://bucket/in/sub/part-1"]
        assert list_files([f"{s3.url}/in/**"], "jsonl") == listed
        check_unchanged(listed[0])
        client.put_object(Bucket="bucket", Key="in/part-0", Body=b"3")
        with pytest.raises(Conflict, match="s3://bucket/in/part-0 changed"):
            check_unchanged(listed[0])
        assert problem(f"{s3.url}/in/part-9", format="jsonl").fix == "write s3://bucket/in/part-0"
        client.close()


def test_a_file_of_a_local_folder_may_be_a_link(folder: Path) -> None:
    Path("data/link.parquet").symlink_to(folder / "data/a.parquet")
    assert "data/link.parquet" in paths("data")

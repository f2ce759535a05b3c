from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pytest

from hfbatch import text
from hfbatch.errors import StorageError
from hfbatch.files import FileProblem
from tests.data_files import WRITERS, inspected, read, sample


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", lambda data: pa.compress(data, "zstd", asbytes=True))],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_compressed_text_reads_as_plain_text(
    name: str, suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 1000)
    table = sample(500)
    WRITERS[name](table, tmp_path / name, 1)
    data = (tmp_path / name).read_bytes()
    path = tmp_path / (name + suffix)
    path.write_bytes(compress(data[:999]) + compress(data[999:]))  # two members, as `cat a.gz b.gz` makes
    found = inspected(path)
    assert len(found.blocks) > 10
    assert read(found, 123, 456).equals(table.slice(123, 333))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StorageError, match="cannot be read"):
        inspected(path)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_types_hold_over_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 64)
    rows: list[dict[str, Any]] = [
        {"a": None, "b": 1, "c": [], "d": {"x": None}, "day": "2024-01-01"} for _ in range(20)
    ]
    rows += [{"a": "late", "b": 2.5, "c": ["x"], "d": {"x": 1, "y": True}, "day": "soon", "new": 1} for _ in range(20)]
    (tmp_path / "x.jsonl").write_text(lines(*rows).rstrip("\n"))  # no newline at the end
    found = inspected(tmp_path / "x.jsonl")
    assert len(found.blocks) > 20
    assert found.schema == pa.schema(
        {
            "a": pa.string(),
            "b": pa.float64(),
            "c": pa.list_(pa.string()),
            "d": pa.struct({"x": pa.int64(), "y": pa.bool_()}),
            "day": pa.string(),  # never a date
            "new": pa.int64(),
        }.items()
    )
    got = read(found, 19, 21).to_pylist()
    assert got[0] == {"a": None, "b": 1.0, "c": [], "d": {"x": None, "y": None}, "day": "2024-01-01", "new": None}
    assert got[1] == rows[20]


def test_dates_in_json_stay_text_in_every_chunk(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(lines({"day": "2024-01-01T00:00:00", "all": ["2024-01-01"]}))
    assert read(inspected(tmp_path / "x.jsonl")).to_pylist() == [{"day": "2024-01-01T00:00:00", "all": ["2024-01-01"]}]


def test_blank_lines_a_bom_and_windows_newlines_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n\n{"a": 2}\r\n')
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfa,"b c"\r\n1,"x\r\ny"\r\n\r\n2,\r\n')
    assert read(inspected(tmp_path / "x.jsonl"))["a"].to_pylist() == [1, 2]
    got = read(inspected(tmp_path / "x.csv")).to_pylist()
    assert got == [{"a": 1, "b c": "x\r\ny"}, {"a": 2, "b c": None}]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (lines({"a": 1}) * 30 + '{"a": 1\n', StorageError, r"x.jsonl: line 31: not JSON .* one object a line"),
        (lines({"a": 1}) * 30 + "[1]\n", StorageError, r"line 31: a JSON list, not an object"),
        ("[\n" + '{"a": 1},\n{"a": 2}]\n', StorageError, r"line 1: not JSON .*jq -c"),
        (lines({"a": 1}, {"a": 2}) + '\n\n{"a": 1, "a": 2}\n', StorageError, r"line 5: .*specified twice"),
        (lines({"a": 1}, {"a": "x"}), FileProblem, r"x.jsonl: line 2: column 'a' is string, before it was number"),
        (lines(*[{"a": 1}] * 30, *[{"a": "x"}] * 30), FileProblem, r"column 'a'"),
        ("\x89PNG\r\n\x1a\n\0\0", StorageError, r"x.jsonl: line 1: not JSON"),
    ],
)
def test_a_bad_line_is_named_by_its_number(
    content: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 100)
    (tmp_path / "x.jsonl").write_text(content, newline="")
    with pytest.raises(error, match=message):
        inspected(tmp_path / "x.jsonl")


def test_a_column_that_changes_its_type_between_chunks_names_file_column_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 9)
    (tmp_path / "x.jsonl").write_text(lines({"a": 1}, {"a": "x"}))
    with pytest.raises(
        FileProblem, match=r"column 'a' is int64 in .*x.jsonl before line 2 and string in .*from line 2"
    ):
        inspected(tmp_path / "x.jsonl")


def test_csv_types_hold_for_the_whole_file_and_keep_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 64)
    head = "int,float,late,zip,id,flag,na,mixed,none,day\n"
    early = "1,2,,00123,12345678901234567890,true,NA,1,,2024-01-01\n" * 20
    late = '-7,.5e3,x,1,1,False,3,"a ""b"", c",,2024-01-02\n' * 20
    (tmp_path / "x.csv").write_text(head + early + late)
    found = inspected(tmp_path / "x.csv")
    types = [
        pa.int64(),
        pa.float64(),
        pa.string(),
        pa.string(),
        pa.string(),
        pa.bool_(),
        pa.int64(),
        *[pa.string()] * 3,
    ]
    assert found.schema == pa.schema(list(zip(head.strip().split(","), types, strict=True)))
    first, last = read(found, 0, 1).to_pylist()[0], read(found, 39, 40).to_pylist()[0]
    assert list(first.values()) == [1, 2.0, None, "00123", "12345678901234567890", True, None, "1", None, "2024-01-01"]
    assert list(last.values()) == [-7, 500.0, "x", "1", "1", False, 3, 'a "b", c', None, "2024-01-02"]


def test_csv_tells_null_from_empty_text_and_reads_stray_quotes(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n"",x\n,5" pipe\nNA,y\n')
    assert read(inspected(tmp_path / "x.csv")).to_pylist() == [
        {"a": "", "b": "x"},
        {"a": None, "b": '5" pipe'},
        {"a": "NA", "b": "y"},
    ]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("a,b\n" + "1,2\n" * 40 + "1,2,3\n", StorageError, r"row 42: Expected 2 columns, got 3"),
        ('a,b\n1,"open\n' + "1,2\n" * 10, StorageError, "a quote is opened and never closed"),
        ("a,a\n1,2\n", FileProblem, "the first row has the name 'a' twice"),
        ("a,\n1,2\n", FileProblem, "the first row has an empty name"),
        ("a\0\n1\n", StorageError, "not UTF-8"),
    ],
)
def test_a_bad_csv_is_told_with_the_row(
    content: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 64)
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(error, match=message):
        inspected(tmp_path / "x.csv")

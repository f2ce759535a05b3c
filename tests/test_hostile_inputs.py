"""Rows, columns and schemas nobody wishes for, through the real plan and every stage but Ray.

Either the plan refuses with file, value and way out, or the row has its own error; and all other rows are right.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from hfbatch.errors import HfbatchError, SpecError, StorageError
from tests.inline import plan_of, run_inline
from tests.models import sentences

NULL, UTF8 = "null_input: text is null", "bad_utf8: text is not UTF-8 text"
ROWS: list[tuple[bytes | None, str | None]] = [  # (text, the row's error)
    *((text.encode(), None) for text in sentences(30)),
    *[(b"the same text", None)] * 5,
    (None, NULL),
    (b"", None),
    (b" \t\n\r ", None),
    (b"\0", None),
    (b"good\0bad", None),
    (b"\xff\xfe", UTF8),
    (b"cut in the middle \xc3", UTF8),
    (b"a surrogate \xed\xa0\x80", UTF8),
    (b"overlong \xc0\x80", UTF8),
    ("na\u00efve \u202e\u200b\ufeff \U0001f642".encode(), None),
    (b"\xf0\x9f\x99\x82" * 500, None),
    (b"a" * 1_000_000, None),
    (b"good " * 2_000, None),
    (b"the last one", None),
]
TEXTS = [text for text, _ in ROWS]


def parquet(folder: Path, kind: pa.DataType) -> None:
    large = kind in (pa.large_string(), pa.large_binary())
    raw = pa.array(TEXTS, pa.large_binary() if large else pa.binary())
    text = pa.Array.from_buffers(kind, len(raw), raw.buffers())
    pq.write_table(pa.table({"id": range(len(raw)), "text": text}), folder / "x.parquet", row_group_size=7)


def arrow(folder: Path, kind: pa.DataType) -> None:
    raw = pa.array(TEXTS, pa.binary())
    words = pa.DictionaryArray.from_arrays(
        pa.array(range(len(raw)), pa.int32()), pa.Array.from_buffers(kind, len(raw), raw.buffers())
    )
    table = pa.table({"id": range(len(raw)), "text": words})
    with pa.ipc.new_file(str(folder / "x.arrow"), table.schema) as writer:
        writer.write_table(table)


def jsonl(folder: Path, kind: pa.DataType) -> None:
    def cell(text: bytes | None) -> bytes:
        if text is None:
            return b"null"
        return json.dumps(text.decode("latin-1"), ensure_ascii=False).encode("latin-1")  # bytes as they are

    lines = (b'{"id": %d, "text": %s}\n' % (row, cell(text)) for row, text in enumerate(TEXTS))
    (folder / "x.jsonl").write_bytes(b"".join(lines))


def csv(folder: Path, kind: pa.DataType) -> None:
    cells = (b"" if text is None else b'"' + text + b'"' for text in TEXTS)
    (folder / "x.csv").write_bytes(b"id,text\n" + b"".join(b"%d,%s\n" % cell for cell in enumerate(cells)))


@pytest.fixture(scope="module")
def expected(classifier) -> list[tuple[str, float] | None]:
    """What a transformers pipeline says of each row; None where the row has an error."""
    import transformers

    pipe = transformers.pipeline("text-classification", model=str(classifier), device="cpu")
    said = iter(pipe([text.decode() for text, error in ROWS if not error], truncation=True, max_length=64))
    return [None if error else ((made := next(said))["label"], made["score"]) for _, error in ROWS]


@pytest.mark.parametrize(
    ("writer", "kind"),
    [
        (parquet, pa.string()),
        (parquet, pa.large_binary()),
        (arrow, pa.string()),
        (jsonl, pa.string()),
        (csv, pa.string()),
    ],
)
def test_each_bad_row_has_its_own_error_and_every_other_row_is_right(
    writer, kind, expected, classifier, job_for, tmp_path
):
    (tmp_path / "in").mkdir()
    writer(tmp_path / "in", kind)
    made = run_inline(plan_of(job_for("text-classification", classifier, tmp_path / "in"), shard_rows=20))
    assert made["id"].to_pylist() == list(range(len(ROWS)))
    assert made["error"].to_pylist() == [error for _, error in ROWS]
    assert made["text"].cast(pa.large_binary()).to_pylist() == TEXTS, "kept byte for byte"
    for label, score, right in zip(made["label"].to_pylist(), made["score"].to_pylist(), expected, strict=True):
        assert (label, score) == ((right[0], pytest.approx(right[1], abs=1e-5)) if right else (None, None))
    assert [row for row, cut in enumerate(made["truncated"].to_pylist()) if cut] == [TEXTS.index(b"good " * 2_000)]


def write(folder: Path, name: str, columns: dict | bytes | str) -> None:
    if isinstance(columns, dict):
        pq.write_table(pa.table(columns), folder / name)
    else:
        (folder / name).write_bytes(columns.encode() if isinstance(columns, str) else columns)


GOOD, LINE = {"text": ["good"], "n": [1]}, '{"text": "good", "n": 1}\n'
REFUSED: dict[str, tuple[dict[str, dict | bytes | str], type[HfbatchError], str]] = {
    "numbers where text is read": (
        {"x.parquet": {"text": [1, 2]}},
        SpecError,
        r"input.columns.text: column 'text' is int64, text-classification reads text\n.*fix: name a column",
    ),
    "lists where text is read": ({"x.parquet": {"text": [["good"]]}}, SpecError, r"column 'text' is list<.*reads"),
    "no such column": (
        {"x.parquet": {"Text": ["good"]}},
        SpecError,
        r"no column 'text'\n.*write 'Text'; or map it: columns: \{text: YOUR_COLUMN\}",
    ),
    "number and text in one column": (
        {"a.parquet": GOOD, "b.parquet": {"text": ["bad"], "n": ["1"]}},
        SpecError,
        r"column 'n' is int64 in .*a.parquet and string in .*b.parquet\n.*fix: write the data with one type",
    ),
    "two time zones in one column": (
        {
            "a.parquet": {"text": ["good"], "at": pa.array([1], pa.timestamp("us", "UTC"))},
            "b.parquet": {"text": ["good"], "at": pa.array([1], pa.timestamp("us", "Asia/Tokyo"))},
        },
        SpecError,
        r"column 'at' is timestamp\[us, tz=UTC\] in .*a.parquet and timestamp\[us, tz=Asia/Tokyo\] in .*b.parquet",
    ),
    "a line that is cut": (
        {"x.jsonl": LINE * 4 + '{"text": "go\n' + LINE},
        StorageError,
        r"x.jsonl: line 5: not JSON .*repair the line",
    ),
    "half a surrogate pair": (
        {"x.jsonl": LINE * 2 + '{"text": "\\ud800 x", "n": 1}\n' + LINE},
        StorageError,
        r"x.jsonl: line 3: .*surrogate pair .* invalid.*; write \\ufffd for a half that stands alone",
    ),
    "a line of another type": (
        {"x.jsonl": LINE + '{"text": 5}\n' + LINE},
        SpecError,
        r"x.jsonl: line 2: column 'text' is number, before it was string\n.*one type",
    ),
    "a short line": (
        {"x.csv": "text,n\ngood,1\nbad\ngood,2\n"},
        StorageError,
        r"x.csv: .*row 3: Expected 2 columns, got 1: bad; repair the row, or quote its fields",
    ),
    "a long line": (
        {"x.csv": "text,n\ngood,1\nbad,worse,2\n"},
        StorageError,
        r"x.csv: .*row 3: Expected 2 columns, got 3: bad,worse,2; repair",
    ),
    "UTF-16 lines": ({"x.jsonl": LINE.encode("utf-16")}, StorageError, r"x.jsonl: not UTF-8 .* UTF-16; .*iconv -f"),
    "UTF-16 lines without a mark": ({"x.jsonl": LINE.encode("utf-16-be")}, StorageError, r"x.jsonl: .*UTF-16; .*iconv"),
    "a UTF-16 table": ({"x.csv": "text,n\ngood,1\n".encode("utf-16-le")}, StorageError, r"x.csv: .*UTF-16; .*iconv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_the_plan_with_place_value_and_fix(case, classifier, job_for, tmp_path):
    files, error, message = REFUSED[case]
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        write(tmp_path / "in", name, content)
    with pytest.raises(error, match=message):
        plan_of(job_for("text-classification", classifier, tmp_path / "in"))
    assert not (tmp_path / "out").exists(), "a refused plan leaves nothing behind"


def test_files_of_differing_columns_are_one_table_in_the_types_that_hold_all(classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    files: list[dict] = [
        {"text": ["good"], "n": pa.array([1], pa.int32())},
        {"n": [2**40], "text": ["bad"]},  # wider, and in another order
        {"text": pa.array(["film"]).dictionary_encode(), "n": [3], "extra": [{"a": [1]}]},
        {"n": [4]},  # no text at all
        {"text": pa.array(["rain"], pa.large_string()), "n": pa.nulls(1)},
        {"text": pa.nulls(1), "n": [6]},
        {"text": pa.array([], pa.string())},  # no rows
    ]
    for number, columns in enumerate(files):
        write(tmp_path / "in", f"{number}.parquet", columns)
    made = run_inline(plan_of(job_for("text-classification", classifier, tmp_path / "in")))
    assert made["text"].to_pylist() == ["good", "bad", "film", None, "rain", None]
    assert made["n"].to_pylist() == [1, 2**40, 3, 4, None, 6]
    assert made["extra"].to_pylist() == [None, None, {"a": [1]}, None, None, None]
    assert made["error"].to_pylist() == [None, None, None, NULL, None, NULL]
    alone = {row["text"]: row["score"] for row in made.to_pylist() if row["text"]}
    write(tmp_path, "all.parquet", {"text": list(alone)})
    again = run_inline(plan_of(job_for("text-classification", classifier, tmp_path / "all.parquet")))
    assert again["score"].to_pylist() == pytest.approx(list(alone.values()), abs=1e-5)


def test_a_number_that_the_common_type_cannot_hold_stops_the_shard_and_is_never_rounded(classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", "a.parquet", {"text": ["good"], "n": [2**53 + 1]})
    write(tmp_path / "in", "b.parquet", {"text": ["bad"], "n": [0.5]})
    plan = plan_of(job_for("text-classification", classifier, tmp_path / "in"))
    with pytest.raises(StorageError, match=r"a.parquet: .*column 'n', int64, as double: .*9007199254740993 .*one type"):
        run_inline(plan)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", {"text": pa.array([], pa.string()), "n": pa.array([], pa.int64())}),
        ("a.jsonl", "\n\n"),
        ("a.csv", "text,n\n"),
    ],
)
def test_a_file_without_rows_adds_none_to_the_others(name, content, classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", name, content)
    write(
        tmp_path / "in",
        name.replace("a", "b", 1),
        GOOD if "parquet" in name else LINE if "jsonl" in name else "text,n\ngood,1\n",
    )
    made = run_inline(plan_of(job_for("text-classification", classifier, tmp_path / "in")))
    assert made.select(["text", "n", "error"]).to_pylist() == [{"text": "good", "n": 1, "error": None}]


def test_a_csv_column_without_values_in_one_file_takes_the_type_of_the_others(classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", "a.csv", "text,n,none\nNA,,\ngood,NA,\n")
    write(tmp_path / "in", "b.csv", "text,n,none\nbad,7,\n")
    write(tmp_path / "in", "c.csv", "text,n,none\n")
    made = run_inline(plan_of(job_for("text-classification", classifier, tmp_path / "in")))
    assert made.select(["text", "n", "none"]).to_pydict() == {
        "text": ["NA", "good", "bad"],
        "n": [None, None, 7],
        "none": [None, None, None],
    }
    assert made.schema.field("none").type == pa.string()


def test_windows_text_files_read_as_any_other(classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", "a.csv", b'\xef\xbb\xbftext,n\r\n"good\r\nfilm",1\r\nbad,2\r\n')
    made = run_inline(plan_of(job_for("text-classification", classifier, tmp_path / "in")))
    assert made.select(["text", "n"]).to_pylist() == [{"text": "good\r\nfilm", "n": 1}, {"text": "bad", "n": 2}]

"""Text that people read: folded to a terminal, whole in a pipe, and never with more than was said."""

import json
from types import SimpleNamespace
from typing import Literal

import pyarrow as pa
import pytest
from pydantic import Field
from rich.cells import cell_len

from hfbatch import tasks
from hfbatch.cli import head, show, text
from hfbatch.report import RunReport, Seconds
from hfbatch.tasks.base import Params
from hfbatch.words import clock, column_type, commit, count, size

LABELS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))

STEPS = (SimpleNamespace(lineage=lambda name: name),)  # of a job without `steps:`


@pytest.fixture
def terminal(monkeypatch):
    """terminal(40) pretends that stdout is so wide."""
    return lambda columns: monkeypatch.setattr(text, "width", lambda: columns)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (pa.list_(pa.float32(), 384), "384 x float32"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (LABELS, "list of {label: string, score: float32}"),
        (pa.list_(pa.list_(pa.float16(), 8)), "list of 8 x float16"),
        (pa.map_(pa.string(), pa.float64()), "map of string to float64"),
        (pa.large_string(), "string"),
        (pa.timestamp("us", "UTC"), "timestamp[us, tz=UTC]"),
    ],
)
def test_column_types_are_said_in_words(kind, words):
    assert column_type(kind) == words


def test_numbers_are_said_in_words():
    assert [size(n) for n in (0, 1023, 1024, 5 * 1024**2, 3 * 1024**5)] == [
        "0 B",
        "1,023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3,072.0 TiB",
    ]
    assert [count(1, "row"), count(2000, "row"), count(2, "batch")] == ["1 row", "2,000 rows", "2 batches"]
    assert [clock(5), clock(65.9), clock(3661)] == ["0:05", "1:05", "1:01:01"]


def test_a_hub_commit_stays_whole_and_a_digest_is_short():
    assert commit("a" * 40) == "a" * 40
    assert commit("sha256:" + "b" * 64) == "sha256:" + "b" * 16 + "..."


def test_facts_align_and_fold_below_their_value(terminal):
    rows = [("model", "owner/name"), ("columns", "a\nb"), ("none", "")]
    assert text.facts(rows) == "model    owner/name\ncolumns  a\n         b\nnone"
    terminal(40)
    folded = text.facts([("name", "word " * 12)]).splitlines()
    assert len(folded) == 2
    assert all(len(line) <= 40 and line[6:].startswith("word") for line in folded)


def test_a_path_that_is_too_long_is_never_broken(terminal):
    terminal(40)
    path = "s3://bucket/" + "x" * 60
    assert path in text.facts([("output", path)])


def test_a_table_aligns_wide_letters_and_numbers():
    lines = text.table(("task", "rows"), [("数据", "1"), ("x", "1,000")], right=("rows",)).splitlines()
    assert lines == ["task   rows", "数据      1", "x     1,000"]
    assert len({cell_len(line) for line in lines}) == 1


def test_a_table_without_room_becomes_a_block_a_row(terminal):
    names, rows = ("run", "outcome", "host"), [("r" * 22, "success", "h" * 24), ("q" * 22, "incomplete", "")]
    terminal(80)
    assert len(text.table(names, rows).splitlines()) == 3
    terminal(44)
    first, second = text.table(names, rows).split("\n\n")
    assert first.splitlines() == ["run      " + "r" * 22, "outcome  success", "host     " + "h" * 24]
    assert second.splitlines()[-1] == "host"


def test_prose_keeps_its_columns_when_it_is_folded(terminal):
    written = "reads   text  string, which is the text\n              to classify\nwrites  label  string"
    assert text.fold(written) == written
    terminal(40)
    assert text.fold(written).splitlines() == [
        "reads   text  string, which is the text",
        "              to classify",
        "writes  label  string",
    ]


def test_paragraphs_are_folded_anew_and_stay_apart(terminal):
    terminal(40)
    written = "One line of a paragraph that was folded\nat another width.\n\nAnother paragraph."
    assert text.fold(written).splitlines() == [
        "One line of a paragraph that was folded",
        "at another width.",
        "",
        "Another paragraph.",
    ]
    terminal(60)
    assert text.fold(written).splitlines()[0].endswith("at another width.")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("task", tasks.all(), ids=lambda task: task.name)
def test_a_task_stays_inside_a_terminal(terminal, capsys, monkeypatch, task, columns):
    terminal(columns)
    monkeypatch.setattr(show, "width", text.width)
    show.task(task)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= columns
    assert {"reads", "writes"} <= {line.split()[0] for line in lines if line.strip()}


def test_a_task_says_what_its_parameters_take(capsys):
    class Settings(Params):
        """Of one kind each."""

        words: str | list[str] | None = Field(description="some words")
        share: float = Field(default=0.5, gt=0, le=1, description="a share")
        early: bool | Literal["never"] = Field(default=False, description="when")
        kind: Literal["a", "b"] | None = Field(default=None, description="a, b or null")
        more: dict[str, int] = Field(default_factory=dict, description="more")
        plain: bool = Field(default=True, description="yes or no")

    class Own(tasks.find("fill-mask")):
        """A task with these."""

        Params = Settings
        aliases = ("masks",)
        adapted = True

    show.task(Own)
    out = capsys.readouterr().out
    assert "\nAlso called masks.\nAdapted: transformers' own pipeline does the work" in out
    assert out[out.index("params\n") : out.index("\n\na job file")].splitlines()[2:] == [
        "words  required  some words (text | list of texts)",
        "share  0.5       a share (number > 0 and <= 1)",
        "early  false     when (true | false | never)",
        "kind   null      a, b or null",
        "more   {}        more (mapping)",
        "plain  true      yes or no",
    ]


def rows_of(**columns):
    return pa.table(columns)


def test_the_first_rows_are_shown_a_column_a_line_without_lineage(capsys):
    table = pa.table(
        {
            "text": ["two\nlines\x1b[31m", None],
            "embedding": pa.array([[0.12345, -1.0, 2.0, 3.0], [0.0] * 4], pa.list_(pa.float32(), 4)),
            "labels": pa.array([[{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}], []], LABELS),
            "tags": [["a", "b"], []],
            "truncated": [True, False],
            "blob": [b"123", b""],
            "model_id": ["m", "m"],
            "parameters": ["{}", "{}"],
        }
    )
    head.show(table, STEPS)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "row 1",
        "  text       two lines [31m",
        "  embedding  4 x float32: [0.123, -1.000, 2.000, ...]",
        "  labels     label good, score 0.75; label bad, score 0.25",
        "  tags       a, b",
        "  truncated  true",
        "  blob       3 bytes",
        "",
        "row 2",
        "  text       null",
        "  embedding  4 x float32: [0.000, 0.000, 0.000, ...]",
        "  labels",
        "  tags",
        "  truncated  false",
        "  blob       0 bytes",
    ]


def test_the_first_rows_stay_inside_a_terminal(terminal, capsys):
    terminal(60)
    head.show(pa.table({"a_rather_long_name": ["数据 " * 100], "b": ["word " * 100]}), ())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert 50 < max(map(cell_len, lines)) <= 60


def test_nested_vectors_say_how_many_they_are(capsys):
    head.show(pa.table({"tokens": pa.array([[[1.0, 2.0], [3.0, 4.0]]], pa.list_(pa.list_(pa.float32(), 2)))}), ())
    assert "  tokens  2 x 2 x float32: [[1.000, 2.000], [3.000, 4.000]]" in capsys.readouterr().out


def test_rows_as_data_are_json_even_with_nan():
    rows = head.as_data(pa.table({"x": [float("nan"), 1.5], "y": [[float("inf")], [2.0]]}))
    assert json.loads(json.dumps(rows, allow_nan=False)) == [{"x": None, "y": [None]}, {"x": 1.5, "y": [2.0]}]


def report(**changes):
    usual = {
        "run_id": "20261121T000000-aaaaaa", "job": "nightly", "outcome": "success", "output": "out/x",
        "generation": "g", "model_id": "owner/name", "model_revision": "c" * 40, "rows": 6000,
        "rows_new": 4000, "rows_failed": 3,
        "errors": {"too_long": 2, "null_input": 1}, "shards": 6, "shards_new": 4, "tokens": 9000,
        "padded_tokens": 10000,
        "padding_share": 0.1, "batches": 1, "layout": "packed", "batch_tokens": 2048,
        "rows_per_s": 129.04, "tokens_per_s": 4353.2, "forward_share": 0.9892,
        "actors": 1, "seconds": Seconds(start=13.7, model_load=3.6, forward=46.0, total=61.9),
        "peak_memory_bytes": 1024**3, "peak_gpu_bytes": 0, "bytes_written": 2048, "versions": {},
    }  # fmt: skip
    return RunReport(**(usual | changes))


def test_a_report_says_what_was_done_how_fast_and_where_the_time_went(capsys):
    show.report(report())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nightly 20261121T000000-aaaaaa"
    for line in (
        "rows     6,000 in the output: 4,000 new, 2,000 already committed",
        "errors   3 (too_long 2, null_input 1)",
        "speed    129.0 rows/s, 4,353 tokens/s on 1 actor",
        "padding  10.0% of 10,000 tokens, in 1 batch of at most 2,048 tokens; packed",
        "memory   peak 1.0 GiB a model process",
        "output   out/x/data/*.parquet",
    ):
        assert line in lines


def test_a_report_says_what_was_new_changed_and_gone_and_where_folders_are(capsys):
    files = {"files": 1200, "files_new": 24, "files_changed": 1, "files_skipped": 1175}
    show.report(report(**files, partition_by=["day"]))
    lines = capsys.readouterr().out.splitlines()
    assert "files    1,200: 24 new, 1 changed, 1,175 already done" in lines
    assert "output   out/x/data/**/*.parquet" in lines
    show.report(report(**files, files_failed=2, files_removed=3))
    told = "; 2 not committed; 3 gone from the input, and their rows with them"
    assert f"files    1,200: 24 new, 1 changed, 1,175 already done{told}" in capsys.readouterr().out.splitlines()


def test_a_report_of_nothing_to_do_says_nothing_of_speed(capsys):
    show.report(report(run_id="", outcome="nothing_to_do", rows_new=0))
    out = capsys.readouterr().out
    assert out.startswith("nightly\noutcome  nothing to do\n")
    assert "speed" not in out

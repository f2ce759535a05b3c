"""Which rows failed: as data, as text, whole or in part, on an output that is finished or not."""

import json

import pytest

from hfbatch.errors import Damage, SpecError
from hfbatch.failed import FailedRow, count_failed, failed_rows
from tests.console import assert_tidy, command_in_this_process
from tests.outputs import copied, plan_again, runs_in_this_process


@pytest.fixture
def output(made, tmp_path):
    return copied(made, tmp_path)


@pytest.fixture
def hfbatch(capsys):
    return command_in_this_process(capsys)


def found(output, code=None):
    return [(row.file.rpartition("/")[2], row.row, row.code) for row in failed_rows(str(output.path), code)]


ALL = [
    ("a.parquet", 3, "null_input"),
    ("b.parquet", 3, "null_input"),
    ("b.parquet", 5, "postprocess_failed"),
]


def test_each_failed_row_is_told_with_its_file_its_row_and_why(output):
    assert found(output) == ALL
    last = list(failed_rows(str(output.path)))[-1]
    assert last == FailedRow(str(output.input("b")), 5, "postprocess_failed", "ValueError: a passing fault")
    assert count_failed(str(output.path)) == {"null_input": 2, "postprocess_failed": 1}


def test_of_one_code_only(output):
    assert found(output, "null_input") == ALL[:2]
    assert found(output, "too_long") == []


def test_a_filtered_shard_still_tells_rows_of_the_file(output, tmp_path):
    output.path = tmp_path / "other"
    output.job["output"] = {"path": str(output.path)}
    output.job["input"] = {**output.job["input"], "where": "text is None or text == 'rain rain'"}
    with runs_in_this_process():
        output.run_with_faults()
    assert found(output) == ALL


def test_only_objects_with_errors_are_opened(output, monkeypatch):
    opened = []
    real = type(output.ledger.store).open_input
    monkeypatch.setattr(
        type(output.ledger.store), "open_input", lambda store, name: opened.append(name) or real(store, name)
    )
    list(failed_rows(str(output.path)))
    assert len(opened) == 2 < len(output.objects)


def test_an_output_that_is_not_finished_tells_what_is_committed(output):
    name = next(record for record in output.records if json.loads(record.read_text())["errors"] == {"null_input": 1})
    name.unlink()
    assert found(output) == ALL[1:]


def test_while_rows_are_tried_again_they_count_as_they_did(output):
    plan_again(output)
    assert found(output) == ALL


def test_a_torn_object_and_one_that_is_gone_are_damage_with_the_way_out(output):
    whole = {file: file.read_bytes() for file in output.objects}
    for file, content in whole.items():
        file.write_bytes(content[:-20])
    with pytest.raises(Damage, match=r"parquet: is damaged \(.*hfbatch repair"):
        found(output)
    for file, content in whole.items():
        file.write_bytes(content)
    rows = failed_rows(str(output.path))
    assert next(rows).row == 3
    for file in output.objects:
        file.unlink()
    with pytest.raises(Damage, match=r"parquet: is gone; `hfbatch repair`"):
        list(rows)


def test_a_folder_that_is_no_output_is_refused(tmp_path):
    with pytest.raises(SpecError, match="holds no output of hfbatch"):
        list(failed_rows(str(tmp_path)))


def test_the_command_shows_a_summary_then_the_rows(hfbatch, output):
    code, out, err = hfbatch("errors", output.path, "--limit", "2")
    assert (code, err) == (0, "1 more; --limit shows them\n")
    summary, rows = out.split("\n\n")
    assert [line.split() for line in summary.splitlines()[1:]] == [["null_input", "2"], ["postprocess_failed", "1"]]
    assert rows.splitlines()[1].split() == [str(output.input("a")), "3", "null_input", "text", "is", "null"]
    assert len(rows.splitlines()) == 3
    assert_tidy(out)
    code, out, err = hfbatch("errors", output.path, "--code", "postprocess_failed", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["summary"] == {"postprocess_failed": 1}
    assert [row["row"] for row in json.loads(out)["rows"]] == [5]
    assert hfbatch("errors", output.path, "--code", "too_long") == (0, "no committed row failed\n", "")

"""`hfbatch preview`: the first rows through the real model, in this process, with nothing written."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import hfbatch
from hfbatch.errors import SpecError
from hfbatch.load import load_job
from hfbatch.planner import make_plan
from hfbatch.previewing import first_rows
from tests.console import command_in_this_process
from tests.inline import plan_of, run_inline
from tests.models import sentences


@pytest.fixture
def job(classifier, write_parquet, job_for):
    """60 rows in two files; row 1 of the first has no text."""
    texts = sentences(40)
    texts[1] = None
    write_parquet("in/a.parquet", {"id": np.arange(40), "text": texts})
    path = write_parquet("in/b.parquet", {"id": np.arange(40, 60), "text": sentences(20, seed=1)})
    return job_for("text-classification", classifier, path.parent)


def test_it_shows_what_a_run_would_write_and_writes_nothing(job, tmp_path):
    before = set(tmp_path.rglob("*"))
    found = hfbatch.preview(job, rows=5)
    assert set(tmp_path.rglob("*")) == before
    expected = run_inline(plan_of(job)).slice(0, 5)
    assert found.schema.equals(expected.schema)
    for name in ("id", "text", "label", "truncated", "error", "parameters"):
        assert found[name].to_pylist() == expected[name].to_pylist()
    assert np.allclose(found["score"].to_numpy()[2:], expected["score"].to_numpy()[2:], atol=1e-5)
    assert found["error"].to_pylist()[1] == "null_input: text is null"


def test_where_and_limit_pick_the_rows(job):
    job["input"] |= {"where": "id >= 39", "limit": 3}
    assert hfbatch.preview(job, rows=10)["id"].to_pylist() == [39, 40, 41]


def test_an_output_of_another_spec_does_not_matter(made):
    assert len(hfbatch.preview({**made.job, "params": {"top_k": 2}}, rows=2)["labels"][0]) == 2
    assert make_plan(load_job({**made.job, "params": {"top_k": 2}}), hfbatch.load_machine(None)).conflict


def test_no_row_needs_no_model(job):
    job["input"]["where"] = "id > 1000"
    assert len(hfbatch.preview(job)) == 0


def test_only_as_much_is_read_as_is_shown(job, tmp_path):
    table, pieces = first_rows(plan_of(job), 5)
    assert len(table) == 5
    assert [path.rpartition("/")[2] for path, *_ in pieces] == ["a.parquet"]
    pq.write_table(pq.read_table(tmp_path / "in/b.parquet"), tmp_path / "in/b.parquet")
    assert len(first_rows(plan_of(job), 45)[0]) == 45


def test_a_row_that_fails_is_shown_with_its_error_even_if_all_do(job, tmp_path):
    job["input"]["columns"] = {"text": "nothing"}
    pq.write_table(
        pq.read_table(tmp_path / "in/b.parquet").append_column("nothing", [[None] * 20]), tmp_path / "c.parquet"
    )
    job["input"]["path"] = str(tmp_path / "c.parquet")
    assert set(hfbatch.preview(job, rows=3)["error"].to_pylist()) == {"null_input: text is null"}


def test_the_command_shows_rows_as_blocks_and_as_json(job, tmp_path, capsys):
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = command_in_this_process(capsys)
    code, out, _ = command("preview", tmp_path / "job.json", "-n", 2)
    assert code == 0
    assert out.startswith("preview of job, nothing is written\n\nrow 1\n")
    assert "\nrow 2\n" in out
    assert "null_input: text is null" in out
    assert "row 3" not in out
    code, out, _ = command("preview", tmp_path / "job.json", "--json")
    assert [row["id"] for row in json.loads(out)["rows"]] == [0, 1, 2, 3, 4]


def test_a_job_that_is_wrong_is_told_as_everywhere(job):
    with pytest.raises(SpecError, match="unknown parameter"):
        hfbatch.preview({**job, "params": {"topk": 1}})

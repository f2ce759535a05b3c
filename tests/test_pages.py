"""report.html from what an output holds, and the `report` command."""

import json
import logging

import pytest
from selectolax.lexbor import LexborHTMLParser

from hfbatch import pipeline
from hfbatch.errors import SpecError
from hfbatch.ledger import Ledger
from hfbatch.load import load_job, load_machine, split_overrides
from hfbatch.pages import job_file, last_report, read_about
from hfbatch.planner import make_plan
from hfbatch.report import RunReport
from hfbatch.store import open_store
from tests.console import command_in_this_process
from tests.inline import inline_passes

TEXTS = ["good film", "bad film", None, "fine", "<script>alert(1)</script>", "x"]


@pytest.fixture
def output(classifier, write_parquet, job_for, tmp_path, monkeypatch):
    """(ledger, report) of a run whose stages ran in this process; a third of its shards have an error."""
    monkeypatch.setattr("hfbatch.passes.run_passes", inline_passes)
    path = write_parquet("in.parquet", {"text": TEXTS})
    job = job_for("text-classification", classifier, path) | {"errors": {"max_failed_fraction": 1}}
    report = pipeline.run(make_plan(load_job(job), load_machine({"shard_rows": 2, "max_batch_rows": 3})))
    return Ledger(open_store(report.output)), report


def page_of(ledger, report):
    return ledger.store.get(f"_hfbatch/runs/{report.run_id}/report.html").decode()


def test_a_run_leaves_a_page_with_what_its_shards_said_of_themselves(output):
    ledger, report = output
    assert sum(report.labels.values()) == sum(report.scores) == 5
    assert set(report.labels) <= {"negative", "neutral", "positive"}
    assert sum(report.token_lengths) == 5
    assert report.curve[0] == (0.0, 0)
    assert report.curve[-1][1] == 6
    assert report.examples == {"null_input": "text is null"}
    parsed = LexborHTMLParser(page_of(ledger, report))
    told = parsed.body.text()
    for words in (
        report.model_revision,
        report.generation,
        "text is null",
        "max_batch_rows 3",
        "--set max_batch_rows=3",
    ):
        assert words in told, words


def test_the_job_file_on_the_page_makes_the_same_plan(output, tmp_path):
    _, report = output
    _, about = last_report(report.output)
    path = tmp_path / "job.yaml"
    path.write_text(about.job_file)
    plan = make_plan(load_job(path), load_machine(None))
    assert plan.job.generation == report.generation
    assert plan.complete


def test_a_job_file_keeps_what_only_looks_like_something_else(tmp_path):
    spec = {
        "name": "no",
        "task": "text-generation",
        "model": {"id": "owner/model", "revision": "main", "attn_implementation": None},
        "input": {
            "path": ["a b.parquet", "d*.parquet"],
            "columns": {"messages": "y"},
            "keep": [],
            "where": "a == 'x: #1'",
        },
        "output": {"path": "out/${day}", "prefix": ""},
        "params": {
            "max_new_tokens": 5,
            "temperature": 1e-05,
            "stop": ["\n", '"', "null"],
            "top_k": None,
            "do_sample": True,
        },
        "errors": {"policy": "skip", "max_failed_fraction": 0.5, "max_failed_rows": None},
    }
    path = tmp_path / "job.yaml"
    path.write_text(job_file(spec, ["c" * 40]))
    loaded = load_job(path).model_dump(mode="json")
    assert loaded["model"]["revision"] == "c" * 40
    for name in ("name", "task", "input", "output", "params", "errors"):
        wanted = spec[name] if isinstance(spec[name], str) else {**loaded[name], **spec[name]}
        assert loaded[name] == wanted, name


def test_the_command_on_the_page_has_the_settings_of_the_machine_and_the_consent(output):
    ledger, report = output
    started = ledger.run_file(report.run_id, "started.json")
    started["machine"] = {"actors": {"min": 2, "max": 4}, "address": "auto", "compile": True}
    started["spec"]["model"]["trust_remote_code"] = True
    assert list(read_about(ledger, report).options) == ["--set", "max_batch_rows=3", "--set", "shard_rows=2"]
    ledger.write_run_file(report.run_id, "started.json", started)
    *options, last = read_about(ledger, report).options
    assert last == "--trust-remote-code"
    machine = load_machine(None, overrides=split_overrides(options[1::2])[1])
    assert machine.model_dump(exclude_defaults=True) == started["machine"]


def test_a_job_file_of_steps_is_the_job_again_with_each_model_pinned(tmp_path):
    steps = [
        {"name": "a", "task": "fill-mask", "model": {"id": "owner/one"}, "params": {"top_k": 2, "targets": None}},
        {"name": "b", "task": "ner", "model": {"id": "owner/two"}, "columns": {"text": "a_x"}, "where": "a_x != 'y'"},
    ]
    spec = {"name": "n", "steps": steps, "task": None, "input": {"path": "in", "keep": []}, "output": {"path": "out"}}
    path = tmp_path / "job.yaml"
    path.write_text(job_file(spec, ["c" * 40, "d" * 40]))
    loaded = load_job(path)
    assert [step.model.revision for step in loaded.steps] == ["c" * 40, "d" * 40]
    assert [step.where for step in loaded.steps] == [None, "a_x != 'y'"]
    assert (loaded.steps[0].params, loaded.input.keep) == ({"top_k": 2, "targets": None}, [])


def test_a_local_model_is_pinned_by_its_folder_alone():
    spec = {"model": {"id": "models/mine", "revision": None}}
    assert "revision" not in job_file(spec, ["sha256:abc"])
    assert job_file({}, []) == ""


def test_a_page_that_cannot_be_made_or_written_does_not_end_a_run(output, monkeypatch, caplog):
    ledger, report = output

    def broken(*arguments):
        raise ValueError("no s3://key:secret@bucket")

    monkeypatch.setattr("hfbatch.pages.report_html", broken)
    with caplog.at_level(logging.WARNING):
        pipeline._write_page(ledger, report)
    assert "report.html not written: ValueError: no s3://***@bucket" in caplog.text


@pytest.fixture
def hfbatch(capsys):
    return command_in_this_process(capsys)


def test_the_report_command_shows_the_last_run(output, hfbatch, tmp_path):
    ledger, report = output
    code, out, _ = hfbatch("report", report.output)
    assert code == 0
    assert report.run_id in out
    assert "null_input 1" in out
    code, out, _ = hfbatch("report", report.output, "--json")
    assert RunReport.model_validate(json.loads(out)) == report
    file = tmp_path / "new" / "page.html"
    code, out, _ = hfbatch("report", report.output, "--html", file)
    assert (code, out) == (0, f"{file}: written\n")
    assert file.read_text() == page_of(ledger, report)


def test_a_later_run_that_came_to_no_report_is_passed_over(output):
    ledger, report = output
    ledger.write_run_file("99999999T000000-aaaaaa", "started.json", {})
    assert last_report(report.output)[0].run_id == report.run_id


def test_where_no_run_came_to_a_report_the_command_says_what_to_ask_instead(output, hfbatch):
    ledger, report = output
    ledger.store.delete([f"_hfbatch/runs/{report.run_id}/report.json"])
    with pytest.raises(SpecError, match="no run has come to its report yet"):
        last_report(report.output)
    code, _, err = hfbatch("report", report.output)
    assert code == 2
    assert "hfbatch status" in err


def test_an_output_of_an_older_hfbatch_has_a_page_too(output):
    ledger, report = output
    new = {"token_lengths", "labels", "scores", "curve", "examples"}
    ledger.write_run_file(report.run_id, "report.json", report.model_dump(exclude=new))
    started = ledger.run_file(report.run_id, "started.json")
    kept = {name: value for name, value in started.items() if name not in ("machine", "spec")}
    ledger.write_run_file(report.run_id, "started.json", kept)
    found, about = last_report(report.output)
    assert (found.labels, about.machine, about.job_file) == ({}, {}, "")

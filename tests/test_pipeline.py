"""The whole pipeline: on a real Ray, one for all tests of this file, or in this process where Ray is not the point."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

import hfbatch
from hfbatch.errors import Conflict, ErrorBudgetExceeded, SpecError, SystemicError
from hfbatch.ledger import Ledger
from hfbatch.store import open_store
from tests.inline import plan_of, run_inline
from tests.models import bert, sentences
from tests.outputs import runs_in_this_process

GPU = torch.cuda.is_available()
MACHINE = {"shard_rows": 50, "gpus_per_actor": "auto" if GPU else 0}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """Where there is no GPU, it is told of one."""
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=2, num_gpus=None if GPU else 1, **quiet)
    yield
    ray.shutdown()


@pytest.fixture
def inline():
    """Runs are in this process: what is asked there is the driver's, the model's or the sink's own."""
    with runs_in_this_process():
        yield


def output_of(folder):
    return pq.read_table(folder / "out" / "data")


def ledger_of(folder):
    return Ledger(open_store(str(folder / "out")))


def write_inputs(folder):
    """260 rows in three files and none in a fourth; every row knows where it stands."""
    folder.mkdir()
    for name, rows, size in (("a", 130, 40), ("b", 100, 100), ("c", 30, 30), ("empty", 0, 1)):
        write(folder, name, rows, row_group_size=size)
    return folder


def write(folder, name, rows, seed=None, **options):
    columns = {
        "file": pa.array([name] * rows, pa.string()),
        "row": pa.array(range(rows), pa.int64()),
        "text": pa.array(sentences(rows, seed=seed or rows), pa.string()),
    }
    pq.write_table(pa.table(columns), folder / f"{name}.parquet", **options)


def job_over(model, inputs, output):
    return {
        "task": "text-classification",
        "model": {"id": str(model)},
        "input": {"path": str(inputs)},
        "output": {"path": str(output)},
    }


@pytest.fixture
def job(classifier, tmp_path):
    """A job of about ten shards that has not run."""
    return job_over(classifier, write_inputs(tmp_path / "in"), tmp_path / "out")


@pytest.fixture(scope="module")
def finished(classifier, tmp_path_factory):
    """(job, its report, what `watch` saw) of one that ran to its end; not to be changed."""
    folder, seen = tmp_path_factory.mktemp("finished"), []
    job = job_over(classifier, write_inputs(folder / "in"), folder / "out")
    return job, hfbatch.run(job, on=MACHINE, watch=seen.append), seen


@pytest.fixture
def copied(finished, tmp_path):
    """The finished job with a copy of its output, to do anything to."""
    shutil.copytree(finished[0]["output"]["path"], tmp_path / "out")
    return {**finished[0], "output": {"path": str(tmp_path / "out")}}


def test_every_row_comes_out_once_with_its_prediction_and_lineage(finished):
    job, report, seen = finished
    folder = Path(job["output"]["path"]).parent
    made = output_of(folder)
    expected = Counter([("a", i) for i in range(130)] + [("b", i) for i in range(100)] + [("c", i) for i in range(30)])
    assert Counter(zip(made["file"].to_pylist(), made["row"].to_pylist(), strict=True)) == expected
    assert (report.outcome, report.rows, report.rows_new, report.rows_failed) == ("success", 260, 260, 0)
    assert report.shards == report.shards_new > 4
    assert report.tokens > 0
    assert 0 <= report.padding_share < 1
    assert 0 < report.forward_share <= 1
    assert report.seconds.forward > 0
    assert seen
    assert {progress.rows_total for progress in seen} == {260}
    assert set(made["run_id"].to_pylist()) == {report.run_id}
    assert set(made["model_revision"].to_pylist()) == {report.model_revision}
    check_same_as_inline(job, made)
    ledger = ledger_of(folder)
    manifest = ledger.run_file(report.run_id, "manifest.json")
    assert manifest["rows"] == 260
    assert sorted(entry["data"] for entry in manifest["objects"]) == ledger.store.list("data")
    assert ledger.success()["manifest"] == f"_hfbatch/runs/{report.run_id}/manifest.json"
    assert ledger.run_file(report.run_id, "report.json") == json.loads(report.model_dump_json())


def test_the_log_of_a_run_names_every_shard_as_it_is_committed(finished):
    job, report, _ = finished
    log = Path(job["output"]["path"]) / "_hfbatch" / "runs" / report.run_id / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    names = [line["event"] for line in lines]
    assert (names[:2], names[-1]) == (["planned", "started"], "finished")
    assert "progress" in names
    committed = [line for line in lines if line["event"] == "shard_committed"]
    assert sorted(line["data"] for line in committed) == ledger_of(log.parents[4]).store.list("data")
    assert sum(line["rows"] for line in committed) == 260
    assert (report.files, report.files_new, report.shards_failed) == (3, 3, 0), "a file without rows has no shard"


def check_same_as_inline(job, made):
    """Ray moves blocks about; the values are those of the stages called one after another."""
    inline = run_inline(plan_of(job))
    key = [("file", "ascending"), ("row", "ascending")]
    made, inline = made.sort_by(key), inline.sort_by(key)
    assert made["label"].to_pylist() == inline["label"].to_pylist()
    assert np.allclose(made["score"].to_numpy(), inline["score"].to_numpy(), atol=1e-5)


def test_a_rerun_has_nothing_to_do_and_touches_no_file(copied, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    report = hfbatch.run(copied, on={"shard_rows": 7, "max_batch_tokens": 99})
    assert (report.outcome, report.rows_new, report.rows) == ("nothing_to_do", 0, 260)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_only_what_is_missing_is_inferred_again(copied, tmp_path, inline):
    ledger = ledger_of(tmp_path)
    records, generation = ledger.store.list("_hfbatch/commits"), hfbatch.plan(copied, on=MACHINE).job.generation
    ledger.store.delete([records[0], "_SUCCESS"])  # killed between object and record, and before the end
    standing = ledger.receipts(generation, sorted(ledger.committed(generation)))
    plan = hfbatch.plan(copied, on=MACHINE)
    assert (len(plan.todo), plan.complete) == (1, False)
    report = hfbatch.run(copied, on=MACHINE)
    assert (report.outcome, report.rows) == ("success", 260)
    assert ledger.receipts(generation, sorted(receipt.shard for receipt in standing)) == standing
    assert Counter(output_of(tmp_path)["file"].to_pylist()) == {"a": 130, "b": 100, "c": 30}


def test_a_finished_output_without_its_last_step_is_published_without_ray(copied, tmp_path):
    ledger = ledger_of(tmp_path)
    ledger.store.delete(["_SUCCESS", "_hfbatch/CURRENT"])
    report = hfbatch.run(copied, on={"address": "ray://no-such-host:1"})
    assert (report.outcome, report.rows, report.rows_new) == ("success", 260, 0)
    assert ledger.success()["run_id"] == report.run_id


def test_new_and_changed_files_are_inferred_and_superseded_rows_leave(job, tmp_path):
    """What stands there and what is taken away are as without Ray; what is new goes through it."""
    with runs_in_this_process():
        hfbatch.run(job, on=MACHINE)
    write(tmp_path / "in", "b", 20, seed=9)
    write(tmp_path / "in", "d", 70, seed=8)
    report = hfbatch.run(job, on=MACHINE)
    assert Counter(output_of(tmp_path)["file"].to_pylist()) == {"a": 130, "b": 20, "c": 30, "d": 70}
    assert report.rows_new < 130
    (tmp_path / "in" / "a.parquet").unlink()
    with runs_in_this_process():
        report = hfbatch.run(job, on=MACHINE)
    assert Counter(output_of(tmp_path)["file"].to_pylist()) == {"b": 20, "c": 30, "d": 70}
    assert ledger_of(tmp_path).success()["run_id"] == report.run_id


def test_a_changed_spec_is_refused_with_the_difference_until_a_new_generation_is_asked_for(
    copied, finished, tmp_path, inline
):
    changed = {**copied, "params": {"top_k": 2}}
    with pytest.raises(Conflict, match=r"(?s)top_k\":1.*top_k\":2.*--new-generation"):
        hfbatch.run(changed, on=MACHINE)
    assert ledger_of(tmp_path).success()["run_id"] == finished[1].run_id
    second = hfbatch.run(changed, on=MACHINE, new_generation=True)
    made = output_of(tmp_path)
    assert len(made) == 260
    assert "labels" in made.column_names
    assert second.generation != finished[1].generation
    with pytest.raises(Conflict):
        hfbatch.run(copied, on=MACHINE)


def test_bad_rows_get_nulls_and_an_error_and_the_others_go_on(tmp_path, write_parquet, job_for, inline):
    """The model knows fewer words than its tokenizer: a text with the last one raises inside forward."""
    model = bert(tmp_path / "model", vocab_size=60)
    texts = [*map(known_words, sentences(40)), None, "a broken!", "", *map(known_words, sentences(20, seed=5))]
    raw = pa.array([None if t is None else t.encode() for t in texts[:-1]] + [b"\xff\xfe bad"], pa.binary())
    path = write_parquet("in.parquet", {"row": list(range(len(texts))), "text": raw})
    job = {**job_for("text-classification", model, path), "errors": {"max_failed_fraction": 0.5}}
    report = hfbatch.run(job)
    made = output_of(tmp_path).sort_by("row")
    failed = {row: error.split(":")[0] for row, error in enumerate(made["error"].to_pylist()) if error}
    assert failed == {40: "null_input", 41: "forward_failed", len(texts) - 1: "bad_utf8"}
    assert report.errors == {"null_input": 1, "forward_failed": 1, "bad_utf8": 1}
    assert "IndexError" in made["error"][41].as_py()
    labels = made["label"].to_pylist()
    assert [row for row, label in enumerate(labels) if label is None] == list(failed)


def known_words(text):
    return " ".join(word for word in text.split() if word in GOOD)


GOOD = frozenset("the good bad movie film was is a an of and it not very great".split())


def test_over_the_error_budget_the_run_ends_without_success_and_keeps_what_is_committed(
    tmp_path, classifier, write_parquet, job_for, inline
):
    path = write_parquet("in.parquet", {"text": [*sentences(95), *[None] * 5]})
    job = job_for("text-classification", classifier, path)
    with pytest.raises(ErrorBudgetExceeded, match=r"5 of 100 rows failed \(5.00%\)"):
        hfbatch.run(job)
    ledger = ledger_of(tmp_path)
    assert ledger.success() is None
    assert ledger.run_file(ledger.runs()[-1], "report.json")["outcome"] == "error_budget_exceeded"
    report = hfbatch.run({**job, "errors": {"max_failed_rows": 5, "max_failed_fraction": 1.0}})
    assert (report.outcome, report.rows_new, report.rows) == ("success", 0, 100)


def test_under_policy_fail_the_first_bad_row_stops_the_run(tmp_path, classifier, write_parquet, job_for):
    path = write_parquet("in.parquet", {"text": ["good", None, "bad"]})
    job = {**job_for("text-classification", classifier, path), "errors": {"policy": "fail"}}
    with pytest.raises(ErrorBudgetExceeded, match=r"in.parquet row 1: null_input: text is null"):
        hfbatch.run(job, on=MACHINE)
    assert ledger_of(tmp_path).store.list("data") == []


def test_a_checkpoint_without_the_tasks_head_is_refused_by_name_before_anything_runs(
    tmp_path, encoder, write_parquet, job_for
):
    job = job_for("text-classification", encoder, write_parquet("in.parquet", {"text": ["good"]}))
    with pytest.raises(SpecError, match=r"text-classification: it is a BertModel, .*: it has no weights for the head"):
        hfbatch.run(job, on=MACHINE)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
@pytest.mark.slow
def test_a_gpu_that_torch_cannot_use_is_an_error_not_a_reason_for_the_cpu(classifier, write_parquet, job_for):
    """The way to a GPU actor is Ray's own, up to the model."""
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": ["good"]}))
    with pytest.raises(SystemicError, match=r"torch .* cannot use one; install a CUDA build"):
        hfbatch.run(job)


def test_where_limit_keep_and_prefix_shape_the_output(tmp_path, classifier, write_parquet, job_for):
    """The first shard has no row left; it goes through Ray all the same."""
    rows = 400
    columns = {"id": range(rows), "stars": [i % 5 for i in range(rows)], "body": sentences(rows), "label": ["x"] * rows}
    job = job_for("text-classification", classifier, write_parquet("in.parquet", columns, row_group_size=100))
    job["input"] |= {
        "columns": {"text": "body"},
        "keep": ["id", "label"],
        "where": "stars >= 3 and id > 70",
        "limit": 90,
    }
    job["output"]["prefix"] = "pred_"
    report = hfbatch.run(job, on=MACHINE)
    made = output_of(tmp_path).sort_by("id")
    expected = [i for i in range(rows) if i % 5 >= 3 and i > 70][:90]
    assert made["id"].to_pylist() == expected
    assert report.rows == 90
    store = ledger_of(tmp_path).store
    assert len(store.list("_hfbatch/commits")) == len(store.list("data")) + 1, "else no shard is without rows"
    assert made.column_names[:5] == ["id", "label", "pred_label", "pred_score", "pred_truncated"]


def test_an_input_without_rows_is_a_success_without_files(tmp_path, classifier, write_parquet, job_for, inline):
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": ["good"], "n": [1]}))
    job["input"]["where"] = "n > 1"
    report = hfbatch.run(job)
    assert (report.outcome, report.rows) == ("success", 0)
    assert ledger_of(tmp_path).store.list("data") == []
    assert hfbatch.run(job).outcome == "nothing_to_do"


@pytest.mark.parametrize(
    "machine",
    [{"cpu_steps": "tasks", "max_batch_rows": 3}, pytest.param({"actors": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_machine_never_changes_a_prediction(job, tmp_path, machine):
    hfbatch.run(job, on={**MACHINE, **machine})
    check_same_as_inline(job, output_of(tmp_path))


@pytest.mark.slow
def test_every_actor_of_a_pool_gets_work_and_two_on_two_cpus_do_not_starve_the_reader(classifier, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abcd":
        write(tmp_path / "in", name, 6000)
    machine = {**MACHINE, "shard_rows": 16384, "actors": 2, "max_batch_rows": 8}
    report = hfbatch.run(job_over(classifier, tmp_path / "in", tmp_path / "out"), on=machine)
    assert (report.rows, report.actors) == (24_000, 2)


@pytest.mark.parametrize("cpu_steps", [pytest.param("actor", marks=pytest.mark.slow), "tasks"])
def test_several_models_see_a_shard_in_one_actor(job, encoder, tmp_path, cpu_steps):
    mood = {"name": "mood", "task": job.pop("task"), "model": job.pop("model")}
    vector = {"name": "vector", "task": "feature-extraction", "model": {"id": str(encoder)}}
    route = {"params": {"pooling": "mean"}, "where": "mood_label != 'neutral' and row < 100"}
    job["steps"] = [mood, vector | route]
    report = hfbatch.run(job, on={**MACHINE, "cpu_steps": cpu_steps})
    assert (report.outcome, report.rows, report.rows_failed, report.actors) == ("success", 260, 0, 1)
    assert [(step.name, step.tokens > 0) for step in report.steps] == [("mood", True), ("vector", True)]
    order = [("file", "ascending"), ("row", "ascending")]
    both = (output_of(tmp_path), run_inline(plan_of(job)))
    made, expected = (table.sort_by(order).combine_chunks() for table in both)
    assert made["mood_label"].equals(expected["mood_label"])
    assert made["vector_embedding"].is_null().equals(expected["vector_embedding"].is_null())
    assert 0 < made["vector_embedding"].null_count < 260

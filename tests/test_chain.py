"""Several models in one job: rows are read once, each step has its own columns, errors and lineage."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfbatch
from hfbatch import reading
from hfbatch.errors import SpecError
from hfbatch.load import load_job
from hfbatch.tasks import text
from tests.inline import plan_of, run_inline
from tests.models import sentences
from tests.zoo import vision

LINEAGE = ("model_id", "model_revision", "parameters")


@pytest.fixture
def rows(write_parquet):
    """40 texts with a star each; row 3 has no text."""
    texts = sentences(40)
    texts[3] = None
    return write_parquet("in/a.parquet", {"id": np.arange(40), "stars": np.arange(40) % 5, "body": texts})


@pytest.fixture
def job(rows, classifier, encoder, tmp_path):
    """A label and a vector of each text."""
    return {
        "steps": [
            {
                "name": "mood",
                "task": "text-classification",
                "model": {"id": str(classifier)},
                "columns": {"text": "body"},
            },
            {
                "name": "vector",
                "task": "feature-extraction",
                "model": {"id": str(encoder)},
                "params": {"pooling": "mean"},
                "columns": {"text": "body"},
            },
        ],
        "input": {"path": str(rows), "keep": ["id", "body"]},
        "output": {"path": str(tmp_path / "out")},
        "errors": {"max_failed_fraction": 0.5},
    }


def alone(job, number, **more):
    """The step as a job of its own."""
    step = job["steps"][number]
    single = {name: step[name] for name in ("task", "model", "params") if name in step}
    paths = {"input": {**job["input"], "columns": step["columns"]}, "output": job["output"]}
    return run_inline(plan_of({**single, **paths, "errors": job["errors"], **more}))


def test_each_step_writes_what_it_would_write_alone(job):
    made = run_inline(plan_of(job))
    mood, vector = alone(job, 0), alone(job, 1)
    assert made.column_names == [
        *("id", "body", "mood_label", "mood_score", "mood_truncated", "vector_embedding", "vector_truncated", "error"),
        *(f"{step}_{name}" for step in ("mood", "vector") for name in LINEAGE),
        "run_id",
    ]
    assert made["mood_label"].equals(mood["label"])
    pairs = zip(made["vector_embedding"].to_pylist(), vector["embedding"].to_pylist(), strict=True)
    assert all((a is None and b is None) or np.allclose(a, b, atol=1e-5) for a, b in pairs)
    for step, single in (("mood", mood), ("vector", vector)):
        for name in LINEAGE:
            assert made[f"{step}_{name}"].to_pylist() == single[name].to_pylist()
    assert made["error"].to_pylist()[3] == "null_input: text is null (step mood)"
    assert made["error"].null_count == 39


@pytest.mark.parametrize("stage", [False, True])
def test_a_later_step_reads_what_an_earlier_one_made_and_where_routes_rows(job, classifier, stage):
    job["steps"][1:] = [
        {
            "name": "again",
            "task": "text-classification",
            "model": {"id": str(classifier)},
            "params": {"top_k": 2},
            "columns": {"text": "mood_label"},
            "where": "stars >= 3 and mood_label != 'neutral'",
        }
    ]
    made = run_inline(plan_of(job), stage=stage)
    stars, labels = np.arange(40) % 5, made["mood_label"].to_pylist()
    chosen = [star >= 3 and label not in (None, "neutral") for star, label in zip(stars, labels, strict=True)]
    assert 0 < sum(chosen) < 40
    assert [value is not None for value in made["again_labels"].to_pylist()] == chosen
    assert made["error"].null_count == 39  # a row that a step leaves out has no error


def test_a_row_that_fails_in_one_step_goes_on_in_those_that_do_not_need_it(job):
    job["steps"][0]["params"] = {"truncation": False, "max_length": 12}
    made = run_inline(plan_of(job))
    failed = [error for error in made["error"].to_pylist() if error]
    assert sum("too_long" in error and error.endswith("(step mood)") for error in failed) > 3
    assert made["mood_label"].null_count == len(failed)
    assert made["vector_embedding"].null_count == 1  # of the row without a text


def test_rows_are_read_once_and_tokenised_once_where_the_tokenizer_is_the_same(job, monkeypatch):
    reads, tokenised = [], []
    read, encode = reading.read_rows, text._encode
    monkeypatch.setattr(reading, "read_rows", lambda *given: reads.append(1) or read(*given))
    kept = lambda tokenizer, texts, **more: tokenised.extend(texts) or encode(tokenizer, texts, **more)  # noqa: E731
    monkeypatch.setattr(text, "_encode", kept)
    job["steps"][1]["where"] = "stars > 1"
    made = run_inline(plan_of(job))
    assert made["vector_embedding"].null_count > 10
    assert len(reads) == 1
    assert len(tokenised) == len(set(tokenised)) > 30


def test_what_another_tokenizer_makes_is_its_own(job, roberta):
    job["steps"][1] |= {"task": "text-classification", "model": {"id": str(roberta)}, "params": {}}
    assert run_inline(plan_of(job))["vector_label"].equals(alone(job, 1)["label"])


def test_a_changed_step_changes_the_job_and_no_other_step(job):
    before = plan_of(job).job
    job["steps"][1]["params"] = {"pooling": "cls"}
    after = plan_of(job).job
    assert before.generation != after.generation
    assert before.steps[0].generation == after.steps[0].generation
    assert before.steps[1].generation != after.steps[1].generation


def test_a_step_is_another_when_one_that_it_reads_from_is(job, classifier):
    reading_step = {"name": "b", "task": "text-classification", "model": {"id": str(classifier)}}
    job["steps"].append({**reading_step, "columns": {"text": "mood_label"}})
    before = plan_of(job).job.steps[2]
    job["steps"][0]["params"] = {"max_length": 9}
    assert plan_of(job).job.steps[2].generation != before.generation


def test_a_job_of_steps_runs_resumes_and_has_nothing_to_do(job, monkeypatch):
    from hfbatch import pipeline
    from tests.inline import inline_passes

    monkeypatch.setattr("hfbatch.passes.run_passes", inline_passes)
    report = pipeline.run(plan_of(job))
    assert (report.outcome, report.rows, report.rows_failed) == ("success", 40, 1)
    assert sum(report.labels.values()) == 39
    monkeypatch.setattr("hfbatch.planner.bind", None)  # what the run bound is remembered
    assert pipeline.run(plan_of(job)).outcome == "nothing_to_do"
    assert hfbatch.verify(job["output"]["path"], rows=10).flaws == ()
    data = pq.ParquetDataset(f"{job['output']['path']}/data").read()
    assert data["vector_model_id"].unique().to_pylist() == [job["steps"][1]["model"]["id"]]


def test_the_stats_of_a_shard_are_the_sum_of_its_steps_and_each_by_name(job):
    from hfbatch.chain import Chain
    from hfbatch.columns import ticket_of
    from tests.inline import blocks_of

    plan = plan_of(job)
    chain = Chain(plan.job, plan.machine, 1)
    stats = ticket_of(chain(blocks_of(plan)[0])).stats
    assert stats["tokens"] == sum(each["tokens"] for each in stats["steps"].values()) > 0
    assert (chain.meter.rows, chain.meter.tokens) == (40, stats["tokens"])


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"task": "fill-mask"}, "task", "stands in each of the steps"),
        ({"params": {"top_k": 2}}, "params", "stands in each of the steps"),
        ({"output": {"path": "out", "prefix": "x_"}}, "output.prefix", "stands in each of the steps"),
        ({"steps": []}, "task", "missing"),
    ],
)
def test_what_belongs_into_the_steps_is_told(job, change, key, message):
    with pytest.raises(SpecError) as caught:
        load_job(job | change)
    assert key in [problem.key for problem in caught.value.problems]
    assert message in str(caught.value)


def test_problems_of_steps_come_at_once_with_their_places(job, tmp_path):
    job["steps"][0] |= {"task": "text-clasification"}
    job["steps"][1] |= {"name": "mood", "params": {"poolin": "mean"}}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job))
    with pytest.raises(SpecError) as caught:
        load_job(file)
    told = {problem.key: problem.fix for problem in caught.value.problems}
    assert told["steps.0.task"] == "write 'text-classification'"
    assert told["steps.1.params.poolin"] == "write 'pooling'"


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"columns": {"text": "mood_lable"}}, "steps.1.columns.text", "write 'mood_label'"),
        ({"prefix": "mood_"}, "steps.1.prefix", "one from this step, one from an earlier one"),
        ({"where": "moods == 'x'"}, "steps.1.where", "no column"),
    ],
)
def test_a_step_that_does_not_fit_the_ones_before_is_told(job, changes, key, message):
    job["steps"][1] |= changes
    with pytest.raises(SpecError) as caught:
        plan_of(job)
    assert key in [problem.key for problem in caught.value.problems]
    assert message in str(caught.value)


def test_what_a_model_wrote_is_never_a_path(job, tmp_path):
    vit = vision.vit(tmp_path / "vit")
    job["steps"][1] |= {"task": "image-classification", "model": {"id": str(vit)}, "params": {}}
    job["steps"][1]["columns"] = {"image": "mood_label"}
    job["input"]["allow_media_prefixes"] = [str(tmp_path)]
    with pytest.raises(SpecError, match="what models write is never a path"):
        plan_of(job)


def test_preview_shows_all_steps(job):
    found = hfbatch.preview(job, rows=3)
    assert found["mood_label"].null_count == 0
    assert pa.types.is_list(found.schema.field("vector_embedding").type) or len(found["vector_embedding"][0].as_py())


def test_a_shard_that_where_leaves_empty_goes_through_all_steps(job):
    job["input"]["where"] = "id > 1000"
    made = run_inline(plan_of(job))
    assert len(made) == 0
    assert "vector_embedding" in made.column_names


@pytest.mark.slow  # a child process for each model
def test_a_shard_that_a_process_died_over_goes_through_child_processes_of_all_models(job):
    from hfbatch.chain import Chain
    from hfbatch.postprocess import Finish
    from tests.inline import blocks_of

    plan = plan_of(job, threads_per_actor=1)
    made = Finish(plan.job, "run")(Chain(plan.job, plan.machine, 1, gpu=False)(blocks_of(plan)[0], died=True))
    expected = run_inline(plan)
    assert made["mood_label"].equals(expected["mood_label"])
    assert made["vector_embedding"].null_count == expected["vector_embedding"].null_count == 1

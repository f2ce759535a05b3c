"""A rerun with nothing to do is answered from what the finished run wrote down, and by nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfbatch
from hfbatch import planner
from hfbatch.job import Job
from tests.models import sentences
from tests.outputs import runs_in_this_process


@pytest.fixture(scope="module")
def finished(classifier, tmp_path_factory):
    """(job, its plan as it was bound) of a run that ended well; not to be changed."""
    folder = tmp_path_factory.mktemp("remembered")
    (folder / "in").mkdir()
    pq.write_table(pa.table({"id": range(8), "text": sentences(8)}), folder / "in" / "a.parquet")
    job = {
        "task": "text-classification",
        "model": {"id": str(classifier)},
        "input": {"path": str(folder / "in"), "keep": ["id"], "where": "id > 2"},
        "params": {"top_k": 2},
        "output": {"path": str(folder / "out"), "prefix": "p_"},
    }
    plan = hfbatch.plan(job)
    with runs_in_this_process():
        assert hfbatch.run(job).outcome == "success"
    return job, plan


@pytest.fixture
def copied(finished, tmp_path):
    """The finished job with a copy of its input and output, run where they stand, to do anything to."""
    for name in ("in", "out"):
        shutil.copytree(Path(finished[0]["input"]["path"]).parent / name, tmp_path / name)
    job = {**finished[0], "input": {**finished[0]["input"], "path": str(tmp_path / "in")}}
    job = {**job, "output": {**job["output"], "path": str(tmp_path / "out")}}
    with runs_in_this_process():
        hfbatch.run(job)
    return job


@pytest.fixture
def bound(monkeypatch):
    """What was bound by reading the model."""
    seen, bind = list[Job](), planner.bind
    monkeypatch.setattr(planner, "bind", lambda *given: seen.append(bind(*given)) or seen[-1])
    return seen


def test_the_remembered_job_is_the_one_that_was_bound(finished, bound):
    again = hfbatch.plan(finished[0])
    assert again.complete
    assert bound == []
    assert again.job == finished[1].job
    assert again.job.generation == finished[1].job.generation
    assert again.files == finished[1].files
    assert [shard.pieces for shard in again.shards] == [shard.pieces for shard in finished[1].shards]


def test_a_rerun_with_nothing_to_do_imports_neither_torch_nor_transformers_nor_ray(finished, tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(finished[0]))
    hfbatch.plan(path)  # its name is another: `job` is the file's
    code = (
        "import sys, hfbatch\n"
        "report = hfbatch.run(__import__('json').load(open(sys.argv[1])))\n"
        "assert report.outcome == 'nothing_to_do', report\n"
        "heavy = {'torch', 'transformers', 'ray', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change",
    [{"params": {"top_k": 1}}, {"errors": {"max_failed_rows": 3}}, {"model": {"dtype": "bfloat16"}}],
    ids=["params", "errors", "dtype"],
)
def test_another_spec_is_bound_anew(finished, bound, change):
    merged = {name: {**finished[0].get(name, {}), **value} for name, value in change.items()}
    plan = hfbatch.plan({**finished[0], **merged})
    assert bound == [plan.job]


def test_what_is_to_run_is_bound_anew(copied, tmp_path, bound):
    assert hfbatch.plan(copied).complete
    assert bound == []
    pq.write_table(pa.table({"id": range(10, 14), "text": sentences(4)}), tmp_path / "in" / "b.parquet")
    plan = hfbatch.plan(copied)
    assert len(plan.todo) == 1
    assert bound == [plan.job]


def test_other_versions_are_asked_anew(finished, bound, monkeypatch):
    monkeypatch.setattr("hfbatch.remembered.versions", lambda: {"transformers": "99"})
    assert hfbatch.plan(finished[0]).complete
    assert len(bound) == 1


def test_a_note_that_cannot_be_read_is_no_answer(copied, tmp_path, bound):
    for started in (tmp_path / "out").rglob("started.json"):
        started.write_text(started.read_text().replace("top_k", "top_q"))
    assert hfbatch.plan(copied).complete
    assert len(bound) == 1

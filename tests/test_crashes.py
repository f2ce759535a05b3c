"""The driver killed at every step of the protocol, then run again: nothing lost, nothing doubled, nothing twice."""

import signal
from collections import Counter

import pytest

from hfbatch import passes, pipeline
from hfbatch.faults import POINTS
from tests.crashes import check_output, committed, inferred, run_in_process
from tests.inline import inline_passes, plan_of
from tests.models import sentences

MACHINE = {"shard_rows": 30}


def texts(name, rows, seed=0):
    return {"file": [name] * rows, "row": list(range(rows)), "text": sentences(rows, seed=ord(name) + seed, longest=12)}


@pytest.fixture
def job(classifier, write_parquet, job_for):
    """Two files in one shard, two shards of a third."""
    for name, rows in {"a": 10, "b": 12, "c": 50}.items():
        path = write_parquet(f"in/{name}.parquet", texts(name, rows))
    return job_for("text-classification", classifier, path.parent)


@pytest.fixture
def clean(monkeypatch):
    """A run in this process that nothing disturbs, as a function of the job."""
    monkeypatch.setattr(passes, "run_passes", inline_passes)
    return lambda job: pipeline.run(plan_of(job, **MACHINE))


def rows(**files):
    return Counter((name, row) for name, count in files.items() for row in range(count))


def crash_and_resume(job, clean, point, tmp_path, monkeypatch):
    """Kill a run at `point`, run again; no shard that was committed by then goes through the model again."""
    log = tmp_path / "log"
    assert run_in_process(job, f"{point}:kill", log, **MACHINE) == -signal.SIGKILL
    before, done = inferred(log), committed(job["output"]["path"])
    monkeypatch.setenv("HFBATCH_FAULT_LOG", str(log))
    clean(job)
    again = inferred(log) - before
    assert done.isdisjoint(again)
    assert max(inferred(log).values()) <= 2
    assert clean(job).outcome == "nothing_to_do"


@pytest.mark.parametrize("point", sorted(POINTS))
def test_a_first_run_killed_at_any_step_ends_right_on_the_second_try(point, job, clean, tmp_path, monkeypatch):
    crash_and_resume(job, clean, point, tmp_path, monkeypatch)
    check_output(job["output"]["path"], rows(a=10, b=12, c=50))


@pytest.mark.parametrize("point", sorted(POINTS))
def test_a_nightly_run_killed_at_any_step_ends_right_on_the_second_try(
    point, job, clean, write_parquet, tmp_path, monkeypatch
):
    """One file changed, one removed, one added; before the swap, yesterday's rows are what a reader finds."""
    clean(job)
    yesterday = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    write_parquet("in/a.parquet", texts("a", 11, seed=7))
    write_parquet("in/d.parquet", texts("d", 40))
    (tmp_path / "in/c.parquet").unlink()
    crash_and_resume(job, clean, point, tmp_path, monkeypatch)
    check_output(job["output"]["path"], rows(a=11, b=12, d=40))
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) != yesterday

"""The driver killed at every step of the protocol, then run again: nothing lost, nothing doubled, nothing twice."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import passes, pipeline
from hfbatch.errors import Conflict, InputChanged, Locked
from hfbatch.faults import POINTS
from tests.crashes import PROCESSES, check_output, committed, drive, inferred, run_in_process
from tests.inline import inline_passes, plan_of
from tests.models import sentences
from tests.outputs import runs_in_this_process

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


@pytest.mark.slow
@pytest.mark.parametrize("point", sorted(POINTS))
def test_a_first_run_killed_at_any_step_ends_right_on_the_second_try(point, job, clean, tmp_path, monkeypatch):
    crash_and_resume(job, clean, point, tmp_path, monkeypatch)
    check_output(job["output"]["path"], rows(a=10, b=12, c=50))


@pytest.fixture(scope="module")
def yesterday(classifier, tmp_path_factory):
    """A finished job, of whose files one has changed, one has gone and one has come since; not to be run."""
    folder = tmp_path_factory.mktemp("yesterday")
    (folder / "in").mkdir()
    for name, rows in {"a": 10, "b": 12, "c": 50}.items():
        pq.write_table(pa.table(texts(name, rows)), folder / f"in/{name}.parquet")
    job = {
        "task": "text-classification",
        "model": {"id": str(classifier)},
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
    }
    with runs_in_this_process():
        pipeline.run(plan_of(job, **MACHINE))
    pq.write_table(pa.table(texts("a", 11, seed=7)), folder / "in/a.parquet")
    pq.write_table(pa.table(texts("d", 40)), folder / "in/d.parquet")
    (folder / "in/c.parquet").unlink()
    return job


@pytest.mark.parametrize("point", sorted(POINTS))
def test_a_nightly_run_killed_at_any_step_ends_right_on_the_second_try(point, yesterday, clean, tmp_path, monkeypatch):
    """Before the swap, yesterday's rows are what a reader finds."""
    shutil.copytree(yesterday["output"]["path"], tmp_path / "out")
    job = {**yesterday, "output": {"path": str(tmp_path / "out")}}
    before = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    crash_and_resume(job, clean, point, tmp_path, monkeypatch)
    check_output(job["output"]["path"], rows(a=11, b=12, d=40))
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) != before


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after-publish", "after-commit", "before-swap", "before-promote", "before-gc"])
def test_a_night_that_reuses_rows_and_is_killed_ends_right(point, job, clean, write_parquet, tmp_path, monkeypatch):
    """What an object knows may go before it or stay behind it: rows are inferred again, or found to be gone."""
    job["dedupe"] = True
    clean(job)
    write_parquet("in/a.parquet", texts("a", 11))
    write_parquet("in/c.parquet", texts("c", 60))
    crash_and_resume(job, clean, point, tmp_path, monkeypatch)
    check_output(job["output"]["path"], rows(a=11, b=12, c=60))


@pytest.mark.parametrize("point", ["before-audit", "after-audit", "before-promote"])
def test_a_nightly_run_with_gates_killed_at_any_step_ends_right_on_the_second_try(point, yesterday, clean, tmp_path):
    """Before its gates are passed, what was published last is whole and current; test_audit.py has all the steps."""
    shutil.copytree(yesterday["output"]["path"], tmp_path / "out")
    job = {**yesterday, "output": {"path": str(tmp_path / "out")}, "gates": {"shift": {"label": 9}}}
    before = pq.read_table(tmp_path / "out/data")
    assert run_in_process(job, f"{point}:kill", tmp_path / "first", **MACHINE) == -signal.SIGKILL
    assert (tmp_path / "out/_SUCCESS").exists() == (point == "before-audit")
    assert (pq.read_table(tmp_path / "out/data") == before) == (point != "before-promote")
    assert clean(job).rows_new == 0, "nothing is inferred again"
    check_output(job["output"]["path"], rows(a=11, b=12, d=40))


def test_a_file_that_changes_during_a_run_keeps_its_shard_back_and_no_other(job, clean, write_parquet, monkeypatch):
    plan = plan_of(job, **MACHINE)
    write_parquet("in/a.parquet", texts("a", 11, seed=7))
    monkeypatch.setattr(passes, "run_passes", inline_passes)
    with pytest.raises(InputChanged, match=r"1 of 3 shards are not committed; .*in/a.parquet changed") as changed:
        pipeline.run(plan)
    assert changed.value.exit_code == 5
    assert len(committed(job["output"]["path"])) == 2
    clean(job)
    check_output(job["output"]["path"], rows(a=11, b=12, c=50))


def test_a_strangers_file_in_data_is_a_conflict_and_stays(job, clean, tmp_path):
    stranger = tmp_path / "out/data/mine.parquet"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"precious")
    with pytest.raises(Conflict, match=r"mine.parquet: not written by hfbatch; move it"):
        clean(job)
    assert stranger.read_bytes() == b"precious"
    stranger.rename(tmp_path / "mine.parquet")
    clean(job)
    check_output(job["output"]["path"], rows(a=10, b=12, c=50))


def test_what_lies_in_staging_is_no_loss_when_it_is_wiped_between_runs(job, clean, write_parquet, tmp_path):
    clean(job)
    write_parquet("in/a.parquet", texts("a", 11, seed=7))
    assert run_in_process(job, "before-reconcile:kill", tmp_path / "log", **MACHINE) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "out/_hfbatch/staged")
    shutil.rmtree(tmp_path / "out/_hfbatch/tmp")
    clean(job)
    check_output(job["output"]["path"], rows(a=11, b=12, c=50))


def test_a_second_run_is_locked_out_while_the_first_hangs_and_takes_over_when_it_is_killed(job, clean, tmp_path):
    first = PROCESSES.Process(target=drive, args=(job, "before-inference:hang:2", str(tmp_path / "log"), MACHINE))
    first.start()
    while len(inferred(tmp_path / "log")) < 2:
        assert first.is_alive()
        time.sleep(0.02)
    with pytest.raises(Locked, match=f"process {first.pid} on") as locked:
        clean(job)
    assert locked.value.exit_code == 75
    first.kill()
    first.join()
    clean(job)
    check_output(job["output"]["path"], rows(a=10, b=12, c=50))


def test_a_rerun_after_success_loads_no_model_and_writes_nothing(job, clean, tmp_path, monkeypatch):
    clean(job)

    def files():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}

    before = files()
    monkeypatch.setattr("hfbatch.engine.load_model", lambda *_: pytest.fail("a model was loaded"))
    assert clean(job).outcome == "nothing_to_do"
    assert files() == before


FULL_DISK = """
import json, sys
from pathlib import Path
from hfbatch.errors import StorageError
from tests.crashes import check_output, drive

job, log, ballast = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
ballast.write_bytes(bytes((2 << 20) - (150 << 10)))
try:
    drive(job, None, log, {"shard_rows": 4})
except StorageError as error:
    print(error.exit_code, error)
ballast.unlink()
drive(job, None, log, {"shard_rows": 4})
print(json.loads((Path(job["output"]["path"]) / "_SUCCESS").read_text())["plan"])
"""


def test_a_disk_that_fills_up_ends_a_run_with_74_and_once_there_is_room_it_goes_on(job, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m none "$0" && exec "$@"', str(disk)]
    try:
        subprocess.run([*mounted, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine lets nobody mount a small disk in a namespace of their own: {error}")
    job["output"]["path"] = str(disk / "out")
    command = [*mounted, sys.executable, "-c", FULL_DISK, json.dumps(job), str(tmp_path / "log"), str(disk / "ballast")]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    first, plan = child.stdout.strip().splitlines()
    assert first.startswith("74 ")
    assert "the disk is full; free space, then the same command resumes" in first
    assert plan == "1"
    times = inferred(tmp_path / "log")
    assert len(times) == 19
    assert list(times.values()).count(1) > 3, "what was committed before the disk was full is not inferred again"


@pytest.mark.parametrize(
    ("task", "model", "params"), [("feature-extraction", "encoder", {"pooling": "mean"}), ("fill-mask", "masked", {})]
)
def test_outputs_with_nested_columns_are_examined_as_others_are(
    task, model, params, clean, write_parquet, job_for, request
):
    path = write_parquet(
        "in/a.parquet", texts("a", 5) | {"text": [f"{text} [MASK]" for text in sentences(5, longest=9)]}
    )
    job = job_for(task, request.getfixturevalue(model), path, **params)
    clean(job)
    check_output(job["output"]["path"], rows(a=5))

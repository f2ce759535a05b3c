"""A run that is asked to end: what is in the model is committed, nothing new begins, and a rerun goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import ray

from hfbatch import pipeline
from hfbatch.errors import Incomplete, Interrupted
from hfbatch.ledger import Ledger
from hfbatch.store import open_store
from tests.crashes import check_output, committed, inferred
from tests.inline import plan_of
from tests.models import sentences

MACHINE = {"shard_rows": 40, "max_batch_rows": 4}
ROWS = Counter(("a", row) for row in range(1600))


@pytest.fixture
def job(classifier, write_parquet, job_for):
    path = write_parquet("in.parquet", {"file": ["a"] * 1600, "row": list(range(1600)), "text": sentences(1600)})
    return job_for("text-classification", classifier, path)


def when(condition, act, seconds=120):
    """A thread that does `act` as soon as `condition` holds."""

    def watch():
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def ended(job):
    ledger = Ledger(open_store(job["output"]["path"]))
    return ledger.run_file(ledger.runs()[-1], "result.json"), ledger.run_file(ledger.runs()[-1], "report.json")


@pytest.mark.slow
def test_a_signal_and_a_deadline_drain_and_a_rerun_goes_on(job, tmp_path, monkeypatch):
    """In one Ray: SIGTERM after a few commits, then max_runtime, then a run to the end."""
    log, output = tmp_path / "log", job["output"]["path"]
    monkeypatch.setenv("HFBATCH_FAULT_LOG", str(log))
    with ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False):
        terminate = when(lambda: len(committed(output)) >= 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted) as stopped:
            pipeline.run(plan_of(job, **MACHINE))
        terminate.join()
        assert stopped.value.exit_code == 143
        first = committed(output)
        assert set(inferred(log)) == first, "what was in the model is committed"
        assert 3 <= len(first) < 40
        result, report = ended(job)
        assert (result["outcome"], result["exit_code"]) == ("Interrupted", 143)
        assert (report["outcome"], report["shards"]) == ("interrupted", len(first))
        with pytest.raises(Incomplete, match=r"machine.max_runtime of 0.1 s is over"):
            pipeline.run(plan_of(job, max_runtime=0.1, **MACHINE))
        assert ended(job)[0]["exit_code"] == 4
        pipeline.run(plan_of(job, **MACHINE))
    assert max(inferred(log).values()) == 1, "nothing was inferred twice"
    check_output(output, ROWS)


def start(job, tmp_path, *options):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "hfbatch.cli", "run", str(path)]
    machine = [f"--set={name}={value}" for name, value in MACHINE.items()]
    return subprocess.Popen(
        [*command, *machine, *options],
        env={**os.environ, "HFBATCH_FAULT_LOG": str(tmp_path / "log")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal reaches all of it, as Ctrl-C does
    )


def wait_for_commits(job, process, count):
    deadline = time.monotonic() + 120
    while len(committed(job["output"]["path"])) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_reaches_ray_too_and_once_drains_and_twice_does_not_wait(job, tmp_path):
    log = tmp_path / "log"
    process = start(job, tmp_path)
    wait_for_commits(job, process, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    first = committed(job["output"]["path"])
    assert set(inferred(log)) == first
    process = start(job, tmp_path)
    wait_for_commits(job, process, len(first) + 2)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    process = start(job, tmp_path)
    assert process.wait(timeout=120) == 0, process.communicate()
    check_output(job["output"]["path"], ROWS)
    assert json.loads(max(Path(tmp_path / "out/_hfbatch/runs").glob("*/result.json")).read_text())["exit_code"] == 0


@pytest.mark.slow
def test_without_grace_what_is_in_the_model_is_given_up_and_the_run_ends_at_once(job, tmp_path):
    process = start(job, tmp_path, "--set=grace_s=0", "--set=shard_rows=1600")
    while "before-inference" not in (tmp_path / "log").read_text() if (tmp_path / "log").exists() else True:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert committed(job["output"]["path"]) == set()

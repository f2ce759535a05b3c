"""kill -9 of the driver at random moments, then a run to the end: every row once, nothing committed inferred twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hfbatch.ledger import Ledger
from hfbatch.store import open_store
from tests.crashes import committed, inferred
from tests.fake_s3 import fake_s3
from tests.models import sentences
from tests.processes import family

ROWS = {"a": 900, "b": 700, "c": 50}
COMMAND = [sys.executable, "-m", "hfbatch.cli", "run"]


@pytest.fixture
def job_file(tmp_path, classifier, write_parquet):
    """A job of about 40 shards over three files, and its output's folder."""
    for name, rows in ROWS.items():
        columns = {"file": [name] * rows, "row": list(range(rows)), "text": sentences(rows, seed=rows, longest=60)}
        write_parquet(f"in/{name}.parquet", columns, row_group_size=200)
    path = tmp_path / "job.json"  # JSON is YAML too
    job = {
        "task": "text-classification",
        "model": {"id": str(classifier)},
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out")},
    }
    path.write_text(json.dumps(job))
    return path


def start(job_file, *options):
    machine = ["--set", "shard_rows=40", "--set", "max_batch_rows=8"]
    return subprocess.Popen(
        [*COMMAND, str(job_file), *machine, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_commits(ledger, count, process, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if len(ledger.store.list("_hfbatch/commits")) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} commits: {process.communicate() if process.poll() is not None else 'timeout'}")


def rows_in(table):
    return Counter(zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True))


def records(ledger):
    return {name: ledger.store.get(name) for name in ledger.store.list("_hfbatch/commits")}


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_of_the_driver_at_random_moments_lose_and_double_nothing(job_file, tmp_path, kills):
    """The moment counts from the start of a run, or from a commit on; a seed that fails can be given here again."""
    seed = random.randrange(10**6)
    rng, ledger = random.Random(seed), Ledger(open_store(str(tmp_path / "out")))
    standing, everything = {}, Counter((name, row) for name, rows in ROWS.items() for row in range(rows))
    for _ in range(kills):
        process = start(job_file)
        wait_for_commits(ledger, min(len(standing) + rng.randint(0, 8 if kills == 2 else 3), 38), process)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(1)  # its Ray dies with it, within a moment
        now = records(ledger)
        assert now.items() >= standing.items(), f"seed {seed}: a commit record changed"
        standing = now
        assert ledger.success() is None
        if standing:
            partial = pq.read_table(tmp_path / "out" / "data")  # whole files only, at any moment
            assert set(rows_in(partial).values()) == {1}, f"seed {seed}"
    last = start(job_file, "--json")
    stdout, stderr = last.communicate(timeout=180)
    assert last.returncode == 0, (seed, stderr)
    report = json.loads(stdout)
    assert rows_in(pq.read_table(tmp_path / "out" / "data")) == everything, f"seed {seed}"
    assert records(ledger).items() >= standing.items(), f"seed {seed}: a committed shard was inferred again"
    assert report["shards_new"] <= report["shards"] - len(standing)
    assert report["rows"] == sum(ROWS.values())
    assert ledger.success()["run_id"] == report["run_id"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, id="SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_with_its_code_and_says_that_it_resumes(job_file, tmp_path, monkeypatch, number, code):
    monkeypatch.setenv("HFBATCH_FAULT_LOG", str(tmp_path / "log"))
    process, ledger = start(job_file), Ledger(open_store(str(tmp_path / "out")))
    wait_for_commits(ledger, 1, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr
    assert ledger.success() is None
    assert ledger.run_file(ledger.runs()[-1], "result.json")["exit_code"] == code
    assert set(inferred(tmp_path / "log")) == committed(str(tmp_path / "out")), "what was in the model is committed"
    assert set(rows_in(pq.read_table(tmp_path / "out" / "data")).values()) == {1}


def test_a_killed_model_process_is_replaced_and_its_shards_run_again(job_file, tmp_path):
    process, ledger = start(job_file, "--json"), Ledger(open_store(str(tmp_path / "out")))
    wait_for_commits(ledger, 2, process)
    victims = [worker for worker in family(process.pid) if "MapWorker" in command_of(worker)]
    assert victims, "no process holds the model"
    os.kill(victims[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    everything = Counter((name, row) for name, rows in ROWS.items() for row in range(rows))
    assert rows_in(pq.read_table(tmp_path / "out" / "data")) == everything
    assert json.loads(stdout)["actors"] == 2  # the one that was killed and the one that took its place


def command_of(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


def test_the_same_promise_holds_on_s3(job_file, tmp_path):
    """Input, output and commit protocol on a real S3 server; the driver is killed once."""
    with fake_s3() as server:
        everything = Counter((name, row) for name, rows in ROWS.items() for row in range(rows))
        store = open_store(f"{server.url}/in")
        for name in ROWS:
            store.put(f"{name}.parquet", (tmp_path / "in" / f"{name}.parquet").read_bytes())
        options = ["--set", f"input.path={server.url}/in/*.parquet", "--set", f"output.path={server.url}/out"]
        ledger, process = Ledger(open_store(f"{server.url}/out")), start(job_file, *options)
        wait_for_commits(ledger, 3, process)
        process.kill()
        process.communicate()
        standing = records(ledger)
        last = start(job_file, *options, "--json")
        stdout, stderr = last.communicate(timeout=180)
        assert last.returncode == 0, stderr
        made = Counter()
        for name in ledger.store.list("data"):
            with ledger.store.open_input(name) as stream:
                made += rows_in(pq.read_table(stream))
        assert made == everything
        assert records(ledger).items() >= standing.items()
        assert json.loads(stdout)["rows"] == sum(ROWS.values())
        assert ledger.success() is not None
        assert "secret" not in stderr.lower()
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in stdout + stderr

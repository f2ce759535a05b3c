"""kill -9 of the driver and of its model's process, then a run to the end: every row once, nothing inferred twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch.ledger import Ledger
from hfbatch.store import open_store
from tests.crashes import committed, inferred, run_in_process
from tests.fake_s3 import fake_s3
from tests.models import sentences
from tests.processes import family

ROWS = {"a": 900, "b": 700, "c": 50}
FEWER = {"a": 330, "b": 220, "c": 50}
MACHINE = {"shard_rows": 40, "max_batch_rows": 8}
COMMAND = [sys.executable, "-m", "hfbatch.cli", "run"]


def write_job(folder, model, files=ROWS):
    """A job over three files; of about 40 shards, unless they are FEWER."""
    (folder / "in").mkdir()
    for name, rows in files.items():
        columns = {"file": [name] * rows, "row": list(range(rows)), "text": sentences(rows, seed=rows, longest=60)}
        pq.write_table(pa.table(columns), folder / f"in/{name}.parquet", row_group_size=200)
    job = {
        "task": "text-classification",
        "model": {"id": str(model)},
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
    }
    (folder / "job.json").write_text(json.dumps(job))  # JSON is YAML too
    return folder / "job.json"


@pytest.fixture
def job_file(tmp_path, classifier):
    return write_job(tmp_path, classifier)


def start(job_file, *options):
    machine = [f"--set={name}={value}" for name, value in MACHINE.items()]
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


def command_of(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


@dataclass(frozen=True)
class Ended:
    """What a run said when it ended, and what a reader found then."""

    code: int
    stdout: str
    stderr: str
    standing: dict[str, bytes]
    rows: Counter
    finished: bool


def end_of(process, ledger, out):
    stdout, stderr = process.communicate(timeout=180)
    rows = rows_in(pq.read_table(out / "data"))  # whole files only, at any moment
    return Ended(process.returncode, stdout, stderr, records(ledger), rows, ledger.success() is not None)


@pytest.fixture(scope="module")
def story(tmp_path_factory, classifier):
    """One command three times: asked to end, killed at a random moment, and robbed of its model's process."""
    folder, seed = tmp_path_factory.mktemp("story"), random.randrange(10**6)
    job_file, out, rng = write_job(folder, classifier), folder / "out", random.Random(seed)
    ledger = Ledger(open_store(str(out)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFBATCH_FAULT_LOG", str(folder / "log"))
        process = start(job_file)
        wait_for_commits(ledger, 1, process)
        process.send_signal(signal.SIGTERM)
        asked = end_of(process, ledger, out)
        began, drained = set(inferred(folder / "log")), committed(str(out))
    process = start(job_file)
    wait_for_commits(ledger, len(asked.standing) + rng.randint(1, 8), process)
    time.sleep(rng.random() * 0.2)
    process.kill()
    killed = end_of(process, ledger, out)
    time.sleep(1)  # its Ray dies with it, within a moment
    process = start(job_file, "--json")
    wait_for_commits(ledger, len(records(ledger)) + 2, process)
    victims = [worker for worker in family(process.pid) if "MapWorker" in command_of(worker)]
    assert victims, "no process holds the model"
    os.kill(victims[0], signal.SIGKILL)
    robbed = end_of(process, ledger, out)
    return SimpleNamespace(
        ledger=ledger, seed=seed, asked=asked, began=began, drained=drained, killed=killed, robbed=robbed
    )


def test_a_signal_ends_the_run_with_its_code_and_says_that_it_resumes(story):
    check_drained(story.asked, 143, story.ledger.runs()[0], story)


def check_drained(run, code, run_id, story):
    assert run.code == code, run.stderr
    assert "the same command resumes" in run.stderr
    assert "Traceback" not in run.stderr
    assert not run.finished
    assert story.ledger.run_file(run_id, "result.json")["exit_code"] == code
    assert story.began == story.drained, "what was in the model is committed"
    assert set(run.rows.values()) == {1}


def test_a_killed_driver_loses_and_doubles_nothing_that_was_committed(story):
    assert story.killed.code == -signal.SIGKILL
    assert not story.killed.finished
    assert story.killed.standing.items() > story.asked.standing.items(), f"seed {story.seed}: a commit record changed"
    assert set(story.killed.rows.values()) == {1}, f"seed {story.seed}"


def test_a_killed_model_process_is_replaced_and_its_shards_run_again(story):
    assert story.robbed.code == 0, (story.seed, story.robbed.stderr)
    report = json.loads(story.robbed.stdout)
    assert report["actors"] == 2  # the one that was killed and the one that took its place
    check_whole(story.robbed.rows, story.robbed.standing, story.killed.standing, report, f"seed {story.seed}")
    assert story.ledger.success()["run_id"] == report["run_id"]


def check_whole(rows, standing, before, report, told, files=ROWS):
    assert rows == Counter((name, row) for name, count in files.items() for row in range(count)), told
    assert standing.items() >= before.items(), f"{told}: a committed shard was inferred again"
    assert report["shards_new"] <= report["shards"] - len(before)
    assert report["rows"] == sum(files.values())


@pytest.mark.slow
def test_ten_kills_of_the_driver_at_random_moments_lose_and_double_nothing(job_file, tmp_path):
    """The moment counts from the start of a run, or from a commit on; a seed that fails can be given here again."""
    seed = random.randrange(10**6)
    rng, ledger, standing = random.Random(seed), Ledger(open_store(str(tmp_path / "out"))), {}
    for _ in range(10):
        process = start(job_file)
        wait_for_commits(ledger, min(len(standing) + rng.randint(0, 3), 38), process)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(1)  # its Ray dies with it, within a moment
        now = records(ledger)
        assert now.items() >= standing.items(), f"seed {seed}: a commit record changed"
        standing = now
        assert ledger.success() is None
        if standing:
            assert set(rows_in(pq.read_table(tmp_path / "out" / "data")).values()) == {1}, f"seed {seed}"
    last = end_of(start(job_file, "--json"), ledger, tmp_path / "out")
    assert last.code == 0, (seed, last.stderr)
    check_whole(last.rows, last.standing, standing, json.loads(last.stdout), f"seed {seed}")
    assert last.finished


@pytest.mark.slow
def test_ctrl_c_ends_the_run_as_a_signal_to_end_does(job_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HFBATCH_FAULT_LOG", str(tmp_path / "log"))
    process, ledger = start(job_file), Ledger(open_store(str(tmp_path / "out")))
    wait_for_commits(ledger, 1, process)
    process.send_signal(signal.SIGINT)
    asked = end_of(process, ledger, tmp_path / "out")
    told = SimpleNamespace(
        ledger=ledger, began=set(inferred(tmp_path / "log")), drained=committed(str(tmp_path / "out"))
    )
    check_drained(asked, 130, ledger.runs()[-1], told)


def killed_without_ray(job_file, ledger, server):
    """The driver is the process that writes, as a worker of Ray is."""
    job, log = json.loads(job_file.read_text()), job_file.parent / "log"
    code = run_in_process(job, "before-commit:kill:4", log, environment=server.env, **MACHINE)
    assert code == -signal.SIGKILL


def killed_with_its_ray(job_file, ledger, server):
    process = start(job_file)
    wait_for_commits(ledger, 3, process)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("kill", [killed_without_ray, pytest.param(killed_with_its_ray, marks=pytest.mark.slow)])
def test_the_same_promise_holds_on_s3(classifier, tmp_path, kill):
    """Input, output and commit protocol on a real S3 server; the driver is killed once."""
    job_file = write_job(tmp_path, classifier, FEWER)
    with fake_s3() as server:
        store, out = open_store(f"{server.url}/in"), f"{server.url}/out"
        for name in FEWER:
            store.put(f"{name}.parquet", (tmp_path / "in" / f"{name}.parquet").read_bytes())
        places = {"input": {"path": f"{server.url}/in/*.parquet"}, "output": {"path": out}}
        job_file.write_text(json.dumps(json.loads(job_file.read_text()) | places))
        ledger = Ledger(open_store(out))
        kill(job_file, ledger, server)
        standing = records(ledger)
        assert len(standing) >= 3
        assert ledger.success() is None
        last = start(job_file, "--json")
        stdout, stderr = last.communicate(timeout=180)
        assert last.returncode == 0, stderr
        made = Counter()
        for name in ledger.store.list("data"):
            with ledger.store.open_input(name) as stream:
                made += rows_in(pq.read_table(stream))
        check_whole(made, records(ledger), standing, json.loads(stdout), "on s3", FEWER)
        assert ledger.success() is not None
        assert "secret" not in stderr.lower()
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in stdout + stderr

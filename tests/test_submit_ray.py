"""Submitted for real: a Ray head on loopback that asks for a token, jobs that end well, badly, and when told to."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from hfbatch.lease import Lease
from hfbatch.store import open_store
from tests import console
from tests.crashes import check_output, committed, inferred
from tests.models import sentences

ROWS = 1600


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head():
    """(address, environment) of a Ray head with a job server that asks for a token."""
    gcs, dashboard, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path: sockets lie below it
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "HFBATCH_FAULT_LOG": f"{folder}/inferred",
    }
    ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    ports |= {"ray-client-server-port": client, "min-worker-port": 0, "max-worker-port": 0}
    where = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", *where]
    command += [f"--{name}={port}" for name, port in ports.items()]
    address, said = f"http://127.0.0.1:{dashboard}", Path(folder, "head.log")
    with (
        said.open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True) as process,
    ):
        try:
            wait_for(lambda: "Ray runtime started" in said.read_text() or process.poll() is not None)
            wait_for(lambda: answers(address) == 401 or process.poll() is not None)
            assert process.poll() is None, said.read_text()
            yield address, environment
        finally:
            process.terminate()
            process.wait(timeout=60)
            shutil.rmtree(folder, ignore_errors=True)


def answers(address):
    """The HTTP status for who has no token; None where nobody is there yet."""
    try:
        urllib.request.urlopen(f"{address}/api/jobs/", timeout=10)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
    raise AssertionError("it asks for no token")


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def hfbatch_there(environment, *arguments):
    command = [sys.executable, "-m", "hfbatch.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture
def real(classifier, write_parquet, job_for, tmp_path):
    """real(texts, **more of the job) -> a job file over files that every node (this machine) has."""

    def make(texts, **more):
        columns = {"file": ["a"] * len(texts), "row": list(range(len(texts))), "text": texts}
        job = job_for("text-classification", classifier, write_parquet("in.parquet", columns))
        file = tmp_path / "real.json"
        file.write_text(json.dumps({**job, **more}))
        return file

    return make


@pytest.mark.slow
def test_a_job_runs_on_a_cluster_that_asks_for_a_token(head, real, tmp_path):
    address, environment = head
    file = real(["good", "bad", None], errors={"max_failed_fraction": 0.5})
    done = hfbatch_there(environment, "submit", file, "--address", address, "--shared", "/", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["state"], found["exit_code"], found["job"]) == ("succeeded", 0, "real")
    assert re.search(r"rows\s+3 in the output", done.stderr), "the run's own report is in its log"
    assert "core_worker.cc" not in done.stderr, "Ray's own words to its developers"
    assert len(list((tmp_path / "out/data").glob("*.parquet"))) == 1
    again = hfbatch_there(environment, "logs", found["id"], "--address", address)
    assert again.returncode == 0
    assert again.stdout.strip() in done.stderr
    nobody = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
    refused = hfbatch_there({**nobody, "HOME": str(tmp_path)}, "submit", file, "--address", address, "--shared", "/")
    assert refused.returncode == 77
    assert "set RAY_AUTH_MODE=token" in refused.stderr


@pytest.mark.slow
def test_a_failed_run_a_second_run_and_a_wrong_version_end_with_their_own_codes(head, real, tmp_path):
    address, environment = head
    file = real(["good", None, None], errors={"max_failed_rows": 1})
    command = ["submit", file, "--address", address, "--shared", "/"]
    done = hfbatch_there(environment, *command)
    assert done.returncode == 3, done.stderr
    assert re.search(r"exit code\s+3", done.stdout)
    with Lease(open_store(str(tmp_path / "out")), "another-run", "real"):
        done = hfbatch_there(environment, *command, "--set", "errors.max_failed_rows=2")
    assert done.returncode == 75, done.stderr
    assert "run another-run is at work on it" in done.stderr
    old = "import sys\nfrom importlib import metadata\nfrom hfbatch import cli\nnow = metadata.version\n"
    old += "metadata.version = lambda name: '0.0.1' if name == 'hfbatch' else now(name)\ncli.main(sys.argv[1:])\n"
    python = [sys.executable, "-c", old, *map(str, command)]
    done = subprocess.run(python, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 70
    assert "hfbatch 0.0.1 packed this job" in done.stderr


@pytest.mark.slow
def test_a_cancelled_job_commits_what_is_in_the_model_and_the_same_submit_goes_on(
    head, real, tmp_path, monkeypatch, capsys
):
    address, environment = head
    file, output, log = real(sentences(ROWS)), tmp_path / "out", Path(environment["HFBATCH_FAULT_LOG"])
    command = ["submit", file, "--address", address, "--shared", "/", "--set=shard_rows=40", "--set=max_batch_rows=4"]
    before = set(inferred(log))
    monkeypatch.setenv("RAY_JOB_HEADERS", json.dumps({"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}))
    hfbatch = console.command_in_this_process(capsys)  # at once: a process of its own might come when all is done
    code, job_id, err = hfbatch(*command, "--no-wait")
    assert code == 0, err
    at = (job_id.strip(), "--address", address, "--json")
    wait_for(lambda: output.exists() and len(committed(str(output))) >= 3)
    assert json.loads(hfbatch("status", *at)[1])["state"] == "running"
    code, out, err = hfbatch("cancel", *at)
    assert (code, json.loads(out)["state"], json.loads(out)["exit_code"]) == (0, "stopped", 143), err
    first = committed(str(output))
    assert 3 <= len(first) < ROWS / 40
    assert set(inferred(log)) - before == first, "what was in the model is committed"
    (result,) = (output / "_hfbatch/runs").glob("*/result.json")
    assert json.loads(result.read_text())["exit_code"] == 143
    done = hfbatch_there(environment, *command)
    assert done.returncode == 0, done.stderr
    assert {inferred(log)[shard] for shard in committed(str(output))} == {1}, "nothing was inferred twice"
    check_output(str(output), Counter(("a", row) for row in range(ROWS)))

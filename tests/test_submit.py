"""A job on a cluster: what is sent there, what is told of it, and the exit code that comes back.

The job server is a small one of the tests' own, on loopback; test_submit_ray.py has Ray's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from hfbatch import submit
from hfbatch.jobserver import connect
from tests import console
from tests.job_server import JobServer

SECRET = "TOPSECRET"
ARRIVE = Path(submit.__file__).parent / "cli" / submit.ARRIVAL
JOB = """\
task: text-classification
model: {id: owner/name}
input: {path: s3://bucket/in/*.parquet}
output: {path: s3://bucket/out}
"""


@pytest.fixture
def server():
    server = JobServer(log="first\nsecond\nlast\n")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def job(tmp_path):
    file = tmp_path / "nightly.yaml"
    file.write_text(JOB)
    return file


@pytest.fixture
def hfbatch(capsys):
    return console.command_in_this_process(capsys)


# what is sent


def test_submit_sends_the_files_and_ends_as_the_job_does(hfbatch, server, job, tmp_path):
    machine = tmp_path / "gpu.yaml"
    machine.write_text("grace_s: 30\n")
    code, out, err = hfbatch("submit", job, "--on", machine, "--address", server.url, "--var", "x=1", "--secret", "A_B")
    (sent,) = server.jobs
    assert code == 0
    assert "first\nsecond\nlast\n" in err
    assert re.search(r"state\s+succeeded", out)
    assert re.search(r"time\s+1:02", out)
    assert set(server.files()) == {"job.yaml", "machine.yaml", "arrive.py"}
    assert (server.files()["job.yaml"], server.files()["arrive.py"]) == (JOB, ARRIVE.read_text())
    version = metadata.version("hfbatch")
    assert shlex.split(sent["entrypoint"]) == [
        *("exec", "python", "arrive.py", f"--hfbatch={version}", "--secret=A_B", "--"),
        *("run", "job.yaml", "--on", "machine.yaml", "--var=x=1", "--set", "address=auto", "--set", "name=nightly"),
    ]
    assert re.fullmatch(r"nightly-\d{8}T\d{6}-[0-9a-f]{8}", sent["submission_id"])
    about = {"hfbatch_version": version, "hfbatch_job": "nightly", "hfbatch_output": "s3://bucket/out"}
    assert sent["metadata"] == about
    assert sent["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "45"}
    assert not {name for name in sent if name.startswith("entrypoint_num") and sent[name]}, "no GPU for the driver"


def test_the_environment_of_this_machine_stays_on_it(hfbatch, server, job, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"{name}-{SECRET}")
    code, out, err = hfbatch("submit", job, "--address", server.url, "--secret", "HF_TOKEN")
    assert code == 0
    assert "HF_TOKEN" in server.jobs[0]["entrypoint"]
    assert SECRET not in "".join([out, err, *server.received, *server.files().values()])


@pytest.mark.parametrize("name", [f"HF_TOKEN={SECRET}", "", "A-B"])
def test_a_secret_is_named_and_not_given(hfbatch, server, job, name):
    code, out, err = hfbatch("submit", job, "--address", server.url, "--secret", name)
    assert (code, out, server.jobs) == (2, "", [])
    assert "write the name alone" in err
    assert SECRET not in err


def test_a_job_whose_data_is_here_is_not_sent(hfbatch, server, job):
    job.write_text(JOB.replace("s3://bucket/in", "data"))
    code, _, err = hfbatch("submit", job, "--address", server.url)
    assert code == 2
    assert "nightly.yaml:3:" in err
    assert not server.received


def test_an_open_cluster_elsewhere_is_refused_until_it_is_asked_for(hfbatch, server, job):
    outward = server.url.replace("127.0.0.1", "0.0.0.0")
    code, _, err = hfbatch("submit", job, "--address", outward)
    assert (code, server.jobs) == (77, [])
    assert "--insecure-cluster" in err
    assert hfbatch("submit", job, "--address", outward, "--insecure-cluster")[0] == 0
    assert len(server.jobs) == 1


def test_no_wait_prints_the_id_and_how_to_follow_it(hfbatch, server, job):
    server.details = {"status": "PENDING", "driver_exit_code": None, "end_time": None}
    code, out, err = hfbatch("submit", job, "--address", server.url, "--no-wait")
    job_id = server.jobs[0]["submission_id"]
    assert (code, out) == (0, f"{job_id}\n")
    assert f"hfbatch logs {job_id} --address {server.url} --follow" in err
    assert f"hfbatch cancel {job_id} --address {server.url}" in err
    code, out, _ = hfbatch("submit", job, "--address", server.url, "--no-wait", "--json")
    found = json.loads(out)
    assert (code, found["state"], found["exit_code"], found["ended"]) == (0, "pending", None, None)


# how it ends


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ({"status": "SUCCEEDED"}, 0),
        ({"status": "STOPPED", "driver_exit_code": None}, 143),
        *(({"status": "FAILED", "driver_exit_code": code}, code) for code in (1, 2, 3, 4, 5, 6, 9, 70, 74, 75, 77, 78)),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
        ({"status": "FAILED", "driver_exit_code": 127}, 70),
        ({"status": "FAILED", "driver_exit_code": None, "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, 4),
        ({"status": "FAILED", "driver_exit_code": None, "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, 70),
        ({"status": "RUNNING", "driver_exit_code": None}, None),
    ],
)
def test_the_exit_code_is_hfbatch_s_own(server, details, code):
    server.details = details
    assert submit.read_job(connect(server.url), "some-id").exit_code == code


def test_submit_ends_with_the_job_s_code_also_as_json(hfbatch, server, job):
    server.details = {"status": "FAILED", "driver_exit_code": 3, "message": "last lines of the log"}
    code, out, err = hfbatch("submit", job, "--address", server.url, "--json")
    found = json.loads(out)
    assert (code, found["exit_code"], found["state"], found["message"]) == (3, 3, "failed", None)
    assert (found["job"], found["output"]) == ("nightly", "s3://bucket/out")
    assert "second" in err


def test_where_ray_failed_its_words_are_shown_without_secrets(hfbatch, server):
    message = f"runtime_env setup failed: s3://AKIA:{SECRET}@bucket/x"
    server.details = {"status": "FAILED", "driver_exit_code": None, "message": message}
    code, out, _ = hfbatch("status", "some-id", "--address", server.url)
    assert code == 0
    assert "runtime_env setup failed: s3://***@bucket/x" in out
    assert re.search(r"exit code\s+70", out)


# its log


def test_a_log_whose_connection_breaks_is_told_whole_and_once(server, monkeypatch):
    monkeypatch.setattr(submit, "_ASK_S", 0.01)
    server.log = "".join(f"line {number}\n" for number in range(100))
    server.cuts = [5, 120, 60]
    server.details = {"status": "RUNNING", "driver_exit_code": None}
    pieces = []

    def tell(piece):
        pieces.append(piece)
        if len("".join(pieces)) == len(server.log):
            server.details = {}

    assert submit.follow(connect(server.url), "some-id", tell).exit_code == 0
    assert "".join(pieces) == server.log
    assert not server.cuts


def test_a_cluster_that_goes_away_is_told_after_a_while_and_the_job_is_said_to_go_on(hfbatch, server, job, monkeypatch):
    monkeypatch.setattr(submit, "_ASK_S", 0.01)
    monkeypatch.setattr(submit, "LOST_S", 0.2)
    server.details = {"status": 0}  # no answer that Ray's client could read
    code, _, err = hfbatch("submit", job, "--address", server.url)
    assert code == 70
    assert "goes on without this command" in err
    assert "hfbatch logs nightly-" in err


def test_logs_print_what_there_is_or_follow_to_the_end(hfbatch, server):
    server.details = {"status": "FAILED", "driver_exit_code": 4}
    assert hfbatch("logs", "some-id", "--address", server.url) == (0, server.log, "")
    assert hfbatch("logs", "some-id", "--address", server.url, "--follow") == (4, server.log, "")
    code, out, err = hfbatch("logs", "some-id", "--address", server.url, "--json")
    assert (code, json.loads(out), err) == (0, {"id": "some-id", "log": server.log}, "")
    code, out, err = hfbatch("logs", "some-id", "--address", server.url, "--json", "-f")
    assert (code, json.loads(out)["exit_code"], err) == (4, 4, server.log)


def test_cancel_waits_for_the_end_and_says_which(hfbatch, server):
    server.details = {"status": "RUNNING", "driver_exit_code": None}
    code, out, _ = hfbatch("cancel", "some-id", "--address", server.url, "--json")
    assert (code, server.stopped) == (0, ["some-id"])
    assert (json.loads(out)["state"], json.loads(out)["exit_code"]) == ("stopped", 143)


@pytest.mark.parametrize("command", [["logs"], ["logs", "--follow"], ["cancel"], ["status"]], ids=" ".join)
def test_a_job_that_the_cluster_does_not_know_is_named(hfbatch, server, command):
    code, _, err = hfbatch(*command, "absent", "--address", server.url)
    assert code == 2
    assert f"the cluster at {server.url} has no job 'absent'" in err


def test_ctrl_c_leaves_the_job_running_and_says_how_to_get_back(server, job):
    server.holding, server.details = True, {"status": "RUNNING", "driver_exit_code": None}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with console.start("submit", job, "--address", server.url, **pipes) as process:
        while "last" not in (line := process.stderr.readline()):
            assert line, "it ended before the log was told"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert f"hfbatch logs {server.jobs[0]['submission_id']}" in err
    assert "Traceback" not in err
    assert server.stopped == []


# on arrival


def arrive(*arguments, python=(sys.executable,), **environment):
    done = subprocess.run(
        [*python, str(ARRIVE), *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


def test_on_arrival_the_same_version_becomes_hfbatch_with_its_exit_code():
    version = metadata.version("hfbatch")
    code, out, _ = arrive(f"--hfbatch={version}", "--secret=SOME_TOKEN", "--", "--version", SOME_TOKEN=SECRET)
    assert (code, out) == (0, f"hfbatch {version}\n")
    assert arrive(f"--hfbatch={version}", "--", "check", "no-such.yaml")[0] == 2


def test_on_arrival_another_version_or_none_is_told_with_both_and_the_cure():
    code, out, err = arrive("--hfbatch=9.9", "--", "--version")
    assert (code, out) == (70, "")
    assert f"hfbatch 9.9 packed this job, and the cluster has hfbatch {metadata.version('hfbatch')}: Python 3." in err
    assert f"Ray {metadata.version('ray')}" in err
    assert "pip install 'hfbatch==9.9' on every node" in err
    code, _, err = arrive("--hfbatch=9.9", "--", "--version", python=(sys.executable, "-S"))
    assert code == 70
    assert "the cluster has no hfbatch" in err


def test_on_arrival_a_secret_that_is_not_there_is_named():
    version = metadata.version("hfbatch")
    code, out, err = arrive(f"--hfbatch={version}", "--secret=NOT_SET", "--secret=SET", "--", "--version", SET="x")
    assert (code, out) == (77, "")
    assert "no NOT_SET\n" in err
    assert "secretKeyRef" in err

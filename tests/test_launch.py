"""The pod that makes a RayJob and follows it, against an API server on loopback that answers as Kubernetes does."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hfbatch.errors import AccessRefused, SpecError, StorageError, SystemicError
from hfbatch.launch import RayJobs, exit_code_of, launch

MANIFEST = "kind: RayJob\nmetadata: {generateName: night-, labels: {hfbatch-job: $(JOB_NAME)}, uid: $(JOB_UID)}\n"
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}


def failed(code):
    message = f"Job entrypoint command failed with exit code {code}, last available logs (truncated):\nexit code 99"
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": message}


def rayjob(name, status):
    return {"metadata": {"name": name}, "status": status}


class Cluster:
    """The rayjobs of namespace `lab`; `answers`: what each GET of one of them gives, the last for ever."""

    def __init__(self):
        self.there, self.answers, self.created, self.asked = [], [SUCCEEDED], [], []
        self.refusal = None

    def answer(self, method, path, body):
        self.asked.append((method, path))
        if self.refusal is not None:
            return self.refusal
        if method == "POST":
            self.created.append(body)
            return 201, rayjob("night-abcde", {})
        if "?" in path:
            return 200, {"items": self.there}
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return (200, rayjob("night-abcde", status)) if isinstance(status, dict) else (status, {"message": "later"})


@contextmanager
def serving(cluster):
    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            assert self.headers["Authorization"] == "Bearer the-token"
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            code, content = cluster.answer(self.command, self.path, body)
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def account(tmp_path):
    for name, text in (("token", "the-token\n"), ("namespace", "lab")):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def follow(cluster, account):
    """Run `launch` to its end: (exit code, lines told)."""
    with serving(cluster) as url:
        told = []

        def call():
            return launch(MANIFEST, "night-1", "u-1", RayJobs(url, account), told.append, every_s=0), told

        yield call


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({}, None),
        ({"jobDeploymentStatus": "Initializing"}, None),
        (RUNNING, None),
        ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED"}, None),
        (SUCCEEDED, 0),
        (failed(3), 3),
        (failed(75), 75),
        (failed(-15), 143),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 143),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, 4),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "head pod lost; exit code 2"}, 4),
    ],
)
def test_the_exit_code_is_read_from_what_ray_says(status, code):
    assert exit_code_of(status) == code


def test_a_rayjob_is_made_for_the_job_and_followed_to_its_end(cluster, follow):
    cluster.answers = [{}, {"jobDeploymentStatus": "Initializing"}, RUNNING, RUNNING, failed(3)]
    code, told = follow()
    assert code == 3
    assert cluster.created == [MANIFEST.replace("$(JOB_NAME)", "night-1").replace("$(JOB_UID)", "u-1")]
    assert cluster.asked[0] == ("GET", "/apis/ray.io/v1/namespaces/lab/rayjobs?labelSelector=hfbatch-job%3Dnight-1")
    assert cluster.asked[2] == ("GET", "/apis/ray.io/v1/namespaces/lab/rayjobs/night-abcde")
    assert [line.rpartition(": ")[2] for line in told[1:4]] == ["Initializing", "Running", "Failed"]
    assert "exit code 3" in told[4]
    assert "the-token" not in "".join(told)


@pytest.mark.parametrize("status", [{}, RUNNING, SUCCEEDED])
def test_a_pod_that_takes_the_place_of_another_follows_the_same_rayjob(cluster, follow, status):
    cluster.there = [rayjob("night-first", failed(4)), rayjob("night-abcde", status)]
    assert follow()[0] == 0
    assert cluster.created == []


def test_a_proxy_of_the_image_is_passed_by(follow, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert follow()[0] == 0


def test_after_a_failed_rayjob_the_next_try_makes_a_new_one(cluster, follow):
    cluster.there = [rayjob("night-first", failed(4))]
    assert follow()[0] == 0
    assert len(cluster.created) == 1


def test_an_api_server_that_is_away_for_a_while_is_waited_for(cluster, follow):
    cluster.answers = [RUNNING, *[503] * 29, SUCCEEDED]
    assert follow()[0] == 0


def test_an_api_server_that_stays_away_ends_the_try(cluster, follow):
    cluster.answers = [RUNNING, 503]
    with pytest.raises(StorageError, match="503 Service Unavailable: later"):
        follow()
    assert len(cluster.asked) == 2 + 1 + 30


@pytest.mark.parametrize(
    ("code", "kind", "what"),
    [
        (403, AccessRefused, "apply the Role and RoleBinding that `hfbatch schedule` wrote to lab"),
        (404, SpecError, "install KubeRay 1.6 or later"),
        (422, SpecError, "spec.entrypoint is wrong"),
        (429, StorageError, "the next try goes on"),
    ],
)
def test_a_refusal_says_what_to_do_and_whether_another_try_helps(cluster, follow, code, kind, what):
    cluster.refusal = (code, {"message": "spec.entrypoint is wrong"})
    with pytest.raises(kind, match=what):
        follow()


def test_outside_of_kubernetes_it_says_so():
    with pytest.raises(SystemicError, match="no pod of Kubernetes"):
        RayJobs.here({})
    pod = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    assert RayJobs.here(pod).url == "https://[fd00::1]:443"


def test_the_pod_ends_at_once_when_it_is_moved(cluster, account, tmp_path):
    """As the first process of a container, for which SIGTERM means nothing that it does not ask for."""
    (tmp_path / "rayjob.yaml").write_text(MANIFEST)
    cluster.answers = [RUNNING]
    with serving(cluster) as url:
        code = (
            "from pathlib import Path; from hfbatch import launch; from hfbatch.cli.launch import main\n"
            f"launch.RayJobs.here = lambda _: launch.RayJobs({url!r}, Path({str(account)!r}))\n"
            f"main({str(tmp_path / 'rayjob.yaml')!r})"
        )
        environment = {**os.environ, "JOB_NAME": "night-1", "JOB_UID": "u-1"}
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert "night-abcde: made" in process.stderr.readline()
            assert "Running" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 143

"""Ray as hfbatch starts it: on loopback, without a dashboard, deaf to RAY_ADDRESS, with a CPU left to read."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from hfbatch.cluster import connected
from hfbatch.errors import SystemicError
from hfbatch.spec import Machine
from tests.processes import family

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.fixture(scope="module")
def local_ray():
    """A Ray that `connected` itself started, with another address in the environment."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = "192.0.2.77:6379"
    with connected(Machine()) as pool:
        yield pool
    assert not ray.is_initialized()
    if before is None:
        del os.environ["RAY_ADDRESS"]


def sockets_of(processes):
    found = set()
    for process in processes:
        folder = Path(f"/proc/{process}/fd")
        for descriptor in folder.iterdir() if folder.exists() else ():
            if descriptor.is_symlink():
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def test_no_port_listens_beyond_loopback(local_ray):
    mine, listening = sockets_of(family(os.getpid())), []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == "0A" and inode in mine:
                listening.append(local.split(":")[0])
    assert listening, "Ray always listens somewhere: this found nothing to judge"
    assert set(listening) <= LOOPBACK


def test_a_dataset_takes_the_actors_of_its_own_pool_and_no_process_more(local_ray):
    class Twice:
        def __call__(self, block):
            return {"id": block["id"] * 2}

    pool = ray.data.ActorPoolStrategy(size=1)
    made = ray.data.range(8, override_num_blocks=2).map_batches(Twice, compute=pool, num_cpus=0.5)
    assert sorted(row["id"] for row in made.take_all()) == list(range(0, 16, 2))
    names = {actor["ActorClassName"] for actor in ray._private.state.actors().values()}
    assert len(names) == 1, names
    assert "MapWorker" in names.pop()


def test_there_is_no_dashboard_and_the_node_is_this_machine_alone(local_ray):
    assert len(ray.nodes()) == 1
    assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
    assert ray._private.worker.global_worker.node.webui_url in (None, "")


def test_by_default_one_actor_has_all_threads_and_a_cpu_is_left_to_read(local_ray):
    assert (local_ray.size.min, local_ray.size.max, local_ray.gpus) == (1, 1, 0)
    assert local_ray.threads == os.cpu_count()
    assert local_ray.cpus <= ray.cluster_resources()["CPU"] - 1
    assert local_ray.cpu_steps_in_actor


def test_actors_that_would_take_every_cpu_leave_one(local_ray):
    cpus = int(ray.cluster_resources()["CPU"])
    with connected(Machine(actors=cpus)) as pool:
        assert pool.size.min * pool.cpus <= cpus - 1
        assert pool.threads == 1


def test_gpus_that_are_not_there_are_refused_instead_of_waited_for(local_ray):
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has GPUs")
    with (
        pytest.raises(SystemicError, match="gpus_per_actor is 1, but Ray sees 0 GPUs"),
        connected(Machine(gpus_per_actor=1)),
    ):
        pass


@pytest.mark.slow
def test_a_job_runs_on_a_cluster_that_is_already_there_and_leaves_it_up(
    classifier, write_parquet, job_for, tmp_path, monkeypatch
):
    """`ray start --head` and the job are processes of their own; `auto` is what RAY_ADDRESS names."""
    job, address = tmp_path / "job.json", "127.0.0.1:26379"
    path = write_parquet("in.parquet", {"text": ["good", "bad"]})
    job.write_text(json.dumps(job_for("text-classification", classifier, path)))
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    options = ["--head", "--block", "--port=26379", "--num-cpus=2", "--include-dashboard=false"]
    with subprocess.Popen([*ray_command, "start", *options], stdout=subprocess.DEVNULL) as head:
        try:
            wait_for(26379)
            run = [sys.executable, "-m", "hfbatch.cli", "run", str(job), "--json", "--set", "address=auto"]
            done = subprocess.run(run, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["rows"] == 2
            assert head.poll() is None
            wait_for(26379)
        finally:
            head.terminate()
            head.wait(timeout=60)


def wait_for(port):
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(0.2)

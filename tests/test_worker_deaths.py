"""Workers and nodes that die, leave or hang at each step, through a real Ray: the run ends right all the same."""

import json
import logging
import os
import signal
from collections import Counter

import pytest
import ray
from ray.cluster_utils import Cluster

from hfbatch import pipeline
from tests.crashes import check_output, committed, inferred
from tests.inline import plan_of
from tests.models import sentences
from tests.test_interrupt import start, when

ROWS = Counter(("a", row) for row in range(200))
MACHINE = {"shard_rows": 40, "row_timeout_s": 5}
QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}


@pytest.fixture
def job(classifier, write_parquet, job_for):
    path = write_parquet("in.parquet", {"file": ["a"] * 200, "row": list(range(200)), "text": sentences(200)})
    return job_for("text-classification", classifier, path)


def run_with(job, fault, log, monkeypatch):
    """A whole run with one fault in one of its workers; Ray hands its environment on to them."""
    monkeypatch.setenv("HFBATCH_FAULT", fault)
    monkeypatch.setenv("HFBATCH_FAULT_LOG", str(log))
    with ray.init(address="local", num_cpus=2, **QUIET):
        return pipeline.run(plan_of(job, **MACHINE))


pytestmark = pytest.mark.slow  # half a minute each

FAULTS = [
    "after-publish:kill:2",  # published, not committed
    "after-commit:kill:2",  # committed, before Ray hears of it
    "before-inference:kill:2",
    "after-inference:kill:3",
    "before-commit:raise:2",
    "before-inference:exit:2",  # SystemExit, which Ray Data would wait for, for ever
    "before-publish:exit:2",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_fails_once_costs_at_most_its_shard_once_more(fault, job, tmp_path, monkeypatch):
    log = tmp_path / "log"
    report = run_with(job, fault, log, monkeypatch)
    check_output(job["output"]["path"], ROWS)
    assert (report.rows, report.rows_failed) == (200, 0)
    assert fault.split(":")[0] in log.read_text()
    assert max(inferred(log).values()) <= 2


def test_a_worker_that_is_terminated_in_mid_batch_is_replaced(job, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("HFBATCH_FAULT_LOG", str(log))
    killed = []

    def terminate():
        for worker in actors():
            os.kill(worker, signal.SIGTERM)
            killed.append(worker)

    with ray.init(address="local", num_cpus=2, **QUIET):
        struck = when(lambda: len(committed(job["output"]["path"])) >= 1, terminate)
        pipeline.run(plan_of(job, **MACHINE | {"shard_rows": 20, "max_batch_rows": 1}))
        struck.join()
    assert killed
    check_output(job["output"]["path"], ROWS)


def actors():
    """Processes that hold the model."""
    from tests.processes import family
    from tests.test_kill import command_of

    return [worker for worker in family(os.getpid()) if "MapWorker" in command_of(worker)]


def test_a_node_that_is_removed_takes_no_row_with_it(job, tmp_path, monkeypatch):
    """Two nodes; the one without the driver goes away with its model in the middle of the run."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    node = cluster.add_node(num_cpus=2)
    try:
        ray.init(address=cluster.address, **{k: v for k, v in QUIET.items() if k != "include_dashboard"})
        gone = []

        def remove():
            cluster.remove_node(node, allow_graceful=False)
            gone.append(node)

        removed = when(lambda: len(committed(job["output"]["path"])) >= 2, remove)
        machine = MACHINE | {"shard_rows": 10, "max_batch_rows": 1, "actors": 2, "threads_per_actor": 1}
        pipeline.run(plan_of(job, address=cluster.address, **machine))
        removed.join()
        assert gone
    finally:
        ray.shutdown()
        cluster.shutdown()
    check_output(job["output"]["path"], ROWS)


def test_a_run_whose_lease_is_stolen_gives_way_and_nothing_is_doubled(job, tmp_path):
    """Another run takes over while the first is in the middle; both work for a while."""
    first = start(job, tmp_path, "--set=shard_rows=10", "--set=max_batch_rows=1")
    while not committed(job["output"]["path"]):
        assert first.poll() is None, first.communicate()
    lease = tmp_path / "out/_hfbatch/lease.json"
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"run_id": "thief", "pid": 2**22 + 1}))
    second = start(job, tmp_path, "--set=shard_rows=10", "--wait")
    _, told = second.communicate(timeout=240)
    assert second.returncode == 0, told
    _, told = first.communicate(timeout=60)
    assert first.returncode in (0, 75), told
    check_output(job["output"]["path"], ROWS)

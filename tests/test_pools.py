"""Pools of actors: how many, on which GPUs; and on a cluster of three nodes that grow, lose a node and heal.

The nodes' GPUs are numbers that Ray counts: an actor reserves one, and its model is then put on the CPU.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

import hfbatch
from hfbatch import passes, worker
from hfbatch.cluster import pool_for
from hfbatch.errors import SpecError, SystemicError
from hfbatch.ledger import Ledger
from hfbatch.load import load_machine
from hfbatch.spec import Machine
from hfbatch.store import open_store
from tests.fake_hub import fake_hub
from tests.harm import add
from tests.models import bert, sentences
from tests.test_interrupt import when

# how many


def pool(nodes, **machine):
    """(fewest, at the start, most) actors, and the GPUs of each."""
    made = pool_for(load_machine(machine), nodes)
    return (made.size.min, made.start, made.size.max), made.gpus


def gpus(*counts):
    """Nodes with eight CPUs each."""
    return [{"CPU": 8.0, **({"GPU": float(count)} if count else {})} for count in counts]


@pytest.mark.parametrize(
    ("nodes", "machine", "actors", "each"),
    [
        (gpus(0), {}, (1, 1, 1), 0),
        (gpus(4), {}, (4, 4, 4), 1),  # one a GPU
        (gpus(0, 2, 2), {}, (4, 4, 4), 1),
        (gpus(4), {"gpus_per_actor": 0}, (1, 1, 1), 0),
        (gpus(1), {"gpus_per_actor": 0.25}, (4, 4, 4), 0.25),  # a share each
        (gpus(2), {"gpus_per_actor": 0.4}, (4, 4, 4), 0.4),  # never of two GPUs, though 5 x 0.4 is 2
        (gpus(3, 3), {"gpus_per_actor": 2}, (2, 2, 2), 2),  # never of two nodes, though 3 x 2 is 6
        (gpus(2, 2), {"actors": {"min": 1, "max": 8}}, (1, 4, 8), 1),  # what there is; the rest as nodes come
        (gpus(2, 2), {"actors": {"min": 1, "max": 3}}, (1, 3, 3), 1),
        (gpus(2, 2), {"actors": {"min": 6, "max": 8}}, (6, 6, 8), 1),  # waits for a node
        (gpus(2), {"actors": 1}, (1, 1, 1), 1),
        (gpus(0, 0), {"actors": {"min": 1, "max": 8}}, (1, 1, 8), 0),  # grows as work comes
        (gpus(0), {"actors": {"max": 8}, "gpus_per_actor": 1, "address": "auto"}, (1, 1, 8), 1),  # nodes yet to come
    ],
)
def test_a_pool_begins_with_as_many_actors_as_the_gpus_have_room_for(nodes, machine, actors, each):
    assert pool(nodes, **machine) == (actors, each)


@pytest.mark.parametrize(("nodes", "actors"), [(gpus(8), 8), ([{"CPU": 2.0, "GPU": 4.0}], 4)])
def test_a_cpu_is_left_to_read_whatever_the_gpus_take(nodes, actors):
    made = pool_for(Machine(), nodes)
    assert made.size.max == actors
    assert 0 < made.start * made.cpus <= sum(node["CPU"] for node in nodes) - 1


def test_a_gpu_that_is_not_on_this_machine_is_refused():
    with pytest.raises(SystemicError, match="gpus_per_actor is 2, but Ray sees 1 GPUs here"):
        pool(gpus(1), gpus_per_actor=2)


def test_more_than_one_gpu_is_whole_gpus():
    with pytest.raises(SpecError, match=r"gpus_per_actor: 1\.5 is no whole number, nor a share"):
        load_machine({"gpus_per_actor": 1.5})


# on a cluster

PATIENT = """
import os
import time
from pathlib import Path

from transformers import BertForSequenceClassification


class Patient(BertForSequenceClassification):
    def forward(self, **inputs):
        here = Path(self.config.meeting)
        (here / str(os.getpid())).touch()
        deadline = here.stat().st_mtime + 120  # since the last one came
        while not (here / "go").exists() and time.time() < deadline:
            time.sleep(0.05)
        return super().forward(**inputs)
"""
DYING = """
import os
from pathlib import Path

from transformers import BertForSequenceClassification


class Dying(BertForSequenceClassification):
    def __init__(self, config):
        if len(list(Path(config.deaths).iterdir())) < config.most:
            (Path(config.deaths) / str(os.getpid())).touch()
            os.kill(os.getpid(), 9)
        super().__init__(config)
"""
SHARDS, ROWS = 9, 20  # of each


def on_the_cpu(run, pool, tally):
    """In place of worker.Worker."""
    return worker.Worker(run, replace(pool, gpus=0.0), tally)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes with a GPU in name, the driver on the first; and a Hub that their workers know of."""
    with fake_hub(tmp_path_factory.mktemp("hub") / "cache") as hub:
        soon = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
        head = {"num_cpus": 2, "num_gpus": 1, "_system_config": soon}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=1, num_gpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield SimpleNamespace(cluster=cluster, hub=hub)
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def meeting(tmp_path):
    """A folder where each process that has a batch leaves its name, and waits for `go`."""
    (tmp_path / "meeting").mkdir()
    return tmp_path / "meeting"


@pytest.fixture
def run(nodes, meeting, tmp_path):
    """run(**machine) -> what became of a job whose model comes from the Hub and is patient."""

    def go(**machine):
        folder = bert(tmp_path / "model", meeting=str(meeting))
        (folder / "patient.py").write_text(PATIENT)
        add(folder / "config.json", {"AutoModelForSequenceClassification": "patient.Patient"})
        commit = nodes.hub.commit(f"owner/{tmp_path.name}", folder)
        (tmp_path / "in").mkdir()
        for name in range(SHARDS):
            rows = range(name * ROWS, (name + 1) * ROWS)
            table = pa.table({"row": list(rows), "text": sentences(ROWS, seed=name)})
            pq.write_table(table, tmp_path / f"in/{name}.parquet")
        model = {"id": f"owner/{tmp_path.name}", "revision": commit, "code_revision": commit}
        job = {
            "task": "text-classification",
            "model": model | {"trust_remote_code": True},
            "input": {"path": str(tmp_path / "in")},
            "output": {"path": str(tmp_path / "out")},
        }
        nodes.hub.requests.clear()
        on = {"address": nodes.cluster.address, "shard_rows": ROWS, "cpus_per_actor": 0.5, **machine}
        report = hfbatch.run(job, on=on, trust_remote_code=True)
        ledger = Ledger(open_store(job["output"]["path"]))
        receipts = ledger.receipts(report.generation, sorted(ledger.committed(report.generation)))
        rows = Counter(pq.read_table(tmp_path / "out/data")["row"].to_pylist())
        return SimpleNamespace(report=report, rows=rows, actors={receipt.stats["actor"] for receipt in receipts})

    return go


def met(meeting: Path, processes: int):
    """Whether so many processes have a batch."""
    return lambda: len(list(meeting.iterdir())) >= processes


EVERY_ROW_ONCE = Counter(range(SHARDS * ROWS))


@pytest.mark.slow
def test_a_pool_without_gpus_grows_from_one_actor_while_shards_wait(run, meeting):
    grown = when(met(meeting, 2), (meeting / "go").touch)
    made = run(actors={"min": 1, "max": 2}, gpus_per_actor=0)
    grown.join()
    assert (made.report.outcome, made.report.actors) == ("success", 2)
    assert made.rows == EVERY_ROW_ONCE


@pytest.mark.slow
def test_a_pool_on_gpus_begins_with_all_of_them_and_outlives_a_node(nodes, run, meeting, monkeypatch):
    """Three actors hold a shard each when a node goes; the other two do its work, and the Hub was asked once."""
    monkeypatch.setattr(passes, "Worker", on_the_cpu)
    node = nodes.cluster.add_node(num_cpus=1, num_gpus=1)
    lost = []

    def lose():
        nodes.cluster.remove_node(node, allow_graceful=False)
        lost.append(len(list(meeting.iterdir())))
        (meeting / "go").touch()

    losing = when(met(meeting, 3), lose)
    made = run(actors={"min": 1, "max": 3})
    losing.join()
    assert lost == [3]
    assert (made.report.outcome, made.report.rows_failed) == ("success", 0)
    assert made.rows == EVERY_ROW_ONCE
    fetched = Counter(request for request in nodes.hub.requests if "/resolve/" in request)
    assert any("model.safetensors" in request for request in fetched)
    assert set(fetched.values()) == {1}, fetched


@pytest.fixture
def dying(nodes, tmp_path, write_parquet, job_for):
    """dying(deaths) -> runs a job whose process is killed so many times while it loads the model."""

    def go(deaths):
        (tmp_path / "deaths").mkdir()
        model = bert(tmp_path / "model", deaths=str(tmp_path / "deaths"), most=deaths)
        (model / "dying.py").write_text(DYING)
        add(model / "config.json", {"AutoModelForSequenceClassification": "dying.Dying"})
        job = job_for("text-classification", model, write_parquet("in.parquet", {"text": sentences(20)}))
        job["model"]["trust_remote_code"] = True
        on = {"address": nodes.cluster.address, "gpus_per_actor": 0}
        return hfbatch.run(job, on=on, trust_remote_code=True)

    return go


@pytest.mark.slow
def test_an_actor_that_dies_while_it_loads_is_replaced(dying):
    assert dying(1).outcome == "success"


@pytest.mark.slow
def test_a_model_that_kills_every_process_ends_the_run(dying, tmp_path):
    with pytest.raises(SystemicError, match="3 processes or more died while they loaded the model"):
        dying(1000)
    assert len(list((tmp_path / "deaths").iterdir())) == 3

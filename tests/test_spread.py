"""Two actors on two nodes of one cluster: every actor gets work, and none waits in line while another has nothing."""

import logging
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

import hfbatch
from hfbatch.ledger import Ledger
from hfbatch.store import open_store
from tests.harm import add
from tests.models import bert, sentences

pytestmark = pytest.mark.slow  # two nodes, and an actor on each

PATIENT = """
import os
import time
from pathlib import Path

from transformers import BertForSequenceClassification


class Patient(BertForSequenceClassification):
    def forward(self, **inputs):
        here = Path(self.config.meeting)
        (here / str(os.getpid())).touch()
        deadline = here.stat().st_mtime + 60  # since the last one came: with no second one all of this fails soon
        while len(list(here.iterdir())) < 2 and time.time() < deadline:
            time.sleep(0.05)
        return super().forward(**inputs)
"""


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster whose nodes have room for one actor each; the driver is on the first."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def spread(two_nodes, tmp_path):
    """spread(shards) -> what a run of that many came to; nothing leaves a model before the other has a shard too."""

    def run(shards):
        (tmp_path / "in").mkdir()
        (tmp_path / "meeting").mkdir()
        model = bert(tmp_path / "model", meeting=str(tmp_path / "meeting"))
        (model / "patient.py").write_text(PATIENT)
        add(model / "config.json", {"AutoModelForSequenceClassification": "patient.Patient"})
        for name in range(shards):
            pq.write_table(pa.table({"text": sentences(20, seed=name)}), tmp_path / f"in/{name}.parquet")
        job = {
            "task": "text-classification",
            "model": {"id": str(model), "trust_remote_code": True},
            "input": {"path": str(tmp_path / "in")},
            "output": {"path": str(tmp_path / "out")},
        }
        machine = {"address": two_nodes.address, "actors": 2, "shard_rows": 20, "row_timeout_s": 120}
        report = hfbatch.run(job, on=machine, trust_remote_code=True)
        ledger = Ledger(open_store(job["output"]["path"]))
        receipts = ledger.receipts(report.generation, sorted(ledger.committed(report.generation)))
        by_actor = Counter(receipt.stats["actor"] for receipt in receipts)
        return SimpleNamespace(report=report, by_actor=by_actor, nodes={node_of(actor) for actor in by_actor})

    return run


def node_of(actor):
    """The node of a receipt's `actor`, which ends in its process."""
    process = int(actor.split(":")[1])
    (node,) = {info["Address"]["NodeID"] for info in ray._private.state.actors().values() if info["Pid"] == process}
    return node


@pytest.mark.parametrize("shards", [2, 8])
def test_shards_are_spread_over_the_actors_and_the_actors_over_the_nodes(spread, shards):
    made = spread(shards)
    assert (made.report.rows, made.report.shards, made.report.actors) == (20 * shards, shards, 2)
    assert len(made.nodes) == 2
    assert min(made.by_actor.values()) >= min(2, shards // 2), made.by_actor

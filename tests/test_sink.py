import json
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import columns as col
from hfbatch import sink
from hfbatch.errors import Conflict, Damage, ErrorBudgetExceeded
from hfbatch.ledger import Ledger
from hfbatch.postprocess import Finish
from hfbatch.records import data_name
from hfbatch.sink import Commit, in_order
from hfbatch.source import ReadShard
from hfbatch.store import open_store
from tests.inline import plan_of


@pytest.fixture
def finished(classifier, write_parquet, job_for):
    """(plan, a block as it reaches the sink): two rows, one of them without text."""
    path = write_parquet("in.parquet", {"text": ["good", None]})
    plan = agreed(plan_of(job_for("text-classification", classifier, path)))
    return plan, block_of(plan)


def agreed(plan):
    """The plan, ruling its output."""
    Ledger(open_store(plan.job.output)).agree(plan.job.generation, plan.shards, None)
    return plan


def block_of(plan):
    """What the sink gets when no row went through the model."""
    shard = plan.shards[0]
    table = ReadShard(plan.job).read(shard, [plan.files[piece.path] for piece in shard.pieces])
    table = col.with_column(table, col.ERROR, pa.array(["forward_failed: x", "null_input: text is null"][: len(table)]))
    return Finish(plan.job, "run1")(table)


def test_a_shard_becomes_one_parquet_object_and_one_record(finished):
    plan, block = finished
    receipt = json.loads(Commit(plan.job, "run1", 1)(block)["receipt"][0].as_py())
    ledger = Ledger(open_store(plan.job.output))
    shard = plan.shards[0].id
    assert receipt["rows"] == 2
    assert receipt["errors"] == {"forward_failed": 1, "null_input": 1}
    assert receipt["stats"]["examples"] == {"forward_failed": "x", "null_input": "text is null"}
    assert (receipt["stats"]["labels"], sum(receipt["stats"]["scores"])) == ({}, 0)
    assert ledger.store.list("data") == [receipt["data"]] == [data_name(shard, plan.job.generation)]
    assert ledger.committed(plan.job.generation) == {shard}
    with ledger.store.open_input(receipt["data"]) as stream:
        table = pq.read_table(stream, page_checksum_verification=True)
    assert table.schema.equals(plan.job.output_schema)
    assert table["text"].to_pylist() == ["good", None]


def test_the_seconds_of_a_write_hold_the_writing_of_the_object(finished, monkeypatch):
    plan, block = finished
    real = sink._write_parquet
    monkeypatch.setattr(sink, "_write_parquet", lambda *arguments: (time.sleep(0.05), real(*arguments)))
    receipt = json.loads(Commit(plan.job, "run1", 1)(block)["receipt"][0].as_py())
    assert receipt["stats"]["write_s"] >= 0.05
    (standing,) = Ledger(open_store(plan.job.output)).receipts(plan.job.generation, [receipt["shard"]])
    assert standing.stats["write_s"] == receipt["stats"]["write_s"]


def test_a_second_writer_adopts_the_object_that_is_there(finished):
    plan, block = finished
    first = json.loads(Commit(plan.job, "run1", 1)(block)["receipt"][0].as_py())
    ledger = Ledger(open_store(plan.job.output))
    ledger.store.delete([f"_hfbatch/commits/{plan.job.generation[:8]}/{first['shard']}.json"])
    before = ledger.store.get(first["data"])
    second = json.loads(Commit(plan.job, "run2", 1)(block_of(plan))["receipt"][0].as_py())
    assert (second["run_id"], second["sha256"]) == ("run1", first["sha256"])
    assert ledger.store.get(first["data"]) == before
    assert ledger.committed(plan.job.generation) == {first["shard"]}


def test_an_object_with_other_rows_than_its_name_says_is_not_adopted(finished):
    plan, block = finished
    store = open_store(plan.job.output)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["x"]}), sink)
    store.put(data_name(plan.shards[0].id, plan.job.generation), sink.getvalue().to_pybytes())
    with pytest.raises(Conflict, match="holds other rows than its name says"):
        Commit(plan.job, "run1", 1)(block)


def test_under_policy_fail_the_first_bad_row_is_named_and_nothing_is_committed(classifier, write_parquet, job_for):
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": ["good", None]}))
    plan = agreed(plan_of({**job, "errors": {"policy": "fail"}}))
    with pytest.raises(ErrorBudgetExceeded, match=r"in.parquet row 0: forward_failed: x"):
        Commit(plan.job, "run1", 1)(block_of(plan))
    assert Ledger(open_store(plan.job.output)).committed(plan.job.generation) == set()


def test_a_shard_without_rows_is_committed_without_an_object(classifier, write_parquet, job_for):
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": ["good"], "n": [1]}))
    job["input"]["where"] = "n > 5"
    plan = agreed(plan_of(job))
    receipt = json.loads(Commit(plan.job, "run1", 1)(block_of(plan))["receipt"][0].as_py())
    assert (receipt["rows"], receipt["data"]) == (0, None)
    assert Ledger(open_store(plan.job.output)).committed(plan.job.generation) == {plan.shards[0].id}


def ticketed(numbers, rows=3):
    ticket = col.Ticket("s", rows, col.digest(np.arange(rows)), [("f", "v", 0, rows)])
    table = pa.table({"x": [str(n) for n in numbers], col.ROW: pa.array(numbers, pa.int64())})
    return table, ticket


def test_rows_are_put_back_in_order():
    table, numbers = in_order(*ticketed([2, 0, 1]))
    assert table.to_pydict() == {"x": ["0", "1", "2"]}
    assert list(numbers) == [0, 1, 2]


@pytest.mark.parametrize("numbers", [[0, 1], [0, 1, 1], [0, 1, 3], [0, 1, 2, 2]])
def test_a_missing_doubled_or_foreign_row_is_never_committed(numbers):
    with pytest.raises(AssertionError, match="3 rows were read"):
        in_order(*ticketed(numbers))


def overtake(plan):
    """Another run's plan rules, which does not name the shards of this one."""
    ledger = Ledger(open_store(plan.job.output))
    ledger.agree(plan.job.generation, [replace(plan.shards[0], id="000002-" + "0" * 16)], ledger.agreed())
    return ledger


def test_a_writer_whose_plan_was_overtaken_puts_nothing(finished):
    plan, block = finished
    ledger = overtake(plan)
    with pytest.raises(Conflict, match="another run has taken over"):
        Commit(plan.job, "run1", 1)(block)
    assert (ledger.store.list("data"), ledger.store.list("_hfbatch/commits")) == ([], [])


@pytest.mark.parametrize("slept_at", ["before-publish", "after-publish", "before-commit", "after-commit"])
def test_a_writer_that_sleeps_while_it_is_overtaken_takes_back_what_it_put(finished, monkeypatch, slept_at):
    plan, block = finished
    ledger = Ledger(open_store(plan.job.output))
    monkeypatch.setattr("hfbatch.sink.point", lambda name, _: name == slept_at and overtake(plan))
    with pytest.raises(Conflict, match="another run has taken over"):
        Commit(plan.job, "run1", 1)(block)
    assert (ledger.store.list("data"), ledger.store.list("_hfbatch/commits")) == ([], [])


def test_an_overtaken_writer_leaves_what_was_published_before(finished):
    """Yesterday's object stays where readers find it until the new plan's own is whole."""
    plan, block = finished
    receipt = json.loads(Commit(plan.job, "run1", 1)(block)["receipt"][0].as_py())
    ledger = overtake(plan)
    with pytest.raises(Conflict):
        Commit(plan.job, "zombie", 1)(block_of(plan))
    assert ledger.store.list("data") == [receipt["data"]]


def test_a_damaged_object_is_not_adopted(finished):
    plan, block = finished
    receipt = json.loads(Commit(plan.job, "run1", 1)(block)["receipt"][0].as_py())
    store = open_store(plan.job.output)
    content = bytearray(store.get(receipt["data"]))
    content[50] ^= 1
    store.put(receipt["data"], bytes(content))
    store.delete(store.list("_hfbatch/commits"))
    with pytest.raises(Damage, match="hfbatch repair"):
        Commit(plan.job, "run2", 1)(block_of(plan))

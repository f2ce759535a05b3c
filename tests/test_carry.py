"""Carried-over results: rows of unchanged files, and of a retry, are taken from the object that holds them."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfbatch import passes, pipeline
from hfbatch.carry import Held, carried_over, renumbered
from hfbatch.ledger import Ledger
from hfbatch.store import open_store
from tests.inline import inline_passes, plan_of
from tests.models import sentences


@st.composite
def helds(draw):
    """An object of one to three files, and which of its rows passed a filter."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    pieces = [(f"f{i}", "v", start := draw(st.integers(0, 9)), start + size) for i, size in enumerate(sizes)]
    passed = draw(st.lists(st.booleans(), min_size=sum(sizes), max_size=sum(sizes)))
    return Held(pieces, np.flatnonzero(passed).astype(np.int64))


@given(helds())
def test_which_rows_an_object_holds_survives_its_footer(held):
    again = Held.from_json(held.to_json())
    assert again.pieces == held.pieces
    assert list(again.numbers) == list(held.numbers)


@given(helds(), st.data())
def test_rows_are_known_again_by_file_fingerprint_and_number(held, data):
    """The new pieces: some of the old ones, cut or not, in any order, and some that the object never held."""
    pieces = []
    for path, _, start, stop in held.pieces:
        low = data.draw(st.integers(start, stop))
        pieces.append((path, data.draw(st.sampled_from(["v", "changed"])), low, data.draw(st.integers(low, stop + 3))))
    pieces = data.draw(st.permutations([*pieces, ("new", "v", 0, 4)]))
    everything = [(path, version, row) for path, version, start, stop in pieces for row in range(start, stop)]
    numbers = renumbered(held, pieces)
    for position, number in enumerate(numbers):
        path, row = held.place(position)
        place = (path, "v", row)  # the version that was held
        assert (everything[number] == place) if number >= 0 else (place not in everything)


@pytest.fixture
def bundle(classifier, write_parquet, job_for, monkeypatch):
    """A published output of three small files in one shard; (job, what was inferred since)."""
    for name in "abc":
        write(write_parquet, name)
    job = job_for("text-classification", classifier, write_parquet("in/c.parquet", texts("c")).parent)
    monkeypatch.setattr(passes, "run_passes", inline_passes)
    job["errors"] = {"max_failed_fraction": 1}
    job["input"]["columns"] = {"text": "words"}
    pipeline.run(plan_of(job))
    return job


def texts(name, seed=0):
    return {"file": [name] * 20, "row": list(range(20)), "words": [*sentences(19, seed=ord(name) + seed), None]}


def write(write_parquet, name, seed=0):
    return write_parquet(f"in/{name}.parquet", texts(name, seed))


def output(job):
    """Its rows in order, as dicts: tables with other dictionaries are not equal though their values are."""
    table = pq.read_table(job["output"]["path"] + "/data")
    return table.sort_by([("file", "ascending"), ("row", "ascending")]).to_pylist()


def test_a_changed_file_costs_its_own_rows_and_not_its_neighbours(bundle, write_parquet):
    before = output(bundle)
    write(write_parquet, "b", seed=9)
    plan = plan_of(bundle)
    assert len(plan.todo) == 2
    report = pipeline.run(plan)
    assert (report.rows, report.rows_new) == (60, 20)
    after = output(bundle)
    assert [row["words"] for row in after[20:40]] != [row["words"] for row in before[20:40]]
    assert after[:20] + after[40:] == before[:20] + before[40:], "down to the run_id that made them"
    assert plan_of(bundle).complete


def test_a_removed_file_costs_nothing(bundle, tmp_path):
    before = output(bundle)
    (tmp_path / "in" / "b.parquet").unlink()
    report = pipeline.run(plan_of(bundle))
    assert (report.rows, report.rows_new) == (40, 0)
    assert output(bundle) == before[:20] + before[40:]


def test_with_a_filter_the_rows_are_known_again_too(bundle, write_parquet, tmp_path):
    bundle["input"]["where"] = "row >= 5 and row != 7"
    bundle["output"]["path"] = str(tmp_path / "filtered")
    pipeline.run(plan_of(bundle))
    before = output(bundle)
    write(write_parquet, "a", seed=9)
    assert pipeline.run(plan_of(bundle)).rows_new == 14
    after = output(bundle)
    assert after[14:] == before[14:]
    assert [row["row"] for row in after[:14]] == [5, 6, *range(8, 20)]


def test_a_retry_infers_the_rows_that_failed_and_no_others(bundle):
    before, ledger = output(bundle), Ledger(open_store(bundle["output"]["path"]))
    (shard,) = ledger.agreed().shards
    report = pipeline.run(plan_of(bundle, retry={shard.id}))
    assert (report.rows, report.rows_new, report.rows_failed) == (60, 3, 3)
    after = output(bundle)
    changed = [a["run_id"] != b["run_id"] for a, b in zip(after, before, strict=True)]
    assert np.flatnonzero(changed).tolist() == [19, 39, 59]
    assert [row | {"run_id": ""} for row in after] == [row | {"run_id": ""} for row in before]


def test_where_the_old_object_is_gone_all_rows_are_inferred(bundle, tmp_path):
    ledger = Ledger(open_store(bundle["output"]["path"]))
    (tmp_path / "in" / "b.parquet").unlink()
    plan = plan_of(bundle)
    ledger.store.delete(ledger.store.list("data"))
    assert len(carried_over(ledger, plan.todo[0].base, plan.job.generation, [])[0]) == 0
    assert pipeline.run(plan).rows_new == 40
    assert len(output(bundle)) == 40

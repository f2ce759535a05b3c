"""Shards of real plans, read back; Ray's part is in test_pipeline.py."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfbatch import columns as col
from hfbatch.source import ReadShard
from tests.inline import blocks_of, plan_of
from tests.models import sentences


@pytest.fixture
def many_files(classifier, write_parquet, job_for):
    """25 rows in three files of 10, 12 and 3; every row knows where it stands."""
    for name, rows, size in (("a", 10, 4), ("b", 12, 12), ("c", 3, 1)):
        columns = {"file": [f"{name}.parquet"] * rows, "row": list(range(rows)), "text": sentences(rows, seed=rows)}
        path = write_parquet(f"in/{name}.parquet", columns, row_group_size=size)
    return job_for("text-classification", classifier, path.parent)


def where_each_row_stood(block):
    """(file, row) of each row, as the ticket's place says and as the row itself says."""
    ticket = col.ticket_of(block)
    said = [ticket.place(number) for number in block[col.ROW].to_pylist()]
    return [place.rsplit("/", 1)[-1] for place in said], [
        f"{file} row {row}" for file, row in zip(block["file"].to_pylist(), block["row"].to_pylist(), strict=True)
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 30))
def test_shards_over_several_files_hold_each_row_once_and_know_its_place(many_files, shard_rows):
    plan = plan_of(many_files, shard_rows=shard_rows)
    found = []
    for shard, block in zip(plan.shards, blocks_of(plan), strict=True):
        said, true = where_each_row_stood(block)
        assert said == true
        assert block[col.ROW].to_pylist() == list(range(shard.rows))
        ticket = col.ticket_of(block)
        assert (ticket.shard, ticket.rows) == (shard.id, shard.rows)
        assert ticket.digest == col.digest(np.arange(shard.rows))
        assert block[col.ERROR].null_count == len(block)
        found += true
    sizes = {"a": 10, "b": 12, "c": 3}
    assert found == [f"{name}.parquet row {row}" for name, rows in sizes.items() for row in range(rows)]


def test_where_leaves_rows_out_and_the_others_keep_their_numbers(many_files):
    many_files["input"]["where"] = "row % 4 == 1"
    plan = plan_of(many_files)
    [block] = blocks_of(plan)
    said, true = where_each_row_stood(block)
    assert said == true
    assert block["row"].to_pylist() == [1, 5, 9, 1, 5, 9, 1]
    assert block[col.ROW].to_pylist() == [1, 5, 9, 11, 15, 19, 23], "counted before the filter"
    ticket = col.ticket_of(block)
    assert (ticket.rows, ticket.digest) == (7, col.digest(block[col.ROW].to_numpy()))


def test_where_may_read_a_column_that_is_not_kept(many_files):
    many_files["input"] |= {"where": "file == 'c.parquet'", "keep": ["row"]}
    [block] = blocks_of(plan_of(many_files))
    assert block["row"].to_pylist() == [0, 1, 2]
    assert set(block.column_names) - {"row", "text", "file"} == {col.ROW, col.ERROR, col.TICKET}


def test_a_shard_without_rows_is_one_row_of_nulls_that_stands_for_it(many_files):
    many_files["input"]["where"] = "row > 99"
    [block] = blocks_of(plan_of(many_files))
    assert block[col.ROW].to_pylist() == [col.EMPTY_ROW]
    assert block.select(["file", "row", "text", col.ERROR]).to_pylist() == [
        {"file": None, "row": None, "text": None, col.ERROR: None}
    ]
    ticket = col.ticket_of(block)
    assert (ticket.rows, ticket.digest) == (0, col.digest(np.zeros(0, np.int64)))


def test_files_of_several_types_come_in_the_type_that_holds_them_all(classifier, write_parquet, job_for):
    write_parquet("in/a.parquet", pa.table({"text": ["good"], "n": pa.array([1], pa.int32())}))
    write_parquet("in/b.parquet", pa.table({"text": ["bad"], "n": pa.array([2.5]), "more": ["x"]}))
    path = write_parquet("in/c.parquet", pa.table({"text": pa.array(["film"], pa.large_string()), "n": pa.nulls(1)}))
    plan = plan_of(job_for("text-classification", classifier, path.parent))
    [block] = blocks_of(plan)
    assert block.select(plan.job.input_schema.names).schema.equals(plan.job.input_schema)
    assert block.schema.field("n").type == pa.float64()
    assert block.select(["text", "n", "more"]).to_pydict() == {
        "text": ["good", "bad", "film"],
        "n": [1.0, 2.5, None],
        "more": [None, "x", None],
    }


def test_a_packed_shard_is_one_block_and_says_what_reading_it_took(many_files):
    plan = plan_of(many_files, shard_rows=10)
    packed = []
    for shard in plan.shards:
        refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces]
        packed.append(pickle.dumps((shard, refs)))
    blocks = list(ReadShard(plan.job)(pa.table({"shard": packed})))
    assert [col.ticket_of(block).shard for block in blocks] == [shard.id for shard in plan.shards]
    for block, expected in zip(blocks, blocks_of(plan), strict=True):
        assert block.drop_columns([col.TICKET]).equals(expected.drop_columns([col.TICKET]))
        assert all(column.num_chunks == 1 for column in block.columns)
        stats = col.ticket_of(block).stats
        assert stats["read_s"] > 0
        assert stats["read_bytes"] > 100

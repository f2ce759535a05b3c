"""The output as others read it: pyarrow, pandas and DuckDB, over the glob the README names."""

import json
from collections import Counter

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from hfbatch.ledger import Ledger
from hfbatch.model import Predict
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Preprocess
from hfbatch.sink import Commit
from hfbatch.source import ReadShard
from hfbatch.store import open_store
from tests.crashes import PROCESSES, drive, run_in_process
from tests.inline import plan_of
from tests.models import sentences

RUN = "20261120T020000-abcdef"
LINEAGE = ["model_id", "model_revision", "parameters", "run_id"]


@pytest.fixture(scope="module")
def written(encoder, tmp_path_factory):
    """(plan, folder): 300 rows in shards of 100, one row without text, committed by the real sink."""
    folder = tmp_path_factory.mktemp("readers")
    texts = [*sentences(299), None]
    pq.write_table(pa.table({"id": range(300), "text": texts}), folder / "in.parquet")
    job = {
        "task": "feature-extraction",
        "model": {"id": str(encoder)},
        "input": {"path": str(folder / "in.parquet")},
        "params": {"pooling": "mean"},
        "output": {"path": str(folder / "out")},
    }
    plan = plan_of(job, shard_rows=100)
    read, predict = ReadShard(plan.job), Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step))
    Ledger(open_store(plan.job.output)).agree(plan.job.generation, plan.shards, None)
    postprocess, commit = Finish(plan.job, RUN), Commit(plan.job, RUN, 1)
    for shard in plan.shards:
        refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces]
        commit(postprocess(predict(read.read(shard, refs))))
    return plan, folder / "out"


def check_lineage(plan, rows):
    """`rows`: one dict a row, as whatever reader gives them."""
    assert len(rows) == 300
    assert sorted(row["id"] for row in rows) == list(range(300))
    assert {row["model_id"] for row in rows} == {plan.job.step.model.id}
    assert {row["model_revision"] for row in rows} == {plan.job.step.model.commit}
    assert {row["run_id"] for row in rows} == {RUN}
    logged = {row["parameters"] for row in rows}
    assert len(logged) == 1
    parameters = json.loads(logged.pop())
    assert parameters["task"] == "feature-extraction"
    assert parameters["params"]["pooling"] == "mean"
    assert parameters["dtype"] == "float32"
    bad = next(row for row in rows if row["id"] == 299)
    assert bad["error"] == "null_input: text is null"
    assert bad["embedding"] is None
    assert all(len(row["embedding"]) == 32 for row in rows if row["id"] != 299)


def test_pyarrow_reads_it(written):
    plan, out = written
    table = ds.dataset(out / "data").to_table()
    check_lineage(plan, table.to_pylist())
    assert table.schema.field("embedding").type.list_size == 32


def test_pandas_reads_it(written):
    plan, out = written
    frame = pd.read_parquet(out / "data")
    assert str(frame["model_revision"].dtype) == "category"
    check_lineage(
        plan, [{k: None if v is None or v is pd.NA else v for k, v in row.items()} for row in frame.to_dict("records")]
    )


def test_duckdb_reads_it(written):
    plan, out = written
    with duckdb.connect() as connection:
        relation = connection.sql(f"select * from '{out}/data/*.parquet'")
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
        failed = connection.sql(f"select id from '{out}/data/*.parquet' where error is not null").fetchall()
    check_lineage(plan, rows)
    assert failed == [(299,)]


def test_lineage_is_dictionary_encoded_and_costs_almost_nothing(written):
    _, out = written
    for path in (out / "data").glob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        group = metadata.row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        for name in LINEAGE:
            assert "RLE_DICTIONARY" in columns[name].encodings
            assert columns[name].total_compressed_size < 1000  # the value once, however many rows


def test_every_object_says_what_it_is_and_has_page_checksums(written):
    plan, out = written
    ledger = Ledger(open_store(str(out)))
    for receipt in ledger.receipts(plan.job.generation, [shard.id for shard in plan.shards]):
        raw = bytearray((out / receipt.data).read_bytes())
        footer = json.loads(pq.ParquetFile(pa.BufferReader(bytes(raw))).metadata.metadata[b"hfbatch"])
        assert (footer["shard"], footer["rows"]) == (receipt.shard, receipt.rows)
        raw[200] ^= 0xFF  # one damaged byte in the data
        with pytest.raises(OSError, match="CRC"):
            pq.ParquetFile(pa.BufferReader(bytes(raw)), page_checksum_verification=True).read()


def pyarrow_rows(out):
    return ds.dataset(out / "data").to_table(columns=["file", "row"]).to_pylist()


def pandas_rows(out):
    return pd.read_parquet(out / "data", columns=["file", "row"]).to_dict("records")


def duckdb_rows(out):
    with duckdb.connect() as connection:
        found = connection.sql(f"select file, row from '{out}/data/*.parquet'").fetchall()
    return [{"file": name, "row": row} for name, row in found]


def datasets_rows(out):
    import datasets

    files = sorted(str(path) for path in (out / "data").glob("*.parquet"))
    return list(
        datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, columns=["file", "row"])
    )


def ray_rows(out):
    import ray

    return ray.data.read_parquet(str(out / "data"), columns=["file", "row"]).take_all()


SLOW = [pytest.param(read, marks=pytest.mark.slow) for read in (pandas_rows, datasets_rows, ray_rows)]
READERS = [pyarrow_rows, duckdb_rows, *SLOW]


@pytest.mark.parametrize("read", READERS)
def test_readers_that_poll_during_a_run_never_fail_and_never_see_a_row_twice(
    read, classifier, write_parquet, job_for, tmp_path
):
    """A first run fills the folder; a second supersedes a file, and readers find the old rows until it publishes."""
    for name in "ab":
        path = write_parquet(f"in/{name}.parquet", {"file": [name] * 60, "row": range(60), "text": sentences(60)})
    job, out = job_for("text-classification", classifier, path.parent), tmp_path / "out"

    def polled(fault):
        log = str(tmp_path / f"log-{fault}")
        process = PROCESSES.Process(target=drive, args=(job, fault, log, {"shard_rows": 4}))
        process.start()
        seen = []
        while process.is_alive():
            if any((out / "data").glob("*.parquet")):
                seen.append(Counter((row["file"], row["row"]) for row in read(out)))
        assert max(max(rows.values()) for rows in seen) == 1
        return process.exitcode, [rows.total() for rows in seen]

    code, totals = polled(None)
    assert code == 0
    assert totals == sorted(totals)
    assert len(read(out)) == 120
    write_parquet("in/a.parquet", {"file": ["a"] * 70, "row": range(70), "text": sentences(70, seed=9)})
    code, totals = polled("before-swap:kill")
    assert code == -9
    assert set(totals) == {120}, "yesterday's output, all of it, all the while"
    assert run_in_process(job, None, tmp_path / "log", shard_rows=4) == 0
    assert len(read(out)) == 130

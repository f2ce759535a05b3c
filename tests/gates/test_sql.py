"""SQL over an output: what it sees, what it gives, and that it reaches nothing else."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch.gates import sql as gate_sql
from hfbatch.gates.spec import QuerySpec
from hfbatch.gates.sql import answer, problems, table_of
from hfbatch.store import LocalStore, open_store
from tests.fake_s3 import fake_s3

SCHEMA = pa.schema({"label": pa.string(), "score": pa.float32(), "model_id": pa.dictionary(pa.int32(), pa.string())})
ROWS = pa.table({"label": ["a", "b"], "score": [0.25, 0.75], "model_id": ["m", "m"]}).cast(SCHEMA)


def told(query, schema=SCHEMA):
    return [message for _, message, _ in problems({"q": query}, schema)]


@pytest.mark.parametrize(
    ("query", "given"),
    [
        ("SELECT count(*) FILTER (label = 'a') / count(*) < 0.6 FROM output", True),
        ("SELECT max(score) < 0.5 FROM output", False),
        ("FROM output SELECT count(DISTINCT model_id) = 1", True),
        (QuerySpec(query="SELECT avg(score) FROM output", max=1), 0.5),
        (QuerySpec(query="SELECT count(*) FROM output a JOIN output b USING (label)", max=1), 2.0),
        ("SELECT (SELECT count(*) FROM output) = (SELECT count(*) FROM last)", True),
    ],
)
def test_a_query_gives_true_or_false_or_a_number(query, given):
    assert told(query) == []
    assert answer(query, ROWS, ROWS) == (given, "")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT x > 1 FROM output", '"x" not found'),
        ("SELECT true FROM other", "other"),
        ("SELECT 1", "gives INTEGER, not true or false; compare it"),
        ("SELECT true, false", "gives 2 columns, not one"),
        ("SELECT true; SELECT true", "is not one SELECT"),
        ("DROP VIEW output", "is not one SELECT"),
        ("", "is not one SELECT"),
        (QuerySpec(query="SELECT label FROM output", max=1), "gives VARCHAR, not a number"),
    ],
)
def test_a_query_that_can_give_no_such_thing_is_told_before_the_run_and_after_it(query, message):
    assert message in told(query)[0]
    value, why = answer(query, ROWS, ROWS)
    assert value is None
    assert message in why


@pytest.mark.parametrize(
    ("query", "rows"), [("SELECT score > 0 FROM output", 2), ("SELECT score > 0 FROM output WHERE score > 1", 0)]
)
def test_not_one_row_is_no_answer(query, rows):
    assert answer(query, ROWS, None) == (None, f"it gives {rows} rows, not one")


def test_null_is_no_answer():
    assert answer("SELECT avg(score) > 0 FROM output WHERE false", ROWS, None) == (None, "it gives null")


def test_a_query_over_the_last_run_waits_until_there_is_one():
    query = "SELECT count(*) >= (SELECT count(*) FROM last) FROM output"
    assert answer(query, ROWS, None) == (None, "no last run")
    assert answer(query, ROWS, ROWS) == (True, "")
    assert answer("WITH last AS (SELECT 1) SELECT count(*) = 1 FROM last", ROWS, None) == (True, "")


def test_no_query_reads_or_writes_a_file_or_changes_a_setting(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    pq.write_table(ROWS, tmp_path / "x.parquet")
    for query in (
        f"SELECT count(*) > 0 FROM '{secret}'",
        f"SELECT count(*) > 0 FROM read_csv('{secret}')",
        f"SELECT count(*) > 0 FROM read_text('{secret}')",
        f"SELECT count(*) > 0 FROM read_parquet('{tmp_path}/x.parquet')",
        f"SELECT count(*) > 0 FROM glob('{tmp_path}/*')",
        "SELECT count(*) > 0 FROM read_csv('https://example.org/x.csv')",
    ):
        assert "disabled by configuration" in told(query)[0], query
        value, why = answer(query, ROWS, None)
        assert value is None, query
        assert "disabled by configuration" in why
    for query in (
        f"COPY output TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/a.db'",
        f"EXPORT DATABASE '{tmp_path}/all'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE t AS SELECT 1",
    ):
        assert told(query) == ["is not one SELECT"], query
        assert answer(query, ROWS, None)[1] == "is not one SELECT"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.csv", "x.parquet"]


def test_python_variables_are_no_tables():
    mine = ROWS
    assert "mine" in told("SELECT count(*) > 0 FROM mine")[0]
    assert len(mine) == 2


def test_without_duckdb_the_first_query_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gate_sql, "is_there", lambda: False)
    [(name, message, fix)] = problems({"a": "SELECT true", "b": "SELECT true"}, SCHEMA)
    assert (name, fix) == ("a", "pip install 'hfbatch[sql]'")
    assert "not installed" in message
    assert "pip install" in answer("SELECT true", ROWS, None)[1]
    assert list(problems({}, SCHEMA)) == []


def test_objects_in_a_bucket_are_one_table():
    with fake_s3() as s3:
        store = open_store(f"{s3.url}/out")
        sink = pa.BufferOutputStream()
        pq.write_table(ROWS, sink)
        for name in ("data/x.parquet", "_hfbatch/staged/y.parquet"):
            assert store.put_if_absent(name, sink.getvalue().to_pybytes())
        table = table_of(store, ["data/x.parquet", "_hfbatch/staged/y.parquet"], SCHEMA)
        assert answer("SELECT count(*) = 4 AND sum(score) = 2 FROM output", table, None) == (True, "")


def test_objects_on_disk_are_one_table_with_the_columns_of_their_folders(tmp_path):
    for day in ("2026-11-20", "2026-11-21"):
        folder = tmp_path / f"data/day={day}"
        folder.mkdir(parents=True)
        pq.write_table(ROWS, folder / "x.parquet", write_page_checksum=True)
    names = [f"data/day={day}/x.parquet" for day in ("2026-11-20", "2026-11-21")]
    table = table_of(LocalStore(tmp_path), names, SCHEMA, ("day",))
    query = QuerySpec(query="SELECT count(*) FROM output WHERE day = '2026-11-21' AND model_id = 'm'", max=1)
    assert answer(query, table, None) == (2.0, "")
    none = table_of(LocalStore(tmp_path), [], SCHEMA, ("day",))
    assert answer("SELECT count(day) = 0 FROM output", none, None) == (True, "")

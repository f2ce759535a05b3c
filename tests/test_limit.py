"""`limit` against the plain way: filter everything, take the first rows."""

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfbatch.formats import FileRef, read_rows
from hfbatch.limit import matches, source_files
from tests.data_files import WRITERS, inspected

SIZES = (700, 1, 1300, 40)  # rows of the files
WHERE = "n % 7 == 3 and text is not None"


def table(first, rows):
    numbers = range(first, first + rows)
    return pa.table({"n": list(numbers), "text": [None if n % 5 == 0 else f"t{n}" for n in numbers]})


@pytest.fixture(scope="module", params=["x.parquet", "x.jsonl", "saved"])
def files(request, tmp_path_factory):
    """Files of one format with consecutive numbers in them."""
    folder, found, first = tmp_path_factory.mktemp("files"), [], 0
    for index, rows in enumerate(SIZES):
        path = folder / f"{index}{request.param}"
        WRITERS[request.param](table(first, rows), path, 300)
        found.append(inspected(path))
        first += rows
    return found


def taken(files, sources, where):
    """The numbers of the rows of `sources` that pass, read back."""
    numbers = []
    for source in sources:
        file = next(file for file in files if file.file.path == source.path)
        for batch in read_rows(FileRef.of(file, file.schema), 0, source.rows):
            kept = range(len(batch)) if where is None else matches(batch, where, file.schema)
            numbers += batch["n"].take(pa.array(list(kept), pa.int64())).to_pylist()
    return numbers


def passing(where):
    return [n for n in range(sum(SIZES)) if where is None or (n % 7 == 3 and n % 5)]


def test_without_a_limit_all_files_come_whole(files):
    sources = source_files(files, None, WHERE, files[0].schema)
    assert [(source.path, source.rows) for source in sources] == [(file.file.path, file.rows) for file in files]
    assert [source.fingerprint for source in sources] == [file.file.fingerprint for file in files]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, sum(SIZES) + 9), where=st.sampled_from([None, WHERE]))
def test_a_limit_takes_the_first_rows_that_pass_and_not_one_row_more(files, limit, where):
    sources = source_files(files, limit, where, files[0].schema)
    expected = passing(where)[:limit]
    assert taken(files, sources, where) == expected
    if len(expected) == limit:
        assert sum(source.rows for source in sources) == expected[-1] + 1, "the last row is the one that fills it"


@pytest.mark.parametrize("limit", [700, 701, 1])
def test_a_limit_at_the_end_of_a_file_asks_nothing_of_the_next(files, limit):
    sources = source_files(files, limit, None, files[0].schema)
    assert [source.rows for source in sources] == {700: [700], 701: [700, 1], 1: [1]}[limit]
    assert all(block.rows for source in sources for block in source.blocks)


def test_a_cut_block_keeps_its_share_of_bytes(tmp_path):
    WRITERS["x.parquet"](table(0, 100), tmp_path / "x.parquet", 100)
    file = inspected(tmp_path / "x.parquet")
    [source] = source_files([file], 25, None, file.schema)
    [block] = source.blocks
    assert (block.rows, block.nbytes) == (25, file.blocks[0].nbytes // 4)


def test_matches_gives_positions_and_null_is_no_match():
    batch = pa.RecordBatch.from_pydict({"n": [1, None, 3, 4]})
    assert matches(batch, "n > 1", batch.schema).tolist() == [2, 3]
    assert matches(batch, "n > 9", batch.schema).tolist() == []


def test_a_filter_on_a_later_file_of_another_type_reads_the_type_that_holds_both(tmp_path):
    WRITERS["x.parquet"](pa.table({"n": [1, 2]}), tmp_path / "a.parquet", 9)
    WRITERS["x.parquet"](pa.table({"n": [2.5, 9.0]}), tmp_path / "b.parquet", 9)
    files = [inspected(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    sources = source_files(files, 2, "n > 1.5", pa.schema([("n", pa.float64())]))
    assert [source.rows for source in sources] == [2, 1]

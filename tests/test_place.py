"""Ranges of files whose blocks are larger than the ranges, in the orders in which a worker may meet them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfbatch import formats, place
from hfbatch.formats import FileRef, Inspected
from tests.data_files import WRITERS, inspected, read, sample

ROWS = 3000


@pytest.fixture(scope="module", params=["x.parquet", "x.arrow", "stream.arrow", "x.jsonl", "saved"])
def two_files(request, tmp_path_factory) -> list[Inspected]:
    """Two files of one format with different rows, 2000 and 1000 of them in a block where the format has blocks."""
    found = []
    for number in range(2):
        path = tmp_path_factory.mktemp("place") / request.param
        table = sample(ROWS).set_column(0, "n", pa.array(range(number * ROWS, (number + 1) * ROWS), pa.int64()))
        WRITERS[request.param](table, path, 2000)
        found.append(inspected(path))
    return found


ranges = st.lists(st.tuples(st.integers(0, 1), st.integers(0, ROWS), st.integers(0, 700), st.booleans()), max_size=8)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges)
def test_what_was_read_before_never_changes_what_a_range_gives(two_files, wanted) -> None:
    schema = two_files[0].schema
    for number, start, rows, all_columns in wanted:
        stop = min(ROWS, start + rows)
        names = schema if all_columns else pa.schema([schema.field("n")])
        assert read(two_files[number], start, stop, names)["n"].to_pylist() == [
            number * ROWS + row for row in range(start, stop)
        ]
    assert len(place._left) <= 1


@pytest.fixture
def openings(monkeypatch) -> list[int]:
    """The first row of each block that Parquet's reader began to decode."""
    begun: list[int] = []
    inner = formats._READERS["parquet"]

    def counting(ref: FileRef, present: pa.Schema):
        begun.append(ref.first_row)
        yield from inner(ref, present)

    monkeypatch.setitem(formats._READERS, "parquet", counting)
    return begun


def test_the_shards_of_one_large_row_group_cost_one_pass_over_it(tmp_path: Path, openings: list[int]) -> None:
    WRITERS["x.parquet"](sample(50_000), tmp_path / "x.parquet", 50_000)
    found = inspected(tmp_path / "x.parquet")
    every_other = [*range(0, 50_000, 2000), *range(1000, 50_000, 2000)]  # as one of two workers would get them
    rows = [read(found, start, start + 1000)["n"].to_pylist() for start in every_other]
    assert rows == [list(range(start, start + 1000)) for start in every_other]
    assert openings == [0, 0], "once for the shards going up, once more for those that lie behind"


def test_a_range_that_was_left_in_the_middle_is_begun_anew(tmp_path: Path, openings: list[int]) -> None:
    WRITERS["x.parquet"](sample(5000), tmp_path / "x.parquet", 5000)
    found = inspected(tmp_path / "x.parquet")
    given_up = formats.read_rows(FileRef.of(found, found.schema), 0, 4000)
    next(given_up)
    given_up.close()
    assert read(found, 2000, 3000)["n"].to_pylist() == list(range(2000, 3000))
    assert openings == [0, 0]


def test_a_file_that_is_written_anew_is_opened_anew(tmp_path: Path, openings: list[int]) -> None:
    path = tmp_path / "x.parquet"
    for shift in (0, 7):
        table = sample(3000).set_column(0, "n", pa.array(range(shift, 3000 + shift), pa.int64()))
        WRITERS["x.parquet"](table, path, 3000)
        found = inspected(path)
        assert read(found, 0 if not shift else 1000, 2000)["n"].to_pylist()[-1] == 1999 + shift
    assert openings == [0, 0]

from __future__ import annotations

import datetime
import gzip
import itertools
import json
import pickle
import tempfile
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch import text
from hfbatch.errors import Conflict, StorageError
from hfbatch.files import FileProblem, list_files
from hfbatch.formats import FileRef, inspect, read_rows, unify
from tests.data_files import WRITERS, inspected, read, sample, write_arrow, write_parquet


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 3000),
    unit=st.sampled_from([1000, 1, 7, 100, 5000]),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    chunk_bytes=st.sampled_from([500, 20_000, 8 << 20]),
)
def test_consecutive_ranges_give_the_table(
    name: str, rows: int, unit: int, cuts: list[float], chunk_bytes: int
) -> None:
    table = sample(rows)
    if table["text"].null_count == rows:
        table = table.set_column(1, "text", pa.nulls(rows, pa.string()))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "CHUNK_BYTES", chunk_bytes)
        path = Path(folder) / name
        WRITERS[name](table, path, max(unit, rows // 50))
        found = inspected(path)
        assert (found.schema, found.rows) == (table.schema, rows)
        edges = sorted([0, rows, *(int(cut * rows) for cut in cuts)])
        pieces = [read(found, start, stop) for start, stop in itertools.pairwise(edges)]
        assert pa.concat_tables(pieces).equals(table)


@pytest.mark.parametrize("name", WRITERS)
def test_only_the_wanted_columns_are_read_in_the_wanted_order(name: str, tmp_path: Path) -> None:
    table = sample(50)
    WRITERS[name](table, tmp_path / name, 10)
    found = inspected(tmp_path / name)
    wanted = pa.schema([("text", pa.large_string()), ("other", pa.int8()), ("n", pa.float64())])
    got = read(found, 5, 45, wanted)
    assert got["text"].to_pylist() == table["text"].to_pylist()[5:45]
    assert got["n"].to_pylist() == [float(row) for row in range(5, 45)]
    assert got["other"].null_count == 40
    assert read(found, 5, 45, pa.schema([("other", pa.int8())]))["other"].null_count == 40
    assert read(found, 7, 7).num_rows == 0


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "stream.arrow", "x.jsonl.gz", "x.csv"])
def test_an_object_store_reads_as_a_disk(name: str, tmp_path: Path) -> None:
    table = sample(100)
    plain = name.removesuffix(".gz")
    WRITERS[plain](table, tmp_path / plain, 30)
    data = (tmp_path / plain).read_bytes()
    fsspec.filesystem("memory").pipe(f"/formats/{name}", gzip.compress(data) if name.endswith(".gz") else data)
    found = inspected(f"memory://formats/{name}")
    assert read(found, 10, 90).equals(table.slice(10, 80))


def test_parquet_blocks_are_its_row_groups_and_arrow_blocks_its_batches(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.arrow", "stream.arrow"):
        WRITERS[name](sample(25), tmp_path / name, 10)
        assert [block.rows for block in inspected(tmp_path / name).blocks] == [10, 10, 5]
        assert all(block.nbytes > 0 for block in inspected(tmp_path / name).blocks)


def test_a_reference_to_part_of_a_file_stays_small(tmp_path: Path) -> None:
    write_parquet(sample(5000), tmp_path / "x.parquet", 5)
    ref = FileRef.of(inspected(tmp_path / "x.parquet"), pa.schema([("n", pa.int64())]))
    part = ref.part(1234, 1241)
    assert len(part.blocks) == 3
    assert len(pickle.dumps(part)) < 2000 < len(pickle.dumps(ref))
    got = pa.Table.from_batches(read_rows(part, 1234, 1241))
    assert got["n"].to_pylist() == list(range(1234, 1241))
    with pytest.raises(ValueError, match="rows 0 to 3 are not all in"):
        list(read_rows(part, 0, 3))


def test_types_are_passed_on_plain(tmp_path: Path) -> None:
    ids = pa.array([uuid.UUID(int=n).bytes for n in range(3)], pa.binary(16))
    tensor = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2]] * 3, pa.list_(pa.int8(), 2))
    )
    nested = pa.StructArray.from_arrays([pa.ExtensionArray.from_storage(pa.uuid(), ids)], ["id"])
    table = pa.table(
        {
            "word": pa.array(["a", None, "a"]).dictionary_encode(),
            "words": pa.array([["a"], None, ["b", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            "id": pa.ExtensionArray.from_storage(pa.uuid(), ids),
            "nested": nested,
            "tensor": tensor,
            "view": pa.array(["x", None, "y"], pa.string_view()),
            "large": pa.array(["x", None, "y"], pa.large_string()),
            "at": pa.array([datetime.datetime(2024, 1, 1)] * 3, pa.timestamp("us", "UTC")),
        }
    )
    write_arrow(table, tmp_path / "x.arrow", 2)
    found = inspected(tmp_path / "x.arrow")
    assert found.schema.types == [
        *(pa.string(), pa.list_(pa.string()), pa.binary(16), pa.struct([("id", pa.binary(16))])),
        *(pa.list_(pa.int8(), 2), pa.string(), pa.large_string(), pa.timestamp("us", "UTC")),
    ]
    got = read(found, 1, 3)
    assert got["words"].to_pylist() == [None, ["b", "a"]]
    assert got["nested"].to_pylist() == [{"id": value.as_py()} for value in ids[1:]]
    assert got["tensor"].to_pylist() == [[1, 2]] * 2


def test_a_datasets_folder_keeps_its_indices_and_features(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    made = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 0, 1]}, features=features)
    made.select([3, 1, 0]).save_to_disk(str(tmp_path / "saved"))
    found = inspected(tmp_path / "saved")
    assert found.schema == pa.schema([("text", pa.string()), ("label", pa.int64())])
    assert read(found, 1, 3).to_pylist() == [{"text": "b", "label": 1}, {"text": "a", "label": 0}]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "stream.arrow"])
def test_a_truncated_or_foreign_file_is_a_storage_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](sample(2000), path, 100)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no such thing " * 100):
        path.write_bytes(content)
        with pytest.raises(StorageError, match=rf"{name}: cannot be read .*write it again"):
            inspected(path)


def test_damage_behind_the_footer_is_a_storage_error_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(sample(2000), path, 100)
    path.write_bytes(b"PAR1" + b"\xff" * 5000 + path.read_bytes()[5004:])
    found = inspected(path)
    with pytest.raises(StorageError, match=r"x.parquet: cannot be read"):
        read(found)


def test_a_file_that_changed_since_it_was_planned_is_a_conflict(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(sample(10), path, 10)
    found = inspected(path)
    write_parquet(sample(11), path, 10)
    with pytest.raises(Conflict, match=r"x.parquet changed after it was planned"):
        read(found)


def test_files_without_rows_have_a_schema_and_no_rows(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.arrow", "stream.arrow"):
        WRITERS[name](sample(0), tmp_path / name, 10)
        found = inspected(tmp_path / name)
        assert (found.rows, found.schema.names) == (0, sample(0).schema.names)
        assert read(found).num_rows == 0
    (tmp_path / "x.csv").write_text("a,b\n")
    (tmp_path / "x.jsonl").write_text("\n")
    assert (inspected(tmp_path / "x.csv").rows, inspected(tmp_path / "x.csv").schema.names) == (0, ["a", "b"])
    assert (inspected(tmp_path / "x.jsonl").rows, inspected(tmp_path / "x.jsonl").schema.names) == (0, [])


def test_two_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    write_arrow(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "x.arrow", 10)
    with pytest.raises(FileProblem, match=r"x.arrow: two columns have the name 'a'"):
        inspected(tmp_path / "x.arrow")


def test_one_schema_holds_all_files(tmp_path: Path) -> None:
    write_parquet(pa.table({"a": pa.array([1], pa.int32()), "b": pa.nulls(1)}), tmp_path / "1.parquet", 1)
    write_parquet(pa.table({"b": ["x"], "a": [2.5], "c": [True]}), tmp_path / "2.parquet", 1)
    files = [inspect(file) for file in list_files([str(tmp_path)], None)]
    schema = unify(files)
    assert schema == pa.schema([("a", pa.float64()), ("b", pa.string()), ("c", pa.bool_())])
    rows = [row for found in files for row in read(found, schema=schema).to_pylist()]
    assert rows == [{"a": 1.0, "b": None, "c": None}, {"a": 2.5, "b": "x", "c": True}]


def test_files_that_do_not_fit_together_are_both_named(tmp_path: Path) -> None:
    write_parquet(pa.table({"a": [1]}), tmp_path / "1.parquet", 1)
    write_parquet(pa.table({"a": ["x"]}), tmp_path / "2.parquet", 1)
    entries = [str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")]
    with pytest.raises(FileProblem, match=r"column 'a' is int64 in .*1.parquet and string in .*2.parquet") as caught:
        unify([inspect(file) for file in list_files(entries, None)])
    assert caught.value.index == 1


def test_a_number_that_would_lose_digits_is_an_error_that_names_the_column(tmp_path: Path) -> None:
    write_parquet(pa.table({"a": [2**60 + 1]}), tmp_path / "1.parquet", 1)
    with pytest.raises(StorageError, match=r"1.parquet: cannot be read .*column 'a', int64, as double"):
        read(inspected(tmp_path / "1.parquet"), schema=pa.schema([("a", pa.float64())]))


def test_batches_of_large_rows_have_few_of_them(tmp_path: Path) -> None:
    images = pa.table({"image": [bytes(1 << 20)] * 40})
    pq.write_table(images, tmp_path / "x.parquet", compression="none", use_dictionary=False)
    ref = FileRef.of(inspected(tmp_path / "x.parquet"), images.schema)
    assert max(batch.num_rows for batch in read_rows(ref, 0, 40)) <= 8


def test_memory_stays_flat_whatever_the_size_of_the_file(tmp_path: Path) -> None:
    line = json.dumps({"text": "word " * 100, "n": 1}) + "\n"
    (tmp_path / "x.jsonl").write_text(line * (60_000_000 // len(line)))
    table = pa.table({"text": ["word " * 100 + str(row) for row in range(100_000)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100_000, compression="none", use_dictionary=False)
    del table
    for name in ("x.jsonl", "x.parquet"):
        base = peak = pa.total_allocated_bytes()
        found = inspected(tmp_path / name)
        rows = 0
        for batch in read_rows(FileRef.of(found, found.schema), 0, found.rows):
            rows += batch.num_rows
            peak = max(peak, pa.total_allocated_bytes())
        assert rows == found.rows
        assert peak - base < 24 << 20

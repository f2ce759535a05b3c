"""Files nobody wishes for: odd names, thousands of them, damage, and changes while they are read."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from hfbatch.errors import Conflict, SpecError, StorageError
from hfbatch.formats import read_rows
from hfbatch.source import ReadShard
from tests.data_files import WRITERS, sample
from tests.fake_s3 import Fault, fake_s3
from tests.inline import blocks_of, plan_of, run_inline
from tests.models import sentences

NAMES = [
    "day=2024 01 01/part 0.parquet",
    "lang=\u65e5\u672c\u8a9e/\u00fcber.parquet",
    "share=50%/100%25 %41.parquet",
    "tag=#1/part#2.parquet",
    "sum=a+b&c=d/e;f,g.parquet",
    "quote='\"/it's.parquet",
]


def texts_of(blocks: list[pa.Table]) -> list[str]:
    return [text for block in blocks for text in block["text"].to_pylist()]


def test_names_with_any_sign_are_read_and_named_as_they_are(classifier, job_for, write_parquet, tmp_path):
    for name in NAMES:
        write_parquet(f"in/{name}", {"text": [name]})
    plan = plan_of(job_for("text-classification", classifier, tmp_path / "in"))
    assert sorted(plan.files) == sorted(f"{tmp_path}/in/{name}" for name in NAMES)
    made = run_inline(plan)
    assert sorted(made["text"].to_pylist()) == sorted(NAMES)
    assert made["error"].null_count == len(NAMES)


@pytest.fixture(scope="module")
def s3():
    """One server for all tests here; fsspec keeps its S3 clients, and with them the address of an older server."""
    with fake_s3() as server:
        S3FileSystem.clear_instance_cache()
        yield server
        S3FileSystem.clear_instance_cache()


def test_names_in_a_bucket_are_read_and_named_as_they_are(s3, classifier, job_for, write_parquet):
    data = write_parquet("x.parquet", {"text": ["x"]}).read_bytes()
    fsspec.filesystem("s3").pipe({f"bucket/hostile-names/{name}": data for name in NAMES})
    plan = plan_of(job_for("text-classification", classifier, f"{s3.url}/hostile-names"))
    assert sorted(plan.files) == sorted(f"{s3.url}/hostile-names/{name}" for name in NAMES)
    assert texts_of(blocks_of(plan)) == ["x"] * len(NAMES)


@pytest.mark.slow
def test_five_thousand_tiny_files_are_a_few_shards_and_each_row_is_there_once(classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5000):
        (tmp_path / "in" / f"{number:04}.jsonl").write_text(f'{{"text": "{number}"}}\n')
    plan = plan_of(job_for("text-classification", classifier, tmp_path / "in"))
    assert len(plan.files) == 5000
    assert len(plan.shards) < 32
    assert texts_of(blocks_of(plan)) == [str(number) for number in range(5000)]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("x.parquet", b"", SpecError, r"x.parquet is empty \(0 bytes\)\n.*fix: write the file again, or leave it out"),
        ("x.jsonl", b"", SpecError, r"x.jsonl is empty \(0 bytes\)"),
        ("x.parquet", b"\x89PNG\r\n\x1a\n" * 40, StorageError, r"x.parquet: cannot be read .*write it again"),
        ("x.jsonl.gz", gzip.compress(os.urandom(999).hex().encode())[:-20], StorageError, r"x.jsonl.gz: .*Truncated"),
        ("notes.md", b"text", SpecError, r"in holds no data file \(notes.md\)\n.*fix: name files that end in .parquet"),
        ("_x.parquet", b"PAR1", SpecError, r"in holds no data file \(nothing\)"),
    ],
)
def test_what_is_no_data_is_refused_by_the_plan(name, content, error, message, classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(error, match=message):
        plan_of(job_for("text-classification", classifier, tmp_path / "in"))


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_file_cut_short_anywhere_is_refused_or_read_whole(name, classifier, job_for, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    WRITERS[name](pa.table({"text": sentences(300)}), path, 100)
    whole = path.read_bytes()
    for size in [*range(1, len(whole), len(whole) // 25), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(StorageError, match=rf"{name}: cannot be read .*write it again"):
            plan_of(job_for("text-classification", classifier, tmp_path / "in"))


@pytest.fixture
def three_groups(classifier, job_for, tmp_path):
    """three_groups(**options of pyarrow's writer) -> (plan of 3 shards of 1000 rows, the file, its texts)."""

    def make(**options):
        path, texts = tmp_path / "x.parquet", sentences(3000, longest=200)
        pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, use_dictionary=False, **options)
        return plan_of(job_for("text-classification", classifier, path), shard_rows=1000), path, texts

    return make


def flip(path: Path, place: int) -> None:
    """Another value in one byte; the file keeps its size and time, as a failing disk would have it."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        [value] = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 0x55]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def read_each(plan) -> list[list[str] | Exception]:
    """The texts of each shard, or what reading it raised."""
    results: list[list[str] | Exception] = []
    for shard in plan.shards:
        refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces]
        try:
            results.append(ReadShard(plan.job).read(shard, refs)["text"].to_pylist())
        except StorageError as error:
            results.append(error)
    return results


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_flipped_byte_under_a_page_checksum_fails_its_shard_alone_and_names_file_and_rows(three_groups, compression):
    plan, path, texts = three_groups(compression=compression, write_page_checksum=True)
    column = pq.read_metadata(path).row_group(1).column(0)
    flip(path, column.data_page_offset + column.total_compressed_size // 2)
    first, second, third = read_each(plan)
    assert (first, third) == (texts[:1000], texts[2000:])
    assert isinstance(second, StorageError)
    assert "x.parquet: cannot be read" in str(second)
    assert "rows 1,000 to 2,000" in str(second)


def test_without_checksums_a_flipped_byte_never_gives_fewer_rows_or_another_error(three_groups):
    plan, path, texts = three_groups(compression="snappy")
    column = pq.read_metadata(path).row_group(1).column(0)
    failed = 0
    for place in range(column.data_page_offset, column.data_page_offset + 120, 2):  # header, lengths, text
        flip(path, place)
        first, second, third = read_each(plan)
        flip(path, place)
        assert (first, third) == (texts[:1000], texts[2000:])
        assert isinstance(second, StorageError) or len(second) == 1000
        failed += isinstance(second, StorageError)
    assert failed
    assert read_each(plan) == [texts[:1000], texts[1000:2000], texts[2000:]]


def test_a_file_that_changed_between_plan_and_read_is_a_conflict_that_names_it(three_groups):
    plan, path, texts = three_groups()
    pq.write_table(pa.table({"text": texts[::-1]}), path)
    with pytest.raises(
        Conflict, match=r"x.parquet changed after it was planned .*run again to take it as it is now, or put"
    ):
        blocks_of(plan)


REPLACE = {
    "in place": lambda path, data: path.write_bytes(data),
    "at once": lambda path, data: (path.with_name("new").write_bytes(data), path.with_name("new").replace(path)),
    "cut": lambda path, data: os.truncate(path, 5000),
}


@pytest.mark.parametrize("how", REPLACE)
@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.jsonl", "x.csv"])
def test_a_file_that_changes_while_it_is_read_gives_no_shard(name, how, classifier, job_for, tmp_path):
    path = tmp_path / name
    table = sample(4001).drop_columns(["score"])
    WRITERS[name](table.slice(1), path, 1000)
    plan = plan_of(job_for("text-classification", classifier, path))
    [ref] = plan.files.values()
    WRITERS[name](table, tmp_path / f"other-{name}", 1000)
    rows = read_rows(ref, 0, 3500)
    next(rows)
    REPLACE[how](path, (tmp_path / f"other-{name}").read_bytes())
    with pytest.raises(Conflict, match=f"{name} changed after it was planned"):
        list(rows)


def test_a_file_that_is_gone_when_it_is_read_is_named(three_groups):
    plan, path, _ = three_groups()
    path.unlink()
    with pytest.raises(StorageError, match=r"x.parquet: the file is gone; put it back, or plan again"):
        blocks_of(plan)


class Weather(list):
    """Faults for tests.fake_s3: some requests of the method fail, for ever."""

    def __init__(self, method: str, status: int, bad: itertools.cycle) -> None:
        self.method, self.status, self.bad, self.failed = method, status, bad, 0

    def __iter__(self):
        if next(self.bad):
            self.failed += 1
            yield Fault(self.method, self.status)

    def remove(self, fault) -> None:
        """They never end."""


@pytest.fixture
def remote(s3, classifier, job_for, tmp_path):
    """A plan of four shards over one object, and its texts; the faults of a test end with it."""
    texts = sentences(2000)
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=500)
    fsspec.filesystem("s3").pipe("bucket/hostile/x.parquet", (tmp_path / "x.parquet").read_bytes())
    yield plan_of(job_for("text-classification", classifier, f"{s3.url}/hostile"), shard_rows=500), texts
    s3.faults = []


def test_a_bucket_of_which_every_third_read_fails_gives_the_right_rows(remote, s3):
    plan, texts = remote
    s3.faults = weather = Weather("GET", 503, itertools.cycle((True, False, False)))
    assert texts_of(blocks_of(plan)) == texts
    assert weather.failed > 2


@pytest.mark.slow
def test_a_bucket_that_refuses_every_read_is_a_storage_error(remote, s3):
    plan, _ = remote
    s3.faults = weather = Weather("GET", 500, itertools.cycle((True,)))
    with pytest.raises(StorageError, match=r"s3://bucket/hostile/x.parquet: cannot be read .*run again"):
        blocks_of(plan)
    assert weather.failed > 2

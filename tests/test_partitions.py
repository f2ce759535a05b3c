"""Hive folders: columns of the input, and the way an output is divided."""

import shutil
from collections import Counter
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import hfbatch
from hfbatch import planner
from hfbatch.again import plan_repair, plan_retry
from hfbatch.errors import Damage, SpecError, StorageError
from hfbatch.examine import examine
from hfbatch.files import ListedFile, list_files
from hfbatch.formats import FileRef, inspect, read_rows, unify
from hfbatch.garbage import collect, find_garbage
from hfbatch.ledger import Ledger
from hfbatch.limit import matches
from hfbatch.load import load_job, load_machine
from hfbatch.partitions import folder_of, pruned, values_of
from hfbatch.records import shard_of
from hfbatch.shards import Block, Limits, SourceFile, cut
from hfbatch.status import read_status
from hfbatch.store import open_store
from tests.data_files import write_csv, write_jsonl
from tests.inline import plan_of
from tests.models import sentences
from tests.outputs import flip_a_bit, runs_in_this_process

DAYS = ("2026-11-19", "2026-11-20", "2026-11-21")


def listed(path, format="parquet"):
    return ListedFile(path, path, 1, "f", format)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("data/day=2026-11-20/a.parquet", {"day": "2026-11-20"}),
        ("s3://bucket/x/country=de/day=1/a.parquet", {"country": "de", "day": "1"}),
        ("https://host/day=1/a.parquet?***", {"day": "1"}),
        ("zip://day=1/a.parquet::s3://bucket/day=2.zip", {"day": "1"}),
        ("day=1/day=2/a.parquet", {"day": "2"}),
        ("what%3D/na%20me=a%2Fb%25/a.parquet", {"na me": "a/b%"}),
        ("day=__HIVE_DEFAULT_PARTITION__/a.parquet", {"day": None}),
        ("day=/a.parquet", {"day": ""}),
        ("=x/data/day=1.parquet", {}),
    ],
)
def test_every_folder_with_an_equals_sign_is_a_column(path, values):
    assert values_of(listed(path)) == values


def test_a_saved_dataset_is_itself_a_folder():
    assert values_of(listed("data/day=1", "dataset")) == {"day": "1"}


@pytest.mark.parametrize(
    "part", ["day=2026-11-20", "day=%C3%A4%2F%C3%B6 %25=?*", "day=", "day=__HIVE_DEFAULT_PARTITION__"]
)
def test_the_folder_of_an_output_reads_back_as_that_of_the_input(part):
    file = listed(f"a=x/{part}/f.parquet")
    folder = folder_of(file, ("day",))
    assert values_of(listed(f"data/{folder}/x.parquet")) == {"day": values_of(file)["day"]}
    assert folder.count("/") == 0
    assert not set(folder.removeprefix("day=")) & set("?*[ =")


@pytest.fixture
def hive(tmp_path):
    """Three days in two countries, two rows a file; a JSON and a CSV twin of one file beside them."""
    for day in DAYS:
        for country in ("de", "fr"):
            folder = tmp_path / "in" / f"day={day}" / f"country={country}"
            folder.mkdir(parents=True)
            table = pa.table({"n": [int(day[-2:]), 0], "text": sentences(2, seed=len(country))})
            pq.write_table(table, folder / "part.parquet")
    return tmp_path / "in"


EXPRESSIONS = {
    "day == '2026-11-20'": 2,
    "day >= '2026-11-20' and country == 'de'": 2,
    "country in ['fr']": 3,
    "day.startswith('2026-11-2') or country == 'fr'": 5,
    "not day < '2026-11-21'": 2,
    "day == '2026-11-20' and n > 0": 2,
    "day == '2026-11-20' or n > 0": 6,
    "day == '2026-11-20' and (country == 'de' or n > 0)": 2,
    "not (day == '2026-11-20' and n > 0)": 6,
    "n > 0": 6,
    "day == '1999-01-01'": 0,
    "day != country": 6,
    "country == 'de' and country == 'fr'": 0,
    "False": 0,
    "day > 3": 6,
    "nights == 1": 6,
    "day is None": 0,
}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_only_files_without_a_matching_row_are_left_out(hive, where):
    files = list_files([str(hive)], None)
    kept = pruned(files, where)
    assert len(kept) == EXPRESSIONS[where]
    left_out = [file for file in files if file not in kept]
    if not left_out:
        return
    found = [inspect(file) for file in files]
    schema = unify(found)
    for file in found:
        rows = list(read_rows(FileRef.of(file, schema), 0, file.rows))
        if file.file in left_out:
            assert all(len(matches(batch, where, schema)) == 0 for batch in rows)


def test_a_file_outside_such_folders_is_kept_and_its_column_is_null(hive):
    pq.write_table(pa.table({"n": [7], "text": ["x"]}), hive / "loose.parquet")
    files = list_files([str(hive)], None)
    assert len(pruned(files, "day == '2026-11-20'")) == 3
    found = [inspect(file) for file in files]
    schema = unify(found)
    loose = next(file for file in found if file.file.path.endswith("loose.parquet"))
    (batch,) = read_rows(FileRef.of(loose, schema), 0, 1)
    assert batch.to_pylist() == [{"n": 7, "text": "x", "day": None, "country": None}]


@pytest.mark.parametrize(("name", "write"), [("x.csv", write_csv), ("x.jsonl", write_jsonl)])
def test_the_folders_value_wins_over_the_files_own_and_is_text(tmp_path, name, write):
    folder = tmp_path / "year=2026"
    folder.mkdir()
    write(pa.table({"year": [1, 2], "n": [3, 4]}), folder / name, 0)
    found = inspect(list_files([str(folder)], None)[0])
    schema = unify([found])
    assert schema == pa.schema([("year", pa.string()), ("n", pa.int64())])
    table = pa.Table.from_batches(read_rows(FileRef.of(found, schema), 0, 2))
    assert table.to_pylist() == [{"year": "2026", "n": 3}, {"year": "2026", "n": 4}]
    (only,) = read_rows(FileRef.of(found, schema), 1, 2, ["year"])
    assert only.to_pylist() == [{"year": "2026"}]


def test_a_where_on_a_folder_opens_no_other_folders_file(hive, encoder, job_for):
    for file in hive.glob("day=2026-11-2*/country=fr/part.parquet"):
        file.write_bytes(b"no Parquet at all")
    job = job_for("feature-extraction", encoder, hive)
    with pytest.raises(StorageError, match="cannot be read"):
        plan_of(job)
    where = "country == 'de' or day == '2026-11-19'"
    plan = plan_of(job | {"input": {"path": str(hive), "where": where}})
    assert (len(plan.files), plan.rows) == (4, 8)


def test_where_everything_is_left_out_the_plan_has_no_shard_and_its_columns(hive, encoder, job_for):
    job = job_for("feature-extraction", encoder, hive) | {"input": {"path": str(hive), "where": "day > '2026-12'"}}
    plan = plan_of(job)
    assert (plan.shards, plan.rows) == ((), 0)
    assert {"n", "text", "day", "country"} <= set(plan.job.output_schema.names)


def test_a_run_over_nothing_but_folders_that_are_left_out_is_a_success_without_rows(hive, classifier, job_for):
    job = job_for("text-classification", classifier, hive) | {"input": {"path": str(hive), "where": "day > '2026-12'"}}
    with runs_in_this_process():
        reports = [hfbatch.run(job) for _ in range(2)]
    assert [(report.outcome, report.rows, report.files) for report in reports] == [
        ("success", 0, 0),
        ("nothing_to_do", 0, 0),
    ]
    assert not examine(job["output"]["path"]).flaws


def test_an_empty_match_of_today_is_an_error_that_says_what_is_there(hive, encoder, job_for):
    job = job_for("feature-extraction", encoder, f"{hive}/day=${{today}}/*.parquet")
    with pytest.raises(SpecError, match=r"nothing matches .*/in/day=1999-01-01/\*\.parquet\n  fix: ") as raised:
        planner.make_plan(load_job(job, vars={"today": "1999-01-01"}), load_machine({}))
    assert "day=${today}" not in str(raised.value)


def test_a_shard_holds_rows_of_one_folder_and_bundles_its_small_files():
    files = [
        SourceFile(f"{country}/day={day}/{i}", "v", (Block(10, 10),), folder=f"day={day}")
        for country in ("de", "fr")
        for day in (1, 2, 3)
        for i in range(2)
    ]
    shards = cut(files, Limits(100, 10**9))
    assert [shard.folder for shard in shards] == ["day=1", "day=2", "day=3"]
    assert all(len(shard.pieces) == 4 for shard in shards)
    for shard in shards:
        assert all(f"/{shard.folder}/" in piece.path for piece in shard.pieces)


class Nightly:
    """A job over day folders, 20 rows each, whose output has the same folders."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.job = {
            "task": "text-classification",
            "model": {"id": str(model)},
            "input": {"path": str(folder / "in")},
            "output": {"path": str(self.out), "partition_by": ["day"]},
            "errors": {"max_failed_fraction": 1},
        }

    def write(self, day: str, seed: int = 0) -> Path:
        texts = [None, *sentences(19, seed=int(day[-2:]) + seed)]
        file = self.folder / "in" / f"day={day}" / "part.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [f"{day}/{row}" for row in range(20)], "text": texts}), file)
        return file

    def run(self):
        with runs_in_this_process():
            return hfbatch.run(self.job)

    @property
    def objects(self) -> list[Path]:
        return sorted(self.out.glob("data/**/*.parquet"))

    def rows(self) -> Counter:
        """(day, id) of what a reader with Hive folders sees."""
        table = ds.dataset(self.out / "data", partitioning="hive").to_table(columns=["day", "id"])
        return Counter((row["day"], row["id"]) for row in table.to_pylist())


@pytest.fixture(scope="module")
def finished(classifier, tmp_path_factory):
    """Two days, published; not to be changed."""
    nightly = Nightly(tmp_path_factory.mktemp("nightly"), classifier)
    for day in DAYS[:2]:
        nightly.write(day)
    nightly.report = nightly.run()
    return nightly


@pytest.fixture
def nightly(finished, tmp_path, classifier):
    """The same in a folder of its own, where files can be changed; inputs keep path and fingerprint by moving back."""
    shutil.copytree(finished.out, tmp_path / "out")
    again = Nightly(tmp_path, classifier)
    again.folder = finished.folder
    again.job = {**finished.job, "output": {**finished.job["output"], "path": str(again.out)}}
    yield again
    shutil.rmtree(finished.folder / "in" / f"day={DAYS[2]}", ignore_errors=True)


def expected(*days):
    return Counter((day, f"{day}/{row}") for day in days for row in range(20))


def test_objects_stand_in_the_folders_of_their_rows(finished):
    folders = [path.parent.relative_to(finished.out).as_posix() for path in finished.objects]
    assert folders == [f"data/day={day}" for day in DAYS[:2]]
    report = finished.report
    assert (report.files, report.files_new, report.rows_new, report.rows_skipped) == (2, 2, 40, 0)
    assert report.partition_by == ["day"]
    assert all("day" not in pq.ParquetFile(path).schema_arrow.names for path in finished.objects)


def pandas_rows(out):
    frame = pd.read_parquet(out / "data")
    return zip(frame["day"].astype(str), frame["id"], strict=True)


def pyarrow_rows(out):
    table = ds.dataset(out / "data", partitioning="hive").to_table()
    return zip(table["day"].to_pylist(), table["id"].to_pylist(), strict=True)


def duckdb_rows(out):
    with duckdb.connect() as connection:
        return connection.sql(f"select day::varchar, id from '{out}/data/**/*.parquet'").fetchall()


@pytest.mark.parametrize("read", [pandas_rows, pyarrow_rows, duckdb_rows])
def test_readers_see_every_row_once_with_its_day(finished, read):
    assert Counter(map(tuple, read(finished.out))) == expected(*DAYS[:2])


def test_a_night_with_nothing_new_is_over_without_binding_the_model(finished, monkeypatch):
    monkeypatch.setattr(planner, "bind", None)
    report = finished.run()
    assert (report.outcome, report.rows_new, report.rows_skipped) == ("nothing_to_do", 0, 40)
    assert (report.files, report.files_new, report.files_changed, report.files_skipped) == (2, 0, 0, 2)
    assert hfbatch.plan(finished.job).job.partition_by == ("day",)


def test_the_next_night_infers_the_new_day_alone(nightly, finished):
    before = {path.relative_to(nightly.out): path.read_bytes() for path in nightly.objects}
    finished.write(DAYS[2])
    report = nightly.run()
    assert (report.files, report.files_new, report.files_changed, report.files_skipped) == (3, 1, 0, 2)
    assert (report.rows, report.rows_new, report.rows_skipped, report.rows_failed) == (60, 20, 40, 3)
    assert (report.shards_new, report.shards_skipped, report.shards_changed) == (1, 2, 0)
    assert nightly.rows() == expected(*DAYS)
    assert {name: (nightly.out / name).read_bytes() for name in before} == before
    assert not examine(str(nightly.out)).flaws
    assert find_garbage(str(nightly.out)) == []


def test_a_day_that_is_written_anew_is_told_as_changed_and_one_that_is_gone_as_removed(finished, tmp_path, classifier):
    own = Nightly(tmp_path, classifier)
    for day in DAYS:
        own.write(day)
    own.run()
    own.write(DAYS[1], seed=99)
    shutil.rmtree(own.folder / "in" / f"day={DAYS[0]}")
    report = own.run()
    assert (report.files_new, report.files_changed, report.files_skipped, report.files_removed) == (0, 1, 1, 1)
    assert (report.rows_new, report.rows_changed, report.shards_changed) == (20, 20, 1)
    assert own.rows() == expected(*DAYS[1:])
    assert not list(own.out.glob("_hfbatch/staged/**/*.parquet"))
    assert not examine(str(own.out)).flaws


def test_a_file_is_new_until_it_is_whole_and_changed_where_another_content_was_published(nightly, finished):
    finished.write(DAYS[2])
    plan = hfbatch.plan(nightly.job)
    assert {Path(path).parent.name for path in plan.changes.new} == {f"day={DAYS[2]}"}
    counts = plan.changes.as_counts(plan.shards, (), "run")
    assert (counts["files_failed"], counts["shards_failed"]) == (3, 3), "nothing is committed by then"


def test_what_is_damaged_is_found_and_made_again_where_it_stood(nightly):
    flip_a_bit(nightly.objects[1])
    found = examine(str(nightly.out))
    assert [f"day={DAYS[1]}" in flaw.place for flaw in found.flaws] == [True]
    plan, _ = plan_repair(str(nightly.out), load_machine({}))
    with runs_in_this_process():
        report = hfbatch.run(plan)
    assert report.rows_new == 20
    assert nightly.rows() == expected(*DAYS[:2])
    assert [path.parent.name for path in nightly.objects] == [f"day={day}" for day in DAYS[:2]]
    assert not examine(str(nightly.out)).flaws


def test_a_lost_plan_is_put_together_with_its_folders(nightly):
    for plan in (nightly.out / "_hfbatch" / "plans").iterdir():
        plan.write_bytes(b"{}")
    plan, _ = plan_repair(str(nightly.out), load_machine({}))
    assert plan.todo == ()
    assert [shard.folder for shard in plan.shards] == [f"day={day}" for day in DAYS[:2]]
    with runs_in_this_process():
        hfbatch.run(plan)
    assert not examine(str(nightly.out)).flaws
    assert nightly.rows() == expected(*DAYS[:2])


def test_failed_rows_are_listed_and_tried_again_in_their_folders(nightly):
    failed = list(hfbatch.failed_rows(str(nightly.out)))
    assert [(Path(row.file).parent.name, row.row) for row in failed] == [(f"day={day}", 0) for day in DAYS[:2]]
    plan = plan_retry(str(nightly.out), load_machine({}))
    with runs_in_this_process():
        report = hfbatch.run(plan)
    assert (report.rows_new, report.rows_failed, report.files_skipped) == (2, 2, 2)
    assert nightly.rows() == expected(*DAYS[:2])
    assert read_status(str(nightly.out))["complete"]
    assert collect(str(nightly.out)) == []


def test_an_object_in_a_folder_that_is_none_of_hives_is_foreign(nightly):
    (nightly.out / "data" / "sub").mkdir()
    shutil.copy(nightly.objects[0], nightly.out / "data" / "sub" / nightly.objects[0].name)
    assert "not written by hfbatch" in (hfbatch.plan(nightly.job).conflict or "")


def test_an_object_moved_to_another_day_is_a_flaw(nightly):
    first, second = nightly.objects
    first.rename(second.parent / first.name)
    with pytest.raises(Damage, match="is gone"):
        examine(str(nightly.out)).check()


def test_folders_are_part_of_the_generation_where_there_are_any(finished):
    plain = {**finished.job, "output": {"path": str(finished.out)}}
    plan = hfbatch.plan(plain)
    assert 'partition_by: there ["day"], now nothing' in (plan.conflict or "")
    assert "partition_by" not in plan.job.identity
    assert "day" in plan.job.output_schema.names, "an output without folders has it as a column"
    assert "partition_by" not in plan.job.step.parameters


@pytest.mark.parametrize(
    ("output", "message", "fix"),
    [
        (
            {"partition_by": ["id"]},
            "'id' is no folder of ",
            "its folders give day; put the file into a folder id=VALUE",
        ),
        ({"partition_by": ["day", "day"]}, "column 'day' is listed twice", "remove one of them"),
    ],
)
def test_an_output_is_partitioned_by_folders_alone(finished, output, message, fix):
    with pytest.raises(SpecError, match=message) as raised:
        hfbatch.plan({**finished.job, "output": {**finished.job["output"], **output}})
    assert fix in str(raised.value)
    (problem,) = raised.value.problems
    assert problem.key == f"output.partition_by.{len(output['partition_by']) - 1}"


def test_a_folder_named_as_a_column_of_the_task_needs_a_prefix(tmp_path, classifier, write_parquet, job_for):
    write_parquet("in/label=x/a.parquet", {"text": sentences(2)})
    job = job_for("text-classification", classifier, tmp_path / "in")
    job["input"]["keep"], job["output"]["partition_by"] = ["text"], ["label"]
    with pytest.raises(SpecError, match=r"two columns 'label': one from its folders, one from hfbatch\n  fix: set "):
        plan_of(job)
    job["output"]["prefix"] = "p_"
    assert plan_of(job).job.output_schema.names[:3] == ["text", "p_label", "p_score"]


def test_a_rerun_on_another_day_with_variables_recomputes_nothing(finished):
    """They matter where they are written and nowhere else."""
    for today in ("2026-11-21", "2026-11-22"):
        plan = hfbatch.plan(finished.job, vars={"today": today})
        assert (plan.complete, len(plan.todo)) == (True, 0)


def test_the_ledger_names_folders_in_its_manifest_and_receipts(finished):
    ledger = Ledger(open_store(str(finished.out)))
    names = [entry["data"] for entry in ledger.run_file(ledger.runs()[-1], "manifest.json")["objects"]]
    assert [name.rpartition("/")[0] for name in names] == [f"data/day={day}" for day in DAYS[:2]]
    assert names == [receipt.data for receipt in ledger.receipts(ledger.agreed().generation, map(shard_of, names))]
    assert ledger.foreign() == []

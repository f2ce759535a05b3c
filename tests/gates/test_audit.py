"""Write, audit, publish: runs with gates over real files, their readers, the ways out, and a kill at each new step."""

import json
import shutil
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

import hfbatch
from hfbatch import pipeline, startup
from hfbatch.errors import GateFailed, SpecError
from hfbatch.examine import examine
from hfbatch.garbage import find_garbage
from hfbatch.gates import audit
from hfbatch.ledger import Ledger
from hfbatch.load import load_job, load_machine
from hfbatch.pages import last_report
from hfbatch.planner import make_plan
from hfbatch.status import read_status
from hfbatch.store import open_store
from tests import models
from tests.console import command_in_this_process
from tests.crashes import inferred, run_in_process
from tests.outputs import runs_in_this_process

MACHINE = {"shard_rows": 30}
LABELS = ("negative", "neutral", "positive")
GATES = {"shift": {"label": 0.25}, "error_share": 0.1, "rows_against_last": {"min": 0.9, "max": 2}}


@pytest.fixture(scope="module")
def shuffled(classifier, tmp_path_factory):
    """The same model, but each of its labels has the name of another."""
    names = {number: LABELS[(number + 1) % 3] for number in range(3)}
    folder = tmp_path_factory.mktemp("models") / "shuffled"
    return models.bert(folder, id2label=names, label2id={name: number for number, name in names.items()})


@pytest.fixture(scope="module")
def published(classifier, tmp_path_factory):
    """Yesterday, published with gates; since then a file has come. Not to be run."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "in").mkdir()
    for name, rows in (("a", 60), ("b", 30)):
        write(folder / f"in/{name}.parquet", rows)
    job = {
        "task": "text-classification",
        "model": {"id": str(classifier)},
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
        "gates": GATES,
    }
    with runs_in_this_process():
        report = run(job)
    assert [gate.note for gate in report.gates if gate.note] == ["no last run"] * 2
    pa.csv.write_csv(pq.read_table(folder / "out/data", columns=["id", "label"]).slice(0, 20), folder / "golden.csv")
    write(folder / "in/d.parquet", 40)
    return job, folder / "golden.csv"


@pytest.fixture
def night(published, tmp_path):
    """Its job over a copy of its output, with the labels of 20 rows as golden file."""
    job, golden = json.loads(json.dumps(published[0])), published[1]
    shutil.copytree(job["output"]["path"], tmp_path / "out")
    job["output"]["path"] = str(tmp_path / "out")
    job["gates"]["golden"] = {"path": str(golden), "key": "id", "min_accuracy": 0.85, "min_f1": 0.8}
    with runs_in_this_process():
        yield job


@pytest.fixture
def bad_night(night, shuffled):
    """The same with a model whose labels are shuffled."""
    return {**night, "model": {"id": str(shuffled)}}


def write(path, rows):
    texts = models.sentences(rows, seed=ord(path.stem), longest=12)
    pq.write_table(pa.table({"id": [f"{path.stem}{row}" for row in range(rows)], "text": texts}), path)


def run(job, *, anyway=False, new_generation=False):
    plan = make_plan(load_job(job), load_machine(MACHINE), new_generation=new_generation)
    return pipeline.run(replace(plan, publish_anyway=anyway))


def rows_in(output):
    """id -> label of all rows that a reader of data/ finds; AssertionError where one is there twice."""
    table = ds.dataset(f"{output}/data", format="parquet").to_table(columns=["id", "label"])
    assert table["id"].value_counts().field("counts").to_pylist() == [1] * len(table)
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


def pointers(output):
    """What _SUCCESS and CURRENT say, and what the manifest lists which they name."""
    success, current = (json.loads((Path(output) / name).read_text()) for name in ("_SUCCESS", "_hfbatch/CURRENT"))
    return success, current, json.loads((Path(output) / success["manifest"]).read_text())


class Reader:
    """A thread that reads an output, over and over, in each way that a reader may."""

    def __init__(self, output):
        self.output, self.seen, self.errors, self.over = output, Counter(), [], threading.Event()
        self.read_once = threading.Condition()
        self.thread, self.patch = threading.Thread(target=self.poll), pytest.MonkeyPatch()

    def poll(self):
        while not self.over.is_set():
            try:
                found = repr((sorted(rows_in(self.output).items()), pointers(self.output)))
            except Exception as error:
                self.errors.append(error)
            with self.read_once:
                self.seen[found] += 1
                self.read_once.notify_all()

    def wait_for_two(self):
        """Return once two more reads are done, of which the second began after this call."""
        with self.read_once:
            wanted = self.seen.total() + 2
            assert self.read_once.wait_for(lambda: self.seen.total() >= wanted or self.errors, timeout=60)

    def __enter__(self):
        real = audit.audit
        self.patch.setattr(audit, "audit", lambda *given: (self.wait_for_two(), real(*given))[1])
        self.thread.start()
        self.wait_for_two()
        return self

    def __exit__(self, *_):
        self.patch.undo()
        self.wait_for_two()
        self.over.set()
        self.thread.join()


def test_a_night_with_shuffled_labels_is_stopped_and_a_reader_that_polls_sees_yesterday_throughout(night, bad_night):
    output = night["output"]["path"]
    yesterday, pointed = rows_in(output), pointers(output)
    with Reader(output) as reader, pytest.raises(GateFailed) as failed:
        run(bad_night, new_generation=True)
    assert reader.errors == []
    assert list(reader.seen) == [repr((sorted(yesterday.items()), pointed))]
    assert failed.value.exit_code == 9
    for gate in ("shift.label.psi: ", "golden.accuracy: 0, asked: at least 0.85", "golden.f1: 0, asked: at least 0.8"):
        assert gate in str(failed.value)
    assert "error_share" not in str(failed.value), "it is passed"
    report = run(night, new_generation=True)
    assert (report.outcome, report.rows, all(gate.passed for gate in report.gates)) == ("success", 130, True)
    assert report.rows_new == 40, "yesterday's rows are carried over, from what was never touched"
    today = rows_in(output)
    assert len(today) == 130
    assert today.items() >= yesterday.items()
    assert pointers(output)[0]["run_id"] == report.run_id
    examine(output).check()
    assert find_garbage(output) == []


def test_on_a_first_run_nothing_stands_in_data_before_its_gates_are_passed(night, tmp_path):
    job = {**night, "output": {"path": str(tmp_path / "new")}, "gates": {"min_rows": 1000}}
    with pytest.raises(GateFailed, match="min_rows: 130, asked: at least 1,000"):
        run(job)
    assert not list((tmp_path / "new").glob("data/**/*.parquet"))
    assert not (tmp_path / "new/_SUCCESS").exists()
    assert run({**job, "gates": {"min_rows": 100}}).rows_new == 0, "nothing is inferred again"
    assert len(rows_in(tmp_path / "new")) == 130


def test_what_is_told_of_a_run_that_did_not_pass(night):
    output = night["output"]["path"]
    night["gates"]["min_rows"] = 1000
    with pytest.raises(GateFailed):
        run(night)
    report, _ = last_report(output)
    assert report.outcome == "gates_failed"
    assert [gate.name for gate in report.gates if not gate.passed] == ["min_rows"]
    assert [gate.name for gate in report.gates] == [
        *("min_rows", "rows_against_last", "error_share", "shift.label.psi", "golden.accuracy", "golden.f1")
    ]
    folder = Path(output) / "_hfbatch/runs" / report.run_id
    assert json.loads((folder / "result.json").read_text())["exit_code"] == 9
    page = (folder / "report.html").read_text()
    assert "<td><code>min_rows</code></td>" in page
    assert "at least 1,000" in page
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = {event["event"]: event for event in events}
    assert told["audited"]["failed"] == ["min_rows"]
    assert told["finished"]["outcome"] == "gates_failed"
    status = read_status(output)
    assert (status["complete"], status["published"] == report.run_id) == (False, False)
    assert (status["runs"][-1]["outcome"], status["runs"][-1]["exit_code"]) == ("gates_failed", 9)


def test_gates_and_golden_file_may_change_and_the_same_command_audits_again(night, tmp_path):
    golden = tmp_path / "golden.csv"
    golden.write_text("id,label\na0,no such label\n")
    night["gates"]["golden"]["path"] = str(golden)
    with pytest.raises(GateFailed, match=r"golden.accuracy"):
        run(night)
    golden.write_text(f"id,label\na0,{rows_in(night['output']['path'])['a0']}\n")
    report = run(night)
    assert (report.outcome, report.rows, report.rows_new) == ("success", 130, 0)
    assert run(night).outcome == "nothing_to_do"


def test_what_stands_aside_may_be_deleted_and_is_then_inferred_again(night):
    night["gates"]["min_rows"] = 1000
    for _ in range(2):
        with pytest.raises(GateFailed):
            run(night)
        shutil.rmtree(Path(night["output"]["path"]) / "_hfbatch/staged")
    del night["gates"]["min_rows"]
    assert run(night).rows_new == 40


def test_a_golden_row_that_is_not_in_the_output_is_told_and_holds_the_run_back(night, tmp_path):
    golden = tmp_path / "golden.csv"
    golden.write_text(f"id,label\na0,{rows_in(night['output']['path'])['a0']}\nnowhere,positive\n")
    night["gates"]["golden"]["path"] = str(golden)
    with pytest.raises(GateFailed, match="1 of 2 golden rows are not in the output: id 'nowhere'"):
        run(night)


def test_a_golden_file_that_is_gone_when_it_is_needed_is_told_with_its_key(night, tmp_path):
    golden = shutil.copy(night["gates"]["golden"]["path"], tmp_path / "golden.csv")
    night["gates"]["golden"]["path"] = str(golden)
    plan = make_plan(load_job(night), load_machine(MACHINE))
    Path(golden).unlink()
    with pytest.raises(SpecError, match=r"gates.golden.path: .*golden.csv does not exist"):
        pipeline.run(plan)
    assert len(rows_in(night["output"]["path"])) == 90


def test_sql_sees_the_new_output_whole_and_the_last_one(night):
    night["gates"] = {
        "sql": {
            "all of it": "SELECT count(*) = 130 AND count(DISTINCT id) = 130 FROM output",
            "nothing lost": "SELECT count(*) = 90 FROM last JOIN output USING (id, label)",
            "growth": {"query": "SELECT (SELECT count(*) FROM output) / (SELECT count(*) FROM last)", "max": 1.2},
        }
    }
    with pytest.raises(GateFailed, match=r"1 of 3 gates .*\n  sql.growth: 1.444, asked: at most 1.2"):
        run(night)
    night["gates"]["sql"]["growth"]["max"] = 1.5
    assert [gate.value for gate in run(night).gates] == [True, True, pytest.approx(130 / 90)]


def test_gates_against_a_last_run_that_lost_an_object_are_not_passed(night):
    next(iter(Path(night["output"]["path"]).glob("data/*.parquet"))).unlink()
    night["gates"] = {"rows_against_last": 0.9, "sql": ["SELECT count(*) > 0 FROM last"]}
    with pytest.raises(
        GateFailed, match=r"rows_against_last: not known, .*1 objects of what was published last are gone"
    ):
        run(night)


def test_a_job_whose_gates_do_not_fit_its_output_is_refused_before_anything_runs(night):
    night["gates"] = {"mean": {"label": 1}, "sql": {"x": "SELECT nothing FROM output"}}
    with pytest.raises(SpecError, match="'label' is string") as refused:
        run(night)
    assert [problem.key for problem in refused.value.problems] == ["gates.mean.label", "gates.sql.x"]


def test_the_command_ends_with_9_tells_the_gates_and_publishes_anyway_when_told_to(
    bad_night, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(startup, "LocalRay", lambda: SimpleNamespace(end=lambda: None))  # nothing here needs one
    output, file = Path(bad_night["output"]["path"]), tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(bad_night))
    command = command_in_this_process(capsys)
    before = rows_in(output)
    code, out, err = command("run", file, "--new-generation")
    assert (code, out) == (9, "")
    assert "3 of 5 gates are not passed" in err
    assert "--publish-anyway" in err
    assert rows_in(output) == before
    code, out, _ = command("status", output)
    assert code == 0
    assert "not published, as gates are not passed; what run " in out
    assert "not passed: golden.accuracy: 0, asked: at least 0.85" in out
    code, out, _ = command("report", output)
    assert "outcome  gates failed" in out
    assert "gates    not passed: shift.label.psi: " in out
    code, out, _ = command("run", file, "--new-generation", "--publish-anyway")
    assert code == 0
    assert "published anyway, as --publish-anyway said" in out
    assert rows_in(output) != before
    report, _ = last_report(str(output))
    assert (report.outcome, report.published_anyway) == ("success", True)
    assert "Published anyway" in (output / "_hfbatch/runs" / report.run_id / "report.html").read_text()


def test_in_python_the_plan_says_that_it_is_published_anyway(night):
    night["gates"]["min_rows"] = 1000
    with pytest.raises(GateFailed):
        hfbatch.run(hfbatch.plan(night))
    assert hfbatch.run(replace(hfbatch.plan(night), publish_anyway=True)).published_anyway
    assert len(rows_in(night["output"]["path"])) == 130


def test_the_override_says_nothing_where_all_gates_are_passed(night):
    assert not run(night, anyway=True).published_anyway


def test_what_a_retry_infers_stands_aside_too_until_its_gates_are_passed(night, write_parquet, tmp_path):
    path = write_parquet("few.parquet", {"id": ["a", "b"], "text": ["a good movie", None]})
    night |= {"input": {"path": str(path)}, "output": {"path": str(tmp_path / "few")}, "gates": {"error_share": 0.1}}
    night["errors"] = {"max_failed_fraction": 1}
    for attempt in (lambda: run(night), lambda: hfbatch.retry(str(tmp_path / "few"))):
        with pytest.raises(GateFailed, match=r"error_share: 0.5, asked: at most 0.1"):
            attempt()
    assert not list((tmp_path / "few").glob("data/*.parquet"))


def test_a_job_without_gates_publishes_as_ever_and_writes_no_verdict(night):
    del night["gates"]
    report = run(night)
    assert (report.outcome, report.gates) == ("success", [])
    assert not list(Path(night["output"]["path"]).glob("_hfbatch/audits/*2.json"))


# killed


LATE = ("before-manifest", "before-swap", "before-promote", "after-promote", "before-current", "before-success")
POINTS = ("before-audit", "before-reopen", "after-audit", "after-reopen", *LATE)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at_any_step_leaves_yesterday_or_is_finished_by_the_next(point, night, tmp_path):
    """What has passed is finished, whatever the gates say then; what has not is judged by them."""
    output, log = night["output"]["path"], tmp_path / "log"
    yesterday = rows_in(output)
    assert run_in_process(night, f"{point}:kill", log, **MACHINE) == -signal.SIGKILL
    before = inferred(log)
    night["gates"] = {"min_rows": 1000}
    if point == "before-audit":
        assert rows_in(output) == yesterday
        assert pointers(output)[0] == pointers(output)[1]
        with pytest.raises(GateFailed):
            run(night)
        assert rows_in(output) == yesterday
        report = run(night, anyway=True)
    else:
        report = run(night)
        assert [gate.name for gate in report.gates][-1] == "golden.f1", "what the run found that was killed"
    assert (report.outcome, report.rows_new) == ("success", 0)
    assert len(rows_in(output)) == 130
    assert inferred(log) == before
    examine(output).check()
    assert Ledger(open_store(output)).success()["run_id"] == report.run_id

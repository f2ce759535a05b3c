"""What a run tells as JSON lines: in its folder, to a program's own logging, on stderr."""

import json
import logging
from datetime import datetime
from types import SimpleNamespace

import pytest

import hfbatch
from hfbatch import logs, pipeline
from hfbatch.errors import ErrorBudgetExceeded, Interrupted, StorageError
from hfbatch.logs import JsonLines, RunLog, event
from hfbatch.spec import ErrorsSpec
from hfbatch.stopping import Stopping
from hfbatch.store import open_store
from hfbatch.tally import Snapshot
from tests.console import command_in_this_process
from tests.outputs import copied, runs_in_this_process

RUN = "20261121T020000-aaaaaa"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def again(made, tmp_path):
    """A finished output to run on."""
    return copied(made, tmp_path)


def lines_of(out, run_id=RUN):
    text = (out / "_hfbatch" / "runs" / run_id / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def names(lines):
    return [line["event"] for line in lines]


def test_a_run_writes_what_it_plans_begins_and_ends_with(made):
    (run_id,) = made.ledger.runs()
    planned, started, finished = lines_of(made.path, run_id)
    assert names([planned, started, finished]) == ["planned", "started", "finished"]
    assert {line["run_id"] for line in (planned, started, finished)} == {run_id}
    assert [datetime.fromisoformat(line["ts"]).utcoffset().total_seconds() for line in (planned, started)] == [0, 0]
    assert planned["ts"].endswith("Z")
    assert (planned["rows"], planned["shards"], planned["shards_skipped"], planned["files_new"]) == (50, 4, 0, 2)
    assert (started["level"], started["plan"], started["shards"]) == ("info", 1, 4)
    report = made.ledger.run_file(run_id, "report.json")
    assert (finished["outcome"], finished["exit_code"]) == ("success", 0)
    assert {name: finished[name] for name in finished if name.startswith(("rows", "files", "shards"))} == {
        name: report[name] for name in report if name.startswith(("rows", "files", "shards"))
    }


def test_a_run_over_its_error_budget_says_so_before_it_ends(again):
    again.path = again.path.with_name("fresh")
    again.job |= {"errors": {"max_failed_rows": 0}, "output": {"path": str(again.path)}}
    with runs_in_this_process(), pytest.raises(ErrorBudgetExceeded) as raised:
        again.run()
    *_, spent, finished = lines_of(again.path, again.ledger.runs()[-1])
    assert (spent["event"], spent["level"], spent["message"]) == ("error_budget", "warning", str(raised.value))
    assert (finished["outcome"], finished["level"], finished["exit_code"]) == ("error_budget_exceeded", "error", 3)


def test_an_interrupted_run_says_so_before_it_ends(again, monkeypatch):
    def interrupted(*_):
        raise Interrupted(15)

    monkeypatch.setattr(pipeline, "_begin", interrupted)
    plan = hfbatch.plan({**again.job, "output": {"path": f"{again.path}2"}})
    with pytest.raises(Interrupted):
        pipeline.run(plan)
    out = again.path.with_name("out2")
    (folder,) = (out / "_hfbatch" / "runs").iterdir()
    lines = lines_of(out, folder.name)
    assert names(lines) == ["planned", "interrupted", "finished"]
    assert (lines[-1]["outcome"], lines[-1]["exit_code"]) == ("interrupted", 143)


def test_a_log_that_cannot_be_written_ends_no_run_and_is_told_once(again, monkeypatch, caplog):
    put = type(again.ledger.store).put

    def failing(self, name, data):
        if name.endswith("log.jsonl"):
            raise StorageError("the disk is full")
        put(self, name, data)

    monkeypatch.setattr(type(again.ledger.store), "put", failing)
    monkeypatch.setattr(logs, "EVERY_S", 0.001)
    (again.path / "_SUCCESS").unlink()
    with runs_in_this_process():
        assert again.run().outcome == "success"
    told = [record for record in caplog.records if "log could not be written" in record.message]
    assert len(told) == 1


def test_a_long_run_puts_its_log_again_and_again(store, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "EVERY_S", 0.01)
    with RunLog(store, RUN):
        event(RUN, "one")
        while not (tmp_path / "out" / "_hfbatch" / "runs" / RUN / "log.jsonl").exists():
            pass
        event(RUN, "two")
    assert names(lines_of(tmp_path / "out")) == ["one", "two"]


def test_two_runs_in_one_process_keep_their_lines_apart(store, tmp_path):
    other = RUN.replace("a", "b")
    with RunLog(store, RUN), RunLog(store, other):
        event(RUN, "mine")
        event(other, "yours")
    assert names(lines_of(tmp_path / "out")) == ["mine"]
    assert names(lines_of(tmp_path / "out", other)) == ["yours"]


def test_what_modules_log_besides_is_in_it_with_its_traceback(store, tmp_path):
    with RunLog(store, RUN):
        try:
            raise ValueError("no such thing")
        except ValueError:
            logging.getLogger("hfbatch.lease").warning("could not renew %s", "it", exc_info=True)
    (line,) = lines_of(tmp_path / "out")
    assert (line["event"], line["level"], line["logger"]) == ("log", "warning", "hfbatch.lease")
    assert line["message"] == "could not renew it"
    assert line["trace"].endswith("ValueError: no such thing\n")
    assert line["run_id"] == RUN


def test_no_secret_of_a_url_is_written(store, tmp_path):
    url = "https://user:pa55@host/x.parquet?sig=5ecret"
    with RunLog(store, RUN):
        event(RUN, "planned", message=url, files=[url], more={"output": url}, path=store)
        logging.getLogger("hfbatch.x").error("gone: %s", url)
    text = (tmp_path / "out" / "_hfbatch" / "runs" / RUN / "log.jsonl").read_text()
    assert "pa55" not in text
    assert "5ecret" not in text
    assert text.count("https://***@host/x.parquet?***") == 4


def test_events_reach_a_program_that_asks_for_them_and_no_other(store, caplog):
    with RunLog(store, RUN):
        event(RUN, "unasked")
        assert caplog.records == [], "a handler of the root logger takes every level"
        with caplog.at_level(logging.INFO, logger="hfbatch.events"):
            event(RUN, "asked", rows=3)
    (record,) = caplog.records
    assert (record.name, record.getMessage(), record.run_id, record.fields) == (
        "hfbatch.events",
        "asked",
        RUN,
        {"rows": 3},
    )


def test_a_line_is_one_line_whatever_is_in_it():
    record = logging.makeLogRecord({"msg": "one\ntwo\u2028three", "name": "hfbatch", "levelname": "INFO"})
    text = JsonLines(RUN).format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "one\ntwo\u2028three"


def test_progress_is_an_event_every_thirty_seconds(monkeypatch):
    from hfbatch import watch

    plan = SimpleNamespace(job=SimpleNamespace(errors=ErrorsSpec()), todo=(), machine=None)
    lease = SimpleNamespace(run_id=RUN, progress={}, started=0.0)
    told, now = [], [100.0]
    monkeypatch.setattr(watch, "event", lambda run_id, name, **fields: told.append((now[0], run_id, name, fields)))
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    shown = watch.Watch(None, plan, [], lease, Stopping(1), None)
    for now[0] in range(100, 171, 5):
        shown._show(Snapshot())
    assert [moment for moment, *_ in told] == [100, 130, 160]
    assert told[0][1:3] == (RUN, "progress")
    assert told[0][3]["phase"] == "loading"


@pytest.fixture
def command(capsys, monkeypatch):
    monkeypatch.setenv("HFBATCH_LOG", "json")
    monkeypatch.setattr("hfbatch.startup.LocalRay", lambda: SimpleNamespace(end=lambda: None))  # nothing is inferred
    return command_in_this_process(capsys)


def test_stderr_has_json_lines_where_the_environment_asks_for_them(again, command, tmp_path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps(again.job))
    (again.path / "_SUCCESS").unlink()
    code, out, err = command("run", job, "--set", "shard_rows=16", "--json")
    lines = [json.loads(line) for line in err.splitlines()]
    assert (code, names(lines)) == (0, ["planned", "started", "finished"])
    run_id = json.loads(out)["run_id"]
    assert lines == lines_of(again.path, run_id), "the same lines as in the folder"
    code, _, err = command("run", job, "--set", "shard_rows=16")
    (finished,) = map(json.loads, err.splitlines())
    assert (code, finished["event"], finished["outcome"]) == (0, "finished", "nothing_to_do")


def test_a_command_that_fails_says_so_as_a_json_line(command, tmp_path):
    code, _, err = command("run", tmp_path / "none.yaml")
    (line,) = map(json.loads, err.splitlines())
    assert (code, line["event"], line["level"], line["exit_code"], line["type"]) == (
        2,
        "failed",
        "error",
        2,
        "SpecError",
    )
    assert "there is no such file" in line["message"]
    assert line["problems"][0]["place"].endswith("none.yaml")
    code, _, err = command("run")
    assert json.loads(err)["exit_code"] == 2


def test_the_logger_is_left_as_it_was(command, tmp_path):
    logger = logging.getLogger("hfbatch")
    before = (logger.level, logger.propagate, list(logger.handlers))
    command("run", tmp_path / "none.yaml")
    assert (logger.level, logger.propagate, logger.handlers) == before

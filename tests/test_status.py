"""What an output says of itself, from first commit to _SUCCESS."""

import pytest

from hfbatch.cli import states
from hfbatch.errors import SpecError
from hfbatch.lease import Lease
from hfbatch.ledger import Ledger
from hfbatch.records import Receipt, data_name
from hfbatch.shards import Piece, Shard
from hfbatch.status import read_status
from hfbatch.store import open_store

GENERATION = "0123456789abcdef" * 4
SHARDS = tuple(Shard.of([Piece("in/a.parquet", "f", i * 100, i * 100 + 100)], None) for i in range(3))
RUN = "20261121T000000-aaaaaa"
REPORT = {"outcome": "success", "rows_new": 300, "rows_failed": 2, "rows_per_s": 1234.56, "padding_share": 0.0532}


@pytest.fixture
def output(tmp_path):
    """A ledger on which a run has begun."""
    ledger = Ledger(open_store(str(tmp_path / "out")))
    ledger.begin(RUN, GENERATION, {"task": "fill-mask", "model_commit": "c" * 40}, {"host": "here"})
    ledger.agree(GENERATION, SHARDS, None)
    return ledger


def commit(ledger, shards, failed=0):
    for shard in shards:
        name = data_name(shard.id, GENERATION)
        ledger.store.put(name, b"rows")
        errors = {"too_long": failed} if failed else {}
        ledger.commit(Receipt(shard.id, GENERATION, name, shard.rows, 4, "sha", errors))


def status_of(folder):
    return read_status(str(folder / "out"))


def test_an_output_that_has_just_begun_has_nothing_committed(output, tmp_path):
    found = status_of(tmp_path)
    assert (found["complete"], found["rows_planned"], found["rows_committed"]) == (False, 300, 0)
    assert (found["shards"], found["shards_committed"]) == (3, 0)
    about = {"run_id": RUN, "job": None, "host": "here", "started": None, "exit_code": None}
    more = "gates published_anyway rows rows_changed rows_skipped labels error_share generation model_commit".split()
    more += [f"files_{what}" for what in ("new", "changed", "skipped", "failed", "removed")]
    assert found["runs"] == [dict.fromkeys([*REPORT, *more]) | about | {"outcome": "killed"}]
    assert found["live"] is None


def test_committed_shards_count_with_their_failed_rows(output, tmp_path):
    commit(output, SHARDS[:2], failed=3)
    found = status_of(tmp_path)
    assert (found["complete"], found["rows_committed"], found["rows_failed"]) == (False, 200, 6)


def test_a_published_output_is_complete_until_another_run_reopens_it(output, tmp_path):
    commit(output, SHARDS)
    receipts = output.receipts(GENERATION, [shard.id for shard in SHARDS])
    output.publish(RUN, output.agreed(), receipts, REPORT)
    output.write_run_file(RUN, "result.json", {"outcome": "success", "exit_code": 0})
    found = status_of(tmp_path)
    assert (found["complete"], found["runs"][0]["outcome"], found["runs"][0]["exit_code"]) == (True, "success", 0)
    output.reopen()
    assert not status_of(tmp_path)["complete"]


def test_status_as_text_names_state_rows_and_runs(output, tmp_path, capsys):
    commit(output, SHARDS[:1])
    states.status(status_of(tmp_path))
    text = capsys.readouterr().out
    assert "state         not complete; the command that made it resumes it\n" in text
    assert "rows          100 committed of 300 planned, 0 with an error\n" in text
    assert f"{RUN}  killed\n" in text
    output.write_run_file(RUN, "report.json", REPORT)
    output.write_run_file(RUN, "result.json", {"outcome": "success", "exit_code": 0})
    states.status(status_of(tmp_path))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split() == [RUN, "success", "0", "300", "2", "1,234.6"]


def test_runs_stand_side_by_side_with_their_share_of_errors_model_and_labels(output, tmp_path, capsys):
    for day, commit_, labels in ((20, "a" * 40, {"good": 6, "bad": 3, "odd": 1}), (21, "sha256:" + "b" * 64, {})):
        run_id = f"202611{day}T020000-bbbbbb"
        begun = {"started": 1_700_000_000.0 + day, "model_commit": commit_, "host": "here"}
        output.write_run_file(run_id, "started.json", begun)
        report = {"outcome": "success", "rows": 400, "rows_new": 300, "rows_failed": 2, "rows_per_s": 10.0}
        output.write_run_file(run_id, "report.json", {**report, "labels": labels})
        output.write_run_file(run_id, "result.json", {"outcome": "success", "exit_code": 0})
    states.status(status_of(tmp_path))
    *_, first, killed, second = capsys.readouterr().out.splitlines()
    assert killed.startswith(RUN), "run ids sort by time"
    assert first == (
        "2023-11-14 22:13:40     success     0   300       2  0.50%    10.0  aaaaaaaa  good 60%, bad 30%, odd 10%"
    )
    assert second.split()[-3:] == ["0.50%", "10.0", "bbbbbbbb"]
    newest = read_status(str(tmp_path / "out"), runs=2)["runs"]
    assert [run["run_id"] for run in newest] == ["20261121T000000-aaaaaa", "20261121T020000-bbbbbb"]


@pytest.mark.parametrize(
    ("result", "report", "told"),
    [
        ({"outcome": "Interrupted", "exit_code": 143}, {"outcome": "interrupted"}, ("interrupted", 143)),
        ({"outcome": "ErrorBudgetExceeded", "exit_code": 3}, None, ("error_budget_exceeded", 3)),
        ({"outcome": "Conflict", "exit_code": 5}, {"outcome": "success"}, ("conflict", 5)),
        ({"outcome": "ZeroDivisionError", "exit_code": 70}, None, ("zero_division_error", 70)),
        (None, {"outcome": "success"}, ("killed", None)),
    ],
)
def test_how_a_run_ended_is_what_its_result_says(output, tmp_path, result, report, told):
    for name, content in (("result.json", result), ("report.json", report)):
        if content:
            output.write_run_file(RUN, name, content)
    (run,) = status_of(tmp_path)["runs"]
    assert (run["outcome"], run["exit_code"]) == told


def test_the_run_at_work_is_told_with_its_progress(output, tmp_path, capsys):
    lease = Lease(output.store, RUN, "nightly")
    lease.about = {**lease.about, "host": "node7/boot", "pid": 4711}
    progress = {"phase": "running", "rows_done": 100, "rows_total": 300, "rows_per_s": 50.0, "tokens_per_s": 0.0}
    lease.progress = {**progress, "padding_share": 0.0, "errors": 2, "eta_s": 4.0}
    with lease:
        found = status_of(tmp_path)
    assert (found["live"]["run_id"], found["live"]["host"], found["live"]["pid"]) == (RUN, "node7", 4711)
    assert found["live"]["progress"]["rows_done"] == 100
    assert found["runs"][0]["outcome"] == "running"
    states.status(found)
    text = capsys.readouterr().out
    assert "state         a run is at work\n" in text
    assert f"at work       {RUN}, process 4711 on node7\n" in text
    assert "\n              100/300 rows, 50 rows/s, 2 errors, 0:04 left\n" in text
    assert status_of(tmp_path)["live"] is None


def test_a_lease_without_progress_is_a_run_that_starts(output, tmp_path, capsys):
    lease = Lease(output.store, RUN, "nightly")
    lease.about = {**lease.about, "host": "node7/boot"}
    with lease:
        states.status(status_of(tmp_path))
    assert "\n              starting\n" in capsys.readouterr().out


def test_a_folder_no_run_wrote_to_is_refused_and_not_made(tmp_path):
    with pytest.raises(SpecError, match="holds no output of hfbatch"):
        status_of(tmp_path)
    assert not (tmp_path / "out").exists()

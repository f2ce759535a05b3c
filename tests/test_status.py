"""What an output says of itself, from first commit to _SUCCESS."""

import pytest

from hfbatch.cli import show
from hfbatch.errors import SpecError
from hfbatch.ledger import Ledger, Receipt, data_name
from hfbatch.shards import Piece, Shard
from hfbatch.status import read_status
from hfbatch.store import open_store

GENERATION = "0123456789abcdef" * 4
SHARDS = tuple(Shard(str(i) * 20, (Piece("in/a.parquet", "f", i * 100, i * 100 + 100),)) for i in range(3))
REPORT = {"outcome": "success", "rows_new": 300, "rows_failed": 2, "rows_per_s": 1234.56, "padding_share": 0.0532}


@pytest.fixture
def output(tmp_path):
    """A ledger on which a run has begun."""
    ledger = Ledger(open_store(str(tmp_path / "out")))
    ledger.begin(
        "20261121T000000-aaaaaa", GENERATION, {"task": "fill-mask", "model_commit": "c" * 40}, {"host": "here"}
    )
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
    assert found["runs"] == [
        {"run_id": "20261121T000000-aaaaaa", "job": None, "host": "here", "started": None} | dict.fromkeys(REPORT)
    ]


def test_committed_shards_count_with_their_failed_rows(output, tmp_path):
    commit(output, SHARDS[:2], failed=3)
    found = status_of(tmp_path)
    assert (found["complete"], found["rows_committed"], found["rows_failed"]) == (False, 200, 6)


def test_a_published_output_is_complete_until_another_run_reopens_it(output, tmp_path):
    commit(output, SHARDS)
    receipts = output.receipts(GENERATION, [shard.id for shard in SHARDS])
    output.publish("20261121T000000-aaaaaa", output.agreed(), receipts, REPORT)
    found = status_of(tmp_path)
    assert (found["complete"], found["runs"][0]["outcome"]) == (True, "success")
    output.reopen()
    assert not status_of(tmp_path)["complete"]


def test_status_as_text_names_state_rows_and_runs(output, tmp_path, capsys):
    commit(output, SHARDS[:1])
    show.status(status_of(tmp_path))
    text = capsys.readouterr().out
    assert "state         not complete; the command that made it resumes it\n" in text
    assert "rows          100 committed of 300 planned, 0 with an error\n" in text
    assert "20261121T000000-aaaaaa  running or killed" in text
    output.write_report("20261121T000000-aaaaaa", REPORT)
    show.status(status_of(tmp_path))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split() == ["20261121T000000-aaaaaa", "success", "300", "2", "1,234.6", "5.3%", "here"]


def test_a_folder_no_run_wrote_to_is_refused_and_not_made(tmp_path):
    with pytest.raises(SpecError, match="holds no output of hfbatch"):
        status_of(tmp_path)
    assert not (tmp_path / "out").exists()

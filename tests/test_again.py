"""`hfbatch retry` and `hfbatch repair`: what failed, and what is damaged, is inferred again, and nothing else."""

import json
import re

import pytest

import hfbatch
from hfbatch.again import plan_repair, plan_retry, spec_of
from hfbatch.errors import Conflict, Damage, Incomplete, Locked, SpecError
from hfbatch.examine import examine
from hfbatch.failed import count_failed
from hfbatch.lease import Lease
from hfbatch.load import load_machine
from hfbatch.tasks.text_classification import TextClassification
from tests.console import command_in_this_process
from tests.outputs import copied, flip_a_bit, plan_again, runs_in_this_process

MACHINE = {"shard_rows": 16}


@pytest.fixture
def output(made, tmp_path):
    with runs_in_this_process():
        yield copied(made, tmp_path)


@pytest.fixture
def command(capsys):
    return command_in_this_process(capsys)


def rows_of(output):
    """What every row says but its score, whose last bits depend on the batch, and its run; in a fixed order."""
    return sorted(map(repr, output.table().drop_columns(["run_id", "score"]).to_pylist()))


def test_retry_infers_the_rows_that_failed_and_those_alone(output):
    before = {row["text"]: row for row in output.table().to_pylist() if row["error"] is None}
    report = hfbatch.retry(str(output.path))
    assert (report.outcome, report.rows, report.rows_new, report.rows_failed) == ("success", 50, 3, 2)
    after = output.table().to_pylist()
    assert count_failed(str(output.path)) == {"null_input": 2}
    assert {row["text"]: row for row in after if row["text"] in before} == before
    examine(str(output.path)).check()


def test_retry_of_one_code_leaves_the_other_shards_alone(output):
    left = {file.name for file in output.objects}
    hfbatch.retry(str(output.path), code="postprocess_failed")
    assert len(left & {file.name for file in output.objects}) == 3
    assert hfbatch.retry(str(output.path), code="postprocess_failed") is None


def test_nothing_failed_so_nothing_is_planned_or_written(output, command):
    before = output.state()
    assert plan_retry(str(output.path), load_machine(None), code="too_long") is None
    code, out, err = command("retry", output.path, "--code", "too_long")
    assert (code, err) == (0, "")
    assert out == f"{output.path}: no committed row failed with too_long; nothing to retry\n"
    assert json.loads(command("retry", output.path, "--code", "too_long", "--json")[1])["outcome"] == "nothing_to_do"
    assert output.state() == before


def test_an_interrupted_retry_goes_on_where_it_was(output, monkeypatch):
    again, _ = plan_again(output)
    machine = load_machine(MACHINE)
    plan = plan_retry(str(output.path), machine)
    assert plan.shards == again.shards
    one = next(shard for shard in plan.shards if shard.retry)
    seen = []
    real = TextClassification.preprocess
    monkeypatch.setattr(
        TextClassification, "preprocess", lambda task, rows: seen.extend(rows["text"].to_pylist()) or real(task, rows)
    )
    hfbatch.run(plan)
    assert one.id in {record.stem for record in output.records}
    assert plan_retry(str(output.path), machine).shards != again.shards  # done: what fails still is tried anew
    assert set(seen) == {"rain rain"}


def test_the_command_says_how_many_failed_before_and_now(output, command):
    code, out, _ = command("retry", output.path)
    assert code == 0
    assert out.splitlines()[-1] == "retried  3 failed before, 2 now"
    found = json.loads(command("retry", output.path, "--json")[1])
    assert (found["failed_before"], found["rows_failed"], found["rows_new"]) == (2, 2, 2)


def test_a_job_that_would_give_other_values_by_now_is_refused(output):
    before = output.state()
    with pytest.raises(Conflict, match=r'params: there .*"top_k":1.*now .*"top_k":2'):
        hfbatch.retry(str(output.path), overrides={"params.top_k": "2"})
    assert output.state() == before


def test_another_output_cannot_be_named(output):
    with pytest.raises(SpecError, match=r"--set output\.path"):
        hfbatch.retry(str(output.path), overrides={"output.path": "x"})


def started(output, **changes):
    file = next((output.path / "_hfbatch/runs").rglob("started.json"))
    content = json.loads(file.read_text())
    spec = content["spec"]
    for key, value in changes.items():
        spec[key] = {**spec[key], **value}
    file.write_text(json.dumps(content | {"model_commits": ["c" * 40]} if "model" in changes else content))


def test_a_model_of_the_hub_is_pinned_to_the_commit_it_had(output):
    assert spec_of(str(output.path)).model.revision is None
    started(output, model={"id": "owner/name", "revision": "main"})
    assert spec_of(str(output.path)).model.revision == "c" * 40


def test_an_input_whose_secrets_were_not_written_down_has_to_be_given(output):
    path = spec_of(str(output.path)).input.path
    started(output, input={"path": "https://example.org/x.parquet?***"})
    with pytest.raises(SpecError, match=r"--set input\.path=\.\.\."):
        hfbatch.retry(str(output.path))
    assert hfbatch.retry(str(output.path), overrides={"input.path": path}).rows_new == 3


def test_an_output_without_the_word_of_a_run_names_the_way_out(output):
    next((output.path / "_hfbatch/runs").rglob("started.json")).write_text("{")
    with pytest.raises(SpecError, match="no run wrote down its job there\n  fix: run the job file again"):
        hfbatch.retry(str(output.path))


def test_nothing_damaged_so_nothing_is_repaired(output, command):
    before = output.state()
    assert hfbatch.repair(str(output.path)) is None
    assert command("repair", output.path) == (0, f"{output.path}: nothing is damaged; nothing to repair\n", "")
    assert output.state() == before


def drop_record_and_object(output):
    name = output.objects[0].name
    output.objects[0].unlink()
    next(record for record in output.records if record.stem in name).write_bytes(b"{")


def superseded(output):
    name = output.objects[0].name
    (output.path / "data" / f"000001-{'0' * 16}-{name[-16:-8]}.parquet").write_bytes(output.objects[0].read_bytes())


DAMAGES = {
    "bit": (lambda o: flip_a_bit(o.objects[0]), 1),
    "object gone": (lambda o: o.objects[1].unlink(), 1),
    "record gone": (lambda o: o.records[0].unlink(), 1),
    "record torn": (lambda o: o.records[0].write_bytes(b"{"), 1),
    "both": (drop_record_and_object, 1),
    "three": (lambda o: [flip_a_bit(file) for file in o.objects[:3]], 3),
    "superseded": (superseded, 0),
    "CURRENT torn": (lambda o: (o.path / "_hfbatch/CURRENT").write_text("{"), 0),
    "_SUCCESS torn": (lambda o: (o.path / "_SUCCESS").write_text("{"), 0),
    "FORMAT torn": (lambda o: (o.path / "_hfbatch/FORMAT.json").write_text("{"), 0),
    "generation torn": (lambda o: next((o.path / "_hfbatch/gens").iterdir()).write_text("{"), 0),
    "manifest gone": (lambda o: next((o.path / "_hfbatch/runs").rglob("manifest.json")).unlink(), 0),
    "plan torn": (lambda o: (o.path / "_hfbatch/plans/000000001.json").write_text("{"), 0),
    "plan gone": (lambda o: (o.path / "_hfbatch/plans/000000001.json").unlink(), 0),
    "plan torn and a bit": (
        lambda o: ((o.path / "_hfbatch/plans/000000001.json").write_text("{"), flip_a_bit(o.objects[0])),
        1,
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_repair_infers_the_damaged_shards_and_no_others(output, case):
    damage, shards = DAMAGES[case]
    damage(output)
    with pytest.raises(Damage):
        hfbatch.verify(str(output.path))
    report = hfbatch.repair(str(output.path))
    kept = {file.name for file in output.objects} & {file.name for file in output.objects if "000001-" in file.name}
    assert report.outcome == "success"
    assert len(kept) == 4 - shards
    assert (report.rows_new == 0) == (shards == 0)
    assert sum(row["text"] is None for row in output.table().to_pylist()) == 2
    assert output.table().num_rows == 50
    assert hfbatch.verify(str(output.path)).complete


def test_what_is_repaired_has_the_values_it_had(output):
    hfbatch.retry(str(output.path))
    whole = rows_of(output)
    for file in output.objects:
        flip_a_bit(file)
    hfbatch.repair(str(output.path))
    assert rows_of(output) == whole


def test_a_plan_that_never_published_gives_way_to_the_one_before(output):
    plan_again(output)
    (output.path / "_hfbatch/plans/000000002.json").write_text("{")
    report = hfbatch.repair(str(output.path))
    assert (report.outcome, report.rows_new) == ("success", 0)
    assert output.ledger.agreed().number == 3
    assert hfbatch.verify(str(output.path)).complete


def test_of_an_output_whose_plan_is_lost_before_anything_was_published_all_is_made_anew(output):
    for name in ("_SUCCESS", "_hfbatch/CURRENT", "_hfbatch/plans/000000001.json"):
        (output.path / name).unlink()
    report = hfbatch.repair(str(output.path))
    assert (report.outcome, report.rows, report.rows_new) == ("success", 50, 50)
    assert hfbatch.verify(str(output.path)).complete


def test_what_is_not_hfbatchs_is_named_and_nothing_is_touched(output, command):
    flip_a_bit(output.objects[0])
    for name in ("x.parquet", "y.csv"):
        (output.path / "data" / name).write_bytes(b"x")
    before = output.state()
    code, _, err = command("repair", output.path)
    assert code == 5
    assert "data/x.parquet" in err
    assert "data/y.csv" in err
    assert "nothing was repaired" in err
    assert output.state() == before


def test_an_output_that_a_run_is_at_work_on_is_not_repaired(output):
    flip_a_bit(output.objects[0])
    lease = Lease(output.ledger.store, "other", "job")
    lease.about = {**lease.about, "host": "elsewhere/1"}
    before = None
    with lease:
        before = output.state()
        with pytest.raises(Locked, match="run other is at work on it"):
            plan_repair(str(output.path), load_machine(None))
        assert output.state() == before


def test_an_unfinished_output_is_no_case_for_repair(output):
    (output.path / "_SUCCESS").unlink()
    assert hfbatch.repair(str(output.path)) is None
    with pytest.raises(Incomplete):
        hfbatch.verify(str(output.path))


def test_the_command_tells_what_it_found_and_what_it_did(output, command):
    flip_a_bit(output.objects[0])
    name = output.objects[0].name
    code, out, err = command("repair", output.path)
    assert code == 0
    assert re.search(rf"{name}: was changed after it was written", err)
    assert re.search(r"^outcome +success$", out, re.MULTILINE)
    flip_a_bit(output.objects[0])
    found = json.loads(command("repair", output.path, "--json")[1])
    assert (found["outcome"], len(found["flaws"]), found["flaws"][0]["kind"]) == ("success", 1, "shard")

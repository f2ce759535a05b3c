"""Plans over real files, checkpoints and outputs; what stands in an output is put there by the real stages."""

import pickle
import shutil

import pyarrow as pa
import pytest

from hfbatch.errors import AccessRefused, Conflict, SpecError
from hfbatch.ledger import Ledger
from hfbatch.load import load_job, load_machine
from hfbatch.model import Predict
from hfbatch.planner import check_no_conflict, make_plan
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Preprocess
from hfbatch.sink import Commit
from hfbatch.store import open_store
from tests.inline import blocks_of, plan_of
from tests.models import sentences


@pytest.fixture
def job(classifier, write_parquet, job_for):
    """60 rows in two files."""
    for name, rows in (("a", 40), ("b", 20)):
        columns = {"id": list(range(rows)), "text": sentences(rows, seed=rows)}
        path = write_parquet(f"in/{name}.parquet", columns)
    return job_for("text-classification", classifier, path.parent)


def commit(plan, shards=None):
    """Commit the first `shards` shards as a run does, all by default; then it ends, with _SUCCESS if all are there."""
    ledger = Ledger(open_store(plan.job.output))
    ledger.begin("run1", plan.job.generation, plan.job.identity, {})
    ruling = ledger.agree(plan.job.generation, plan.shards, plan.agreed)
    predict, postprocess = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step)), Finish(plan.job, "run1")
    for block in blocks_of(plan)[:shards]:
        Commit(plan.job, "run1", 1)(postprocess(predict(block)))
    if shards is None:
        receipts = ledger.receipts(plan.job.generation, [shard.id for shard in plan.shards])
        ledger.publish("run1", ruling, receipts, {})
    return ledger


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_plan_for_a_new_output_has_all_to_do_and_writes_nothing(job, tmp_path):
    before = files_below(tmp_path)
    plan = plan_of(job, shard_rows=16)
    assert plan.rows == 60
    assert plan.todo == plan.shards
    assert max(shard.rows for shard in plan.shards) <= 16
    assert (plan.done, plan.agreed, plan.complete, plan.conflict) == (frozenset(), None, False, None)
    check_no_conflict(plan)
    assert files_below(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_plan_over_a_committed_output_writes_nothing_either(job, tmp_path):
    commit(plan_of(job, shard_rows=16), 2)
    before = files_below(tmp_path)
    plan_of({**job, "params": {"top_k": 2}}, shard_rows=16)
    plan_of(job, shard_rows=7)
    assert files_below(tmp_path) == before


def test_a_plan_is_the_same_every_time_and_survives_pickling(job):
    plan, again = plan_of(job, shard_rows=16), plan_of(job, shard_rows=16)
    assert plan.shards == again.shards
    assert plan.job.generation == again.job.generation
    assert pickle.loads(pickle.dumps(plan)).job.generation == plan.job.generation


def test_after_it_nothing_depends_on_the_folder_one_stands_in(job, classifier, monkeypatch, tmp_path):
    """A worker of a Ray that was started elsewhere stands in another folder than the driver."""
    shutil.copytree(classifier, tmp_path / "model")
    job |= {"model": {"id": "model"}, "input": {"path": "in/*.parquet"}, "output": {"path": "out"}}
    monkeypatch.chdir(tmp_path)
    plan = plan_of(job)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    commit(plan, 1)
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_is_committed_is_done_and_the_rest_is_still_to_do(job):
    plan = plan_of(job, shard_rows=16)
    commit(plan, 2)
    again = plan_of(job, shard_rows=16)
    assert again.done == {shard.id for shard in plan.shards[:2]}
    assert again.todo == plan.shards[2:]
    assert not again.complete


def test_another_machine_keeps_the_cut_that_was_agreed(job):
    plan = plan_of(job, shard_rows=16)
    commit(plan, 1)
    assert plan_of(job, shard_rows=5, max_batch_tokens=64).shards == plan.shards


def test_a_finished_output_is_complete_until_a_file_is_added_or_changed(job, write_parquet):
    plan = plan_of(job, shard_rows=16)
    commit(plan)
    assert plan_of(job).complete
    write_parquet("in/c.parquet", {"id": [1], "text": ["good"]})
    added = plan_of(job)
    assert (added.complete, len(added.todo), added.todo[0].rows) == (False, 1, 1)
    write_parquet("in/b.parquet", {"id": [1, 2], "text": ["good", "bad"]})
    changed = plan_of(job)
    of_a = {shard.id for shard in plan.shards if all(piece.path.endswith("a.parquet") for piece in shard.pieces)}
    assert of_a <= changed.done
    assert sum(shard.rows for shard in changed.shards) == 43


@pytest.mark.parametrize("lost", ["_SUCCESS", "data"])
def test_an_output_that_lost_something_is_not_complete(job, lost):
    ledger = commit(plan_of(job))
    ledger.store.delete(ledger.store.list(lost) if lost == "data" else [lost])
    plan = plan_of(job)
    assert not plan.complete
    assert len(plan.todo) == (1 if lost == "data" else 0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"params": {"top_k": 2}}, r'  params: there {.*"top_k":1.*}, now {.*"top_k":2'),
        ({"task": "fill-mask"}, r'  task: there "text-classification", now "fill-mask"'),
        ({"dtype": "bfloat16"}, r'  dtype: there "float32", now "bfloat16"'),
        ({"where": "id > 3"}, r'  where: there null, now "id > 3"'),
        ({"keep": ["id"]}, r"  output_columns: there {.*\"text\".*}, now {"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_spec_is_a_conflict_that_shows_both_sides_and_the_ways_out(job, masked, change, line):
    commit(plan_of(job), 0)
    if "task" in change:
        job["model"] = {"id": str(masked)}
    for key, section in (("dtype", "model"), ("where", "input"), ("keep", "input")):
        if key in change:
            job[section][key] = change.pop(key)
    plan = plan_of({**job, **change})
    with pytest.raises(Conflict, match=line) as info:
        check_no_conflict(plan)
    text = str(info.value)
    assert text.splitlines()[0].endswith("/out: made by another spec, and outputs never mix:")
    assert text.endswith("take another output.path, undo the change, or replace all of it with --new-generation")
    assert plan.done == frozenset()


def test_a_setting_that_the_older_output_did_not_know_is_shown_too(job):
    """As after an upgrade of hfbatch: the difference must never be an empty list."""
    plan = plan_of(job)
    ledger = commit(plan, 0)
    older = {name: value for name, value in plan.job.identity.items() if name != "dtype"} | {"casing": "lower"}
    ledger.begin("run0", "0" * 64, older, {})
    ledger.agree("0" * 64, plan.shards, ledger.agreed())
    conflict = plan_of(job).conflict
    assert '  dtype: there nothing, now "float32"\n  casing: there "lower", now nothing\n' in conflict


def test_a_new_generation_may_replace_it_and_begins_with_nothing_done(job):
    commit(plan_of(job))
    changed = load_job({**job, "params": {"top_k": 2}})
    plan = make_plan(changed, load_machine(None), new_generation=True)
    assert (plan.conflict, plan.done, plan.complete) == (None, frozenset(), False)
    check_no_conflict(plan)


def test_a_new_generation_of_the_same_spec_is_the_one_that_is_there(job):
    commit(plan_of(job))
    plan = make_plan(load_job(job), load_machine(None), new_generation=True)
    assert plan.complete


def test_neither_the_place_of_the_output_nor_its_error_budget_makes_another_generation(job, tmp_path):
    generation = plan_of(job).job.generation
    moved = {**job, "output": {"path": str(tmp_path / "elsewhere")}, "errors": {"max_failed_fraction": 0.5}}
    assert plan_of({**moved, "name": "other"}, max_batch_rows=3).job.generation == generation


def test_a_foreign_file_among_the_data_is_a_conflict_that_names_it(job, tmp_path):
    commit(plan_of(job), 1)
    (tmp_path / "out" / "data" / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(Conflict, match=r"out/data/part-0.parquet: not written by hfbatch; move it out of data/"):
        check_no_conflict(plan_of(job))


def test_a_changed_local_model_is_another_generation(job, classifier, tmp_path):
    model = shutil.copytree(classifier, tmp_path / "model")
    job["model"] = {"id": str(model)}
    plan = plan_of(job)
    commit(plan, 0)
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 32}')
    changed = plan_of(job)
    assert plan.job.step.model.commit != changed.job.step.model.commit
    assert plan.job.generation != changed.job.generation
    with pytest.raises(Conflict, match=r'model_commit: there "sha256:[0-9a-f]{64}", now "sha256:'):
        check_no_conflict(changed)


def test_the_same_model_in_another_folder_is_the_same_generation(job, classifier, tmp_path):
    generation = plan_of(job).job.generation
    job["model"] = {"id": str(shutil.copytree(classifier, tmp_path / "model"))}
    assert plan_of(job).job.generation == generation


def test_remote_code_needs_consent_on_the_command_line_too(job):
    job["model"]["trust_remote_code"] = True
    with pytest.raises(AccessRefused, match=r"runs code from the model's repository.*add --trust-remote-code") as info:
        plan_of(job)
    assert info.value.exit_code == 77
    plan = make_plan(load_job(job), load_machine(None), trust_remote_code=True)
    assert plan.job.step.trust_remote_code


def test_dtype_auto_is_settled_in_the_plan(job):
    generation = plan_of(job).job.generation
    job["model"]["dtype"] = "auto"
    plan = plan_of(job)
    assert plan.job.step.dtype == "float32"
    assert plan.job.generation == generation


def test_an_input_that_matches_nothing_points_at_its_entry(job, tmp_path):
    job["input"]["path"] = [str(tmp_path / "in"), str(tmp_path / "inn/*.parquet")]
    with pytest.raises(SpecError) as info:
        plan_of(job)
    [problem] = info.value.problems
    assert problem.key == "input.path.1"


def test_a_model_that_is_not_there_points_at_its_key(job, tmp_path):
    job["model"] = {"id": str(tmp_path / "nowhere")}
    with pytest.raises(SpecError, match="is no such directory") as info:
        plan_of(job)
    assert [problem.key for problem in info.value.problems] == ["model.id"]


def test_a_limit_shortens_the_plan(job):
    job["input"]["limit"] = 45
    plan = plan_of(job, shard_rows=16)
    assert plan.rows == 45
    assert pa.concat_tables([block.select(["id"]) for block in blocks_of(plan)])["id"].to_pylist() == [
        *range(40),
        *range(5),
    ]

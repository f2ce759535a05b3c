"""`hfbatch verify --rows N`: committed rows are inferred again, and a value that is another is told."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfbatch
from hfbatch import recheck as module
from hfbatch.errors import Conflict, Damage
from hfbatch.load import load_machine
from hfbatch.planner import make_plan
from hfbatch.recheck import recheck, recheck_output
from tests.console import command_in_this_process
from tests.inline import plan_of
from tests.outputs import SHARDS, copied, finished, runs_in_this_process


@pytest.fixture(scope="module")
def retried(made, tmp_path_factory):
    """With every row but two predicted."""
    output = copied(made, tmp_path_factory.mktemp("retried"))
    with runs_in_this_process():
        hfbatch.retry(str(output.path))
    return output


@pytest.fixture
def output(retried, tmp_path):
    return copied(retried, tmp_path)


def rechecked(output, rows=50, seed=1):
    return recheck_output(str(output.path), rows, seed, load_machine(None))


def edit(output, name, change):
    """Change one column in every object, and nothing of what is said about them."""
    for file in output.objects:
        table = pq.read_table(file)
        at = table.schema.get_field_index(name)
        values = pa.array(map(change, table[name].to_pylist()), table.schema.field(name).type)
        pq.write_table(table.set_column(at, table.schema.field(name), values), file)


def test_what_was_committed_is_inferred_again_in_other_batches(output):
    found = rechecked(output)
    assert (found.rows, found.unchecked, found.flaws) == (50, (), ())
    assert recheck(plan_of(output.job, max_batch_rows=1), 50, 1).flaws == ()


def test_the_seed_picks_the_rows(output, monkeypatch):
    picked = []
    real = module._compared

    def compared(plan, block, infer):
        picked.append([sample.pieces for sample in block])
        return real(plan, block, infer)

    monkeypatch.setattr(module, "_compared", compared)
    for seed in (1, 1, 2):
        assert rechecked(output, rows=7, seed=seed).rows == 7
    assert picked[0] == picked[1] != picked[2]
    assert rechecked(output, rows=1, seed=None).rows == 1


EDITS = {
    "label": lambda label: label and label.upper(),
    "score": lambda score: score and score + 0.001,
    "text": lambda text: text and text + "!",
    "error": lambda error: error and "too_long: no",
    "model_revision": lambda revision: "c" * 40,
    "parameters": lambda parameters: "{}",
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_value_is_told_with_file_row_column_and_both_values(output, name):
    edit(output, name, EDITS[name])
    flaws = rechecked(output).flaws
    assert len(flaws) == (50 if name in ("model_revision", "parameters") else 2 if name == "error" else 48)
    told = str(flaws[0])
    assert re.search(rf"/in/a\.parquet row \d+: {name}: committed .*, inferred .*\n  fix: .*repair", told)


def test_scores_may_differ_in_their_last_digits_and_errors_in_their_words(output):
    edit(output, "score", lambda score: score and score + 1e-6)
    edit(output, "error", lambda error: error and "null_input: said otherwise")
    assert rechecked(output).flaws == ()


def test_rows_whose_file_changed_are_counted_and_no_damage(tmp_path, classifier):
    made = finished(tmp_path, classifier)
    made.write("a", 30, seed=9)
    found = rechecked(made, rows=50)
    assert (found.rows, found.unchecked) == (20, (f"{made.input('a')} (30 of the rows)",))
    assert {flaw.place for flaw in found.flaws} == {f"{made.input('b')} row 5"}  # it failed, and would not now
    made.input("a").unlink()
    assert rechecked(made, rows=50).rows == 20


def test_a_row_that_failed_and_would_not_now_is_told(made):
    flaws = rechecked(made).flaws
    assert {flaw.place for flaw in flaws} == {f"{made.input('b')} row 5"}
    assert any("error: committed 'postprocess_failed: " in flaw.what for flaw in flaws)


def test_a_job_that_would_give_other_values_is_a_conflict(output):
    with pytest.raises(Conflict, match="outputs never mix"):
        recheck(make_plan(plan_of({**output.job, "params": {"top_k": 2}}).spec, load_machine(SHARDS)), 5)


def test_an_output_without_rows_has_nothing_to_infer(tmp_path, classifier, write_parquet, job_for):
    path = write_parquet("empty.parquet", {"text": pa.array([], pa.string())})
    with runs_in_this_process():
        hfbatch.run(job_for("text-classification", classifier, path))
    assert hfbatch.verify(str(tmp_path / "out"), rows=5).rows == 0


def test_the_command_names_the_seed_and_ends_with_6_where_values_differ(output, capsys):
    command = command_in_this_process(capsys)
    code, out, _ = command("verify", output.path, "--rows", "5", "--seed", "7")
    assert code == 0
    assert "inferred  5 rows again, with seed 7\n" in out
    assert json.loads(command("verify", output.path, "--rows", "5", "--json")[1])["sample"]["rows"] == 5


def test_a_torn_object_is_damage(output):
    for file in output.objects:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(Damage, match="is damaged"):
        rechecked(output)

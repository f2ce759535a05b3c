"""configs/ says ON WHAT a job runs: each file loads, explains itself, and changes no prediction."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch.load import load_machine
from tests.inline import plan_of, run_inline
from tests.models import bert, sentences

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# What a machine with no GPU and no cluster cannot have; everything else of a file applies here too.
NOT_HERE = {"address", "actors", "gpus_per_actor", "compile"}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    texts = [*sentences(150, seed=3), None, "", *sentences(100, seed=4, longest=60)]
    pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), folder / "in.parquet")
    return {
        "task": "text-classification",
        "model": {"id": str(bert(folder / "model"))},
        "input": {"path": str(folder / "in.parquet")},
        "params": {"truncation": True},
        "output": {"path": str(folder / "out")},
    }


@pytest.fixture(scope="module")
def plain(job):
    """What comes out without any machine file: one row a batch, so that nothing else can touch a value."""
    plan = plan_of(job, max_batch_rows=1, max_batch_tokens=64, packing=False)
    return plan.job.generation, run_inline(plan)


def test_there_is_a_file_for_each_kind_of_machine():
    names = {path.name for path in CONFIGS}
    assert names == {
        "laptop-cpu.yaml",
        "one-gpu.yaml",
        "eight-gpu-node.yaml",
        "gpu-cluster-autoscaling.yaml",
        "kuberay.yaml",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_file_tells_a_stranger_what_it_is_for_and_what_to_type(path):
    text = path.read_text()
    assert text.startswith("# A machine file: ON WHAT a job runs. It never changes a prediction")
    assert f"hfbatch run job.yaml --on configs/{path.name}" in text or f"--on configs/{path.name} --image" in text
    keys = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len([line for line in keys if "#" in line]) >= len(keys) // 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_file_changes_a_prediction(path, job, plain):
    generation, expected = plain
    whole = load_machine(path).model_dump(exclude_unset=True)
    assert plan_of(job, **whole).job.generation == generation
    here = {key: value for key, value in whole.items() if key not in NOT_HERE}
    plan = plan_of(job, **here)
    found = run_inline(plan, stage=whole["cpu_steps"] == "tasks")
    assert plan.job.generation == generation
    assert found.schema == expected.schema
    for name in found.column_names:
        if pa.types.is_floating(found.schema.field(name).type):
            assert found[name].is_null().equals(expected[name].is_null())
            ours, theirs = (each[name].drop_null().to_pylist() for each in (found, expected))
            assert ours == pytest.approx(theirs, abs=1e-6)
        elif name != "run_id":
            assert found[name].to_pylist() == expected[name].to_pylist()


def test_the_values_of_the_test_are_of_many_kinds(plain):
    """So that a file that changed something would be seen."""
    rows = plain[1]
    assert len(set(rows["label"].to_pylist())) > 2  # two labels and null
    assert len({round(score, 4) for score in rows["score"].drop_null().to_pylist()}) > 100
    assert rows["error"].drop_null().to_pylist()

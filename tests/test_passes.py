"""What test_pipeline.py and test_kill.py do not reach: rows that end the process which has them."""

import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

import hfbatch
from hfbatch.errors import Incomplete
from tests.harm import harmful
from tests.models import sentences


@pytest.fixture
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def harmful_job(tmp_path, write_parquet, job_for, texts, **model):
    path = write_parquet("in.parquet", {"row": list(range(len(texts))), "text": texts})
    job = job_for("text-classification", harmful(tmp_path / "model", **model), path)
    job["model"]["trust_remote_code"] = True
    return {**job, "errors": {"max_failed_fraction": 0.5}}


def result_of(tmp_path):
    return pq.read_table(tmp_path / "out" / "data").sort_by("row")


@pytest.mark.slow
def test_rows_that_end_the_models_process_cost_themselves_and_no_other_row(local_ray, tmp_path, write_parquet, job_for):
    """One kills the process, one loses the device, one leaves it, one has no finite result; in shards of 20 rows."""
    texts = sentences(100, seed=11, longest=20)
    bad = {25: "x", 47: "j", 66: "q", 70: "y"}
    for row, word in bad.items():
        texts[row] = f"good {word}"
    job = harmful_job(tmp_path, write_parquet, job_for, texts)
    report = hfbatch.run(job, on={"shard_rows": 20}, trust_remote_code=True)
    made = result_of(tmp_path)
    assert made["row"].to_pylist() == list(range(100))
    assert {row: error for row, error in enumerate(made["error"].to_pylist()) if error is not None} == {
        25: "crashed_worker: exited with 3",
        47: "crashed_worker: CUDA error: device-side assert triggered",
        66: "crashed_worker: exited with 4",
        70: "non_finite: the model's result has NaN or infinite values",
    }
    assert (report.outcome, report.rows, report.rows_failed) == ("success", 100, 4)
    for row in bad:
        texts[row] = "good"
    harmless = harmful_job(tmp_path / "harmless", write_parquet, job_for, texts)
    harmless["output"]["path"] = str(tmp_path / "harmless" / "out")
    hfbatch.run(harmless, on={"shard_rows": 20}, trust_remote_code=True)
    expected, others = result_of(tmp_path / "harmless"), np.setdiff1d(np.arange(100), list(bad))
    assert made["label"].take(others).equals(expected["label"].take(others))
    assert np.allclose(made["score"].to_numpy()[others], expected["score"].to_numpy()[others], atol=1e-5)


@pytest.mark.slow
def test_a_step_of_cpu_tasks_that_leaves_its_process_does_not_hang_the_run(local_ray, tmp_path, write_parquet, job_for):
    texts = sentences(60, seed=12)
    texts[30] = "good q"
    job = harmful_job(tmp_path, write_parquet, job_for, texts, tokenizer=True)
    with pytest.raises(Incomplete, match=r"1 of 3 shards are not committed; step preprocess: SystemExit: 4"):
        hfbatch.run(job, on={"shard_rows": 20, "cpu_steps": "tasks"}, trust_remote_code=True)
    assert result_of(tmp_path)["row"].to_pylist() == [*range(20), *range(40, 60)]

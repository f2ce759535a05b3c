"""What test_pipeline.py and test_kill.py do not reach: a Ray that has, or says it has, a GPU."""

import pytest
import ray
import torch

import hfbatch
from hfbatch.errors import SystemicError


def test_a_gpu_that_torch_cannot_use_is_an_error_not_a_reason_for_the_cpu(classifier, write_parquet, job_for):
    """Ray is told of a GPU that is not there: the way to a GPU actor is Ray's own, up to the model."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": ["good"]}))
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(SystemicError, match=r"torch .* cannot use one; install a CUDA build"):
            hfbatch.run(job)
    finally:
        ray.shutdown()

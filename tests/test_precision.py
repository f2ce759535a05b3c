"""Float32 where half precision is too little: the heads of models."""

import numpy as np
import pytest
import torch

from tests.inline import plan_of, run_inline
from tests.models import bert, sentences


@pytest.fixture
def job(classifier, write_parquet, job_for):
    made = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": sentences(200)}), top_k=None)
    made["model"]["dtype"] = "bfloat16"
    return made


def dtypes(module):
    return {parameter.dtype for parameter in module.parameters()}


def loaded(job):
    from hfbatch.model import Predict

    plan = plan_of(job)
    return Predict(plan.job.step, plan.machine, 1, gpu=False).engine.model


def test_a_head_computes_in_float32_and_the_rest_as_asked(job):
    model = loaded(job)
    assert (dtypes(model.bert), dtypes(model.classifier)) == ({torch.bfloat16}, {torch.float32})


def test_scores_have_more_than_the_digits_of_half_precision(job):
    scores = [entry["score"] for row in run_inline(plan_of(job))["labels"].to_pylist() for entry in row]
    halves = torch.tensor(scores).bfloat16().float().numpy()
    assert np.mean(np.array(scores, dtype=np.float32) == halves) < 0.1
    job["model"]["dtype"] = "float32"
    exact = [entry["score"] for row in run_inline(plan_of(job))["labels"].to_pylist() for entry in row]
    assert np.abs(np.sort(exact) - np.sort(scores)).max() < 0.05


def test_a_head_with_the_base_models_own_weights_is_left_as_it_is(masked, write_parquet, job_for):
    job = job_for("fill-mask", masked, write_parquet("in.parquet", {"text": ["the [MASK] film"]}))
    job["model"]["dtype"] = "bfloat16"
    assert dtypes(loaded(job)) == {torch.bfloat16}


def test_shared_weights_are_not_widened(tmp_path):
    from transformers import AutoModelForMaskedLM

    from hfbatch.precision import widen_heads

    model = AutoModelForMaskedLM.from_pretrained(bert(tmp_path / "m", "BertForMaskedLM"), dtype=torch.bfloat16)
    widen_heads(model)
    assert dtypes(model) == {torch.bfloat16}

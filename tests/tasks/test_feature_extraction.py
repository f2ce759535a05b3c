import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from tests.inline import plan_of, run_inline
from tests.models import HIDDEN, sentences
from tests.tasks.contract import Case, assert_close, check

TEXTS = [*sentences(40), "", "naïve café 電影 ☃"]


def test_every_tokens_vector_equals_transformers_pipeline(encoder, tmp_path):
    output = check(Case("feature-extraction", encoder, {"text": TEXTS}), tmp_path)
    reference = pipeline("feature-extraction", model=str(encoder), device="cpu")
    for made, text in zip(output["embedding"].to_pylist(), TEXTS, strict=True):
        assert_close(made, reference(text, tokenize_kwargs={"truncation": True, "max_length": 64})[0])


def reference_vectors(model, texts, pooling):
    """One text at a time: no batch, no padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    vectors = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=64))[0][0]
        vectors.append({"mean": hidden.mean(0), "cls": hidden[0], "last_token": hidden[-1]}[pooling].numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last_token"])
def test_pooled_vectors_equal_the_model_called_alone(encoder, tmp_path, pooling):
    output = check(Case("feature-extraction", encoder, {"text": TEXTS}, {"pooling": pooling}), tmp_path)
    assert output.schema.field("embedding").type == pa.list_(pa.field("item", pa.float32(), False), HIDDEN)
    made = np.array(output["embedding"].to_pylist())
    assert np.abs(made - reference_vectors(encoder, TEXTS, pooling)).max() < 1e-4


def test_dimensions_are_cut_before_the_length_becomes_one(encoder, tmp_path):
    params = {"pooling": "mean", "truncate_dim": 8, "normalize": True}
    output = check(Case("feature-extraction", encoder, {"text": TEXTS}, params), tmp_path)
    expected = reference_vectors(encoder, TEXTS, "mean")[:, :8]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    made = np.array(output["embedding"].to_pylist())
    assert made.shape == (len(TEXTS), 8)
    assert np.abs(made - expected).max() < 1e-4


def test_half_precision_stays_close_to_float32(encoder, tmp_path, write_parquet, job_for):
    job = job_for(
        "feature-extraction", encoder, write_parquet("in.parquet", {"text": TEXTS}), pooling="mean", normalize=True
    )
    full = np.array(run_inline(plan_of(job))["embedding"].to_pylist())
    job["model"]["dtype"] = "bfloat16"
    half = np.array(run_inline(plan_of(job))["embedding"].to_pylist())
    assert half.dtype == full.dtype
    assert ((full * half).sum(axis=1) > 0.99).all()


def test_minilm_embeds_real_text_as_plain_transformers_does(minilm, tmp_path):
    texts = [
        "New drug lowers the risk of stroke.",
        "Flu season is here: get your shot!",
        "RT @user: 5 tips http://t.co/x",
    ]
    params = {"pooling": "mean", "normalize": True}
    output = check(Case("feature-extraction", minilm, {"text": texts}, params), tmp_path)
    expected = reference_vectors(minilm, texts, "mean")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert ((np.array(output["embedding"].to_pylist()) * expected).sum(axis=1) > 0.9999).all()

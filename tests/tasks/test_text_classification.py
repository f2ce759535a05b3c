import pytest
from transformers import pipeline

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.models import bert, sentences
from tests.tasks.contract import Case, assert_close, check

TEXTS = [*sentences(60), "", "naïve café 電影 ☃", "good [MASK] bad", "x" * 300]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": None},
        {"top_k": 2, "function_to_apply": "sigmoid"},
        {"top_k": 9, "function_to_apply": "none"},
        {"function_to_apply": "softmax"},
    ],
    ids=str,
)
def test_values_equal_transformers_pipeline(classifier, tmp_path, params):
    output = check(Case("text-classification", classifier, {"text": TEXTS}, params), tmp_path)
    reference = pipeline("text-classification", model=str(classifier), device="cpu")
    asked = {"top_k": 1, **params}
    expected = [reference(text, truncation=True, max_length=64, **asked) for text in TEXTS]
    if asked["top_k"] == 1:
        made = [[{"label": r["label"], "score": r["score"]}] for r in output.to_pylist()]
    else:
        made = output["labels"].to_pylist()
    assert_close(made, expected)
    assert len({row[0]["label"] for row in expected}) > 1, "a model that always says the same tests nothing"


@pytest.mark.parametrize("config", [{"num_labels": 1}, {"problem_type": "multi_label_classification", "num_labels": 3}])
def test_the_default_function_is_the_checkpoints_own(tmp_path, config):
    model = bert(tmp_path / "model", **config)
    output = check(Case("sentiment-analysis", model, {"text": TEXTS[:8]}), tmp_path)
    reference = pipeline("text-classification", model=str(model), device="cpu")
    expected = [reference(text, truncation=True, max_length=64)[0]["score"] for text in TEXTS[:8]]
    assert_close(output["score"].to_pylist(), expected)


def test_a_pair_of_texts_is_one_sequence(classifier, tmp_path, write_parquet, job_for):
    left, right = sentences(12, seed=1), sentences(12, seed=2)
    path = write_parquet("in.parquet", {"premise": left, "hypothesis": right})
    job = job_for("text-classification", classifier, path)
    job["input"]["columns"] = {"text": "premise", "text_pair": "hypothesis"}
    output = run_inline(plan_of(job))
    reference = pipeline("text-classification", model=str(classifier), device="cpu")
    expected = [reference({"text": one, "text_pair": two}) for one, two in zip(left, right, strict=True)]
    assert_close(output["score"].to_pylist(), [row["score"] for row in expected])


def test_a_text_over_the_limit_is_cut_and_says_so_or_is_an_error(classifier, write_parquet, job_for):
    path = write_parquet("in.parquet", {"text": ["good " * 200, "good"]})
    output = run_inline(plan_of(job_for("text-classification", classifier, path)))
    assert output["truncated"].to_pylist() == [True, False]
    strict = run_inline(plan_of(job_for("text-classification", classifier, path, truncation=False)))
    assert strict["error"].to_pylist() == ["too_long: 202 tokens, the limit is 64", None]
    assert strict["label"].to_pylist()[0] is None
    assert strict["label"].to_pylist()[1] is not None


@pytest.mark.parametrize("params", [{}, {"top_k": 2, "function_to_apply": "none"}])
def test_a_long_text_is_read_in_windows_and_scored_by_their_mean(classifier, tmp_path, params):
    """Windows made by hand: 62 tokens of text between [CLS] and [SEP], each 10 before the end of the last."""
    texts = ["good", " ".join(sentences(30, seed=2)), "bad film " * 80]
    output = check(Case("text-classification", classifier, {"text": texts}, {"stride": 10, **params}), tmp_path)
    assert output["truncated"].to_pylist() == [False] * 3
    reference = pipeline("text-classification", model=str(classifier), device="cpu", **{**params, "top_k": None})
    for text, row in zip(texts, output.to_pylist(), strict=True):
        words, sums = text.split(), {}
        parts = [" ".join(words[start : start + 62]) for start in range(0, max(1, len(words) - 10), 52)]
        for part in parts:
            for found in reference([part])[0]:
                sums[found["label"]] = sums.get(found["label"], 0) + found["score"] / len(parts)
        best = sorted(sums.items(), key=lambda item: -item[1])
        made = row.get("labels", [row])
        assert [one["label"] for one in made] == [label for label, _ in best[: len(made)]]
        assert_close([one["score"] for one in made], [score for _, score in best[: len(made)]])
        assert len(parts) > 1 or text == "good"


def test_windows_of_a_pair_and_a_stride_as_long_as_a_window_are_refused(classifier, write_parquet, job_for):
    path = write_parquet("in.parquet", {"text": ["good"], "other": ["bad"]})
    with pytest.raises(SpecError, match="stride is 62, and a window holds 62 tokens of text; write less"):
        plan_of(job_for("text-classification", classifier, path, stride=62))
    job = job_for("text-classification", classifier, path, stride=8)
    job["input"]["columns"] = {"text_pair": "other"}
    with pytest.raises(SpecError, match="leave stride or text_pair out"):
        plan_of(job)

import json

import pytest
from transformers import pipeline

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.models import bert, sentences
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import text as zoo

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


def test_the_most_that_a_row_may_take_counts_every_label(tmp_path):
    labels = {number: f"{number:03} " + "label " * 9 for number in range(200)}
    model = bert(tmp_path / "model", id2label=labels, label2id={name: number for number, name in labels.items()})
    for params, least in (({}, 0), ({"top_k": None}, 10_000)):
        plan = plan_of(Case("text-classification", model, {"text": ["good"]}, params).job(tmp_path))
        column = run_inline(plan)["labels" if params else "label"]
        assert least < column.nbytes < plan.job.step.make_task().max_bytes_per_row()


def test_a_text_beside_an_empty_one_stands_alone(classifier, tmp_path):
    rows = {"text": ["good film", "", "bad " * 70, "good"], "text_pair": ["", "plot", "", "bad day"]}
    output = check(Case("text-classification", classifier, rows), tmp_path)
    reference = pipeline("text-classification", model=str(classifier), device="cpu")
    pairs = [dict(zip(rows, pair, strict=True)) for pair in zip(*rows.values(), strict=True)]
    expected = [reference(pair, truncation=True, max_length=64)["score"] for pair in pairs]
    assert_close(output["score"].to_pylist(), expected)


@pytest.mark.parametrize(("pad", "told"), [(None, {}), (None, {"pad_token_id": 5}), ("<pad>", {"pad_token_id": 5})])
def test_a_decoder_is_filled_up_with_what_its_config_takes_for_padding(tmp_path, pad, told):
    """It finds the end of a text by that token, so a text may end in any other."""
    model = zoo.llama(tmp_path / "model", "LlamaForSequenceClassification", num_labels=3, **told)
    for name, own in (("tokenizer_config.json", {"pad_token": pad}), ("config.json", {"pad_token_id": None, **told})):
        (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | own))
    texts = [*sentences(12, seed=5), "good <s>", "good <pad>", "!", "bad 😀 שלום"]
    output = check(Case("text-classification", model, {"text": texts}), tmp_path)
    reference = pipeline("text-classification", model=str(model), device="cpu")
    assert_close(output["score"].to_pylist(), [reference(text)[0]["score"] for text in texts])


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

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hfbatch.errors import SpecError
from hfbatch.load import load_job
from tests.inline import plan_of, run_inline
from tests.models import sentences
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import text as zoo

TASK = "zero-shot-classification"
LABELS = ["good acting", "plot", "rain and sun", "x"]
TEXTS = [
    *sentences(12),
    *("a", "naïve café 電影 ☃", "🙂 the good 🌧️", "שלום עולם the movie", "[MASK] </s> [SEP] good"),
    *("good " * count for count in (*range(40, 56), 6400)),  # around the limit for one label or another, and 100 times
]
FAMILIES = {
    "bert": {"contradiction": 0, "neutral": 1, "entailment": 2},
    "deberta_v2": {"ENTAILMENT": 0, "NEUTRAL": 1, "CONTRADICTION": 2},
    "roberta": {"entailed": 0, "not entailed": 1},
}


def checkpoint(folder, family="bert", labels=None):
    labels = FAMILIES[family] if labels is None else labels
    return getattr(zoo, family)(folder, label2id=labels, id2label={i: name for name, i in labels.items()})


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("nli"))


def reference(model, texts, labels, **asked):
    classify = pipeline(TASK, model=str(model), device="cpu")
    found = [classify(text, candidate_labels=labels, **asked) for text in texts]
    return [{name: row[name] for name in ("labels", "scores")} for row in found]


def made_of(output):
    return output.select(["labels", "scores"]).to_pylist()


@pytest.mark.parametrize(
    ("family", "params"),
    [
        ("bert", {}),
        ("deberta_v2", {"multi_label": True, "hypothesis_template": "the {} was great"}),
        ("roberta", {"multi_label": True}),
        ("roberta", {"hypothesis_template": "the {} was great"}),
    ],
)
def test_values_equal_transformers_pipeline(tmp_path, family, params):
    nli = checkpoint(tmp_path / "model", family)
    output = check(Case(TASK, nli, {"text": TEXTS}, {"candidate_labels": LABELS, **params}), tmp_path)
    expected = reference(nli, TEXTS, LABELS, **params)
    assert_close(made_of(output), expected)
    assert len({tuple(row["labels"]) for row in expected}) > 2, "labels that never change places test nothing"
    assert {True, False} == set(output["truncated"].to_pylist())


def test_an_empty_text_is_judged_by_its_hypotheses_alone(bert, tmp_path):
    output = run_inline(plan_of(Case(TASK, bert, {"text": [""]}, {"candidate_labels": LABELS}).job(tmp_path)))
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModelForSequenceClassification.from_pretrained(bert)
    pairs = tokenizer([["", f"This example is {label}."] for label in LABELS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**pairs).logits[:, 2].softmax(dim=0).numpy()
    best = np.argsort(-scores)
    assert output["labels"][0].as_py() == [LABELS[i] for i in best]
    assert_close(output["scores"][0].as_py(), scores[best].tolist())


def test_a_row_may_have_its_own_labels(bert, tmp_path):
    rows = {
        "text": TEXTS[:6],
        "candidate_labels": [["plot", "x"], ["good"], LABELS, ["night", "night"], [], ["a", None]],
    }
    output = run_inline(plan_of(Case(TASK, bert, rows).job(tmp_path)))
    expected = [reference(bert, [text], own)[0] for text, own in list(zip(*rows.values(), strict=True))[:4]]
    assert_close(made_of(output)[:4], expected)
    assert output["error"].to_pylist()[4:] == [
        "empty_input: candidate_labels is an empty list",
        "null_input: candidate_labels[1] is null",
    ]
    assert made_of(output)[4:] == [{"labels": None, "scores": None}] * 2


def test_rows_with_labels_of_their_own_keep_the_contract(bert, tmp_path):
    rows = {"text": TEXTS[:9], "candidate_labels": [LABELS[: 1 + i % 4] for i in range(9)]}
    assert check(Case(TASK, bert, rows), tmp_path)["error"].null_count == 9


@pytest.mark.parametrize("one", ["plot", ["plot"], " plot ,", ["plot, x"]], ids=str)
def test_labels_are_split_at_commas_as_transformers_does_it(bert, tmp_path, one):
    output = run_inline(plan_of(Case(TASK, bert, {"text": TEXTS[:3]}, {"candidate_labels": one}).job(tmp_path)))
    assert_close(made_of(output), reference(bert, TEXTS[:3], one))


def test_a_text_over_the_limit_is_an_error_where_it_may_not_be_cut(bert, tmp_path):
    params = {"candidate_labels": ["plot", "good acting"], "hypothesis_template": "the {} was", "truncation": False}
    rows = {"text": ["good " * 58, "good " * 57, "good " * 6400]}
    output = run_inline(plan_of(Case(TASK, bert, rows, params).job(tmp_path)))
    assert output["error"].to_pylist() == [
        "too_long: 65 tokens, the limit is 64",
        None,
        "too_long: over 826 tokens, the limit is 64",
    ]


def test_a_label_that_leaves_no_room_for_the_text_is_an_error(bert, tmp_path):
    rows = {"text": ["good movie"] * 3, "candidate_labels": [["plot", "good " * count] for count in (60, 61, 99)]}
    output = run_inline(plan_of(Case(TASK, bert, rows, {"hypothesis_template": "{}"}).job(tmp_path)))
    assert output["error"].to_pylist() == [
        None,
        "too_long: 64 tokens beside the text leave it no room, the limit is 64",
        "too_long: 102 tokens beside the text leave it no room, the limit is 64",
    ]


@pytest.mark.parametrize(
    ("params", "columns", "said"),
    [
        ({}, {}, "input.columns: there are no labels: write them under params"),
        ({"candidate_labels": ["a"]}, {"candidate_labels": "own"}, "candidate_labels is under params too"),
        ({}, {"candidate_labels": "text"}, "column 'text' is string, zero-shot-classification reads list of texts"),
        ({"candidate_labels": ["a"], "max_length": 4}, {}, "4 tokens are too few for two texts; write 5 or more"),
    ],
)
def test_what_cannot_work_is_refused_at_plan_time(bert, tmp_path, params, columns, said):
    job = Case(TASK, bert, {"text": ["good"]}, params, types={"own": pa.list_(pa.string())}).job(tmp_path)
    job["input"]["columns"] = columns
    with pytest.raises(SpecError) as caught:
        plan_of(job)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"candidate_labels": []}, "params.candidate_labels: no label is named"),
        ({"candidate_labels": " , "}, "params.candidate_labels: no label is named"),
        *(
            ({"hypothesis_template": written}, "params.hypothesis_template: it has no place for the label")
            for written in ("This is it.", "{{}}", "{label}", "{} {}", "{", "{0.x}")
        ),
    ],
    ids=str,
)
def test_bad_parameters_are_refused_before_anything_is_read(bert, tmp_path, params, said):
    with pytest.raises(SpecError) as caught:
        load_job(Case(TASK, bert, {"text": ["good"]}, params).job(tmp_path))
    assert said in str(caught.value)


@pytest.mark.parametrize("labels", [{"negative": 0, "positive": 1}, {"entailment": 0}], ids=str)
def test_a_model_that_knows_no_entailment_is_refused(tmp_path, labels):
    model = checkpoint(tmp_path / "model", labels=labels)
    with pytest.raises(SpecError, match="this task takes a model trained on NLI, with 'entailment'"):
        plan_of(Case(TASK, model, {"text": ["good"]}, {"candidate_labels": "a"}).job(tmp_path))


def test_a_model_whose_labels_have_no_numbers_is_refused(tmp_path):
    model = checkpoint(tmp_path / "model", labels={"contradiction": 0, "entailment": 1})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "label2id": None}))
    with pytest.raises(SpecError, match="its labels are not named; this task takes a model trained on NLI"):
        plan_of(Case(TASK, model, {"text": ["good"]}, {"candidate_labels": "a"}).job(tmp_path))

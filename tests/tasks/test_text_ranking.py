import json
import shutil

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.models import sentences
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import text as zoo

TASK = "text-ranking"
TEXTS = [
    *sentences(12),
    *("", "a", "naïve café 電影 ☃", "🙂 the good 🌧️", "שלום עולם the movie", "[MASK] </s> [SEP] good"),
    *("good " * count for count in (*range(52, 62), 6400)),  # around the limit, and 100 times as long
]
QUERIES = [*sentences(len(TEXTS) - 2, seed=1, longest=9), "bad " * 70, "good bad " * 90]
LISTS = pa.list_(pa.string())


@pytest.fixture(scope="module", params=["bert", "modernbert", "xlm_roberta"])
def ranker(request, tmp_path_factory):
    return getattr(zoo, request.param)(tmp_path_factory.mktemp(request.param), num_labels=1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return zoo.bert(tmp_path_factory.mktemp("ranker"), num_labels=1)


def reference(model, queries, texts, activation=torch.sigmoid):
    """What sentence-transformers' CrossEncoder.predict computes."""
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model)
    limit, scores = 64, []
    with torch.inference_mode():
        for query, text in zip(queries, texts, strict=True):
            inputs = tokenizer([[query, text]], truncation=True, max_length=limit, return_tensors="pt")
            scores.append(activation(loaded(**inputs).logits)[0, 0].item())
    return scores


def test_values_equal_a_cross_encoders(ranker, tmp_path):
    output = check(Case(TASK, ranker, {"query": QUERIES, "text": TEXTS}), tmp_path)
    expected = reference(ranker, QUERIES, TEXTS)
    assert_close(output["score"].to_pylist(), expected)
    assert len({round(score, 3) for score in expected}) > 10, "scores that are all alike test nothing"
    assert {True, False} == set(output["truncated"].to_pylist())


def test_a_list_of_texts_is_scored_in_its_order(bert, tmp_path):
    lists = [TEXTS[:1], TEXTS[1:20], TEXTS[20:24], TEXTS[24:]]
    case = Case(TASK, bert, {"query": QUERIES[:4], "text": lists}, types={"text": LISTS})
    output = check(case, tmp_path)
    for query, texts, scores in zip(QUERIES, lists, output["scores"].to_pylist(), strict=False):
        assert_close(scores, reference(bert, [query] * len(texts), texts))


def test_a_list_without_texts_or_with_a_null_is_an_error(bert, tmp_path):
    rows = {"query": ["good"] * 3, "text": [[], ["plot", None], ["plot"]]}
    output = run_inline(plan_of(Case(TASK, bert, rows, types={"text": LISTS}).job(tmp_path)))
    assert output["error"].to_pylist() == ["empty_input: text is an empty list", "null_input: text[1] is null", None]
    assert [scores is None for scores in output["scores"].to_pylist()] == [True, True, False]


@pytest.mark.parametrize(
    ("told", "params", "activation"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, {}, torch.nn.Identity()),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, {}, torch.nn.Identity()),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, {}, torch.sigmoid),
        ({"sentence_transformers": {"version": "5.0"}}, {"function_to_apply": "none"}, torch.nn.Identity()),
        ({"sentence_transformers": {"activation_fn": "my.Own"}}, {"function_to_apply": "sigmoid"}, torch.sigmoid),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_function_is_the_one_the_checkpoint_names_or_the_job(bert, tmp_path, told, params, activation):
    model = configured(bert, tmp_path / "model", told)
    output = run_inline(plan_of(Case(TASK, model, {"query": QUERIES[:4], "text": TEXTS[:4]}, params).job(tmp_path)))
    assert_close(output["score"].to_pylist(), reference(bert, QUERIES[:4], TEXTS[:4], activation))


def configured(model, folder, told):
    """A copy of a checkpoint whose config says more."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | told))
    return folder


def test_an_activation_of_its_own_is_refused(bert, tmp_path):
    model = configured(bert, tmp_path / "model", {"sentence_transformers": {"activation_fn": "my.Own"}})
    with pytest.raises(SpecError, match=r"'my\.Own'; write params\.function_to_apply: none or sigmoid"):
        plan_of(Case(TASK, model, {"query": ["a"], "text": ["b"]}).job(tmp_path))


def test_models_that_do_not_rank_are_refused(tmp_path, classifier, encoder):
    for model, said in (
        (classifier, "it has 3 labels, and a cross-encoder that ranks has one"),
        (encoder, "BertModel"),
    ):
        with pytest.raises(SpecError, match=said):
            plan_of(Case(TASK, model, {"query": ["a"], "text": ["b"]}).job(tmp_path))


def test_a_model_that_writes_text_is_refused(tmp_path):
    with pytest.raises(SpecError, match="it is a Qwen2ForCausalLM, and this takes a Qwen2ForSequenceClassification"):
        plan_of(Case(TASK, zoo.qwen2(tmp_path / "model"), {"query": ["a"], "text": ["b"]}).job(tmp_path))


def test_a_pair_over_the_limit_is_an_error_where_it_may_not_be_cut(bert, tmp_path):
    rows = {"query": ["good"] * 3, "text": ["bad " * 60, "bad " * 61, "bad " * 6400]}
    output = run_inline(plan_of(Case(TASK, bert, rows, {"truncation": False}).job(tmp_path)))
    assert [error and error.split(",")[0] for error in output["error"].to_pylist()] == [
        None,
        "too_long: 65 tokens",
        "too_long: over 1028 tokens",
    ]

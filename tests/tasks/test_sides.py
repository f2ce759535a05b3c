"""Tokenizers that say to pad and to cut on the left, over odd rows, rows around the limit, and 100 times as long."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from transformers import pipeline

from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check_batches_change_nothing, predictions
from tests.zoo import text as zoo

ODD = ["a", "😀 good 🌧️", "שלום עולם the film", "naïve café 電影 ☃"]
AROUND = ["good " * count for count in (61, 62, 63)]  # 62 and two special tokens are the limit
TEXTS = [*ODD, *AROUND, "good bad film " * 2200]
CUT = {"truncation": True, "max_length": 64}
NLI = {"contradiction": 0, "neutral": 1, "entailment": 2}
LABELS = ["plot", "rain"]
FAMILIES = {"bert": ("Bert", "[MASK]"), "roberta": ("Roberta", "<mask>")}


@dataclass(frozen=True)
class Reference:
    head: str
    ask: Callable[[Any, str], dict]  # transformers' pipeline and a text -> the columns that the task writes
    pipeline: str | None = None  # its task, where that has another name
    rows: dict[str, str] = field(default_factory=lambda: {"text": "{}"})  # {} is the text, {mask} the mask
    params: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def entities(ner, text):
    return {"entities": [{**entity, "score": float(entity["score"])} for entity in ner(text)]}


def filled(fill, text):
    names = ("token_str", "token", "score", "sequence")
    return {"predictions": [{"mask": 0, **{name: row[name] for name in names}} for row in fill(text)]}


def judged(judge, text):
    found = judge(text, candidate_labels=LABELS)
    return {"labels": found["labels"], "scores": found["scores"]}


def ranked(classify, text):
    return {"score": classify({"text": "the plot", "text_pair": text}, function_to_apply="sigmoid", **CUT)["score"]}


TASKS = {
    "text-classification": Reference("ForSequenceClassification", lambda ask, text: ask(text, **CUT)[0]),
    "feature-extraction": Reference("Model", lambda ask, text: {"embedding": ask(text, tokenize_kwargs=CUT)[0]}),
    "token-classification": Reference("ForTokenClassification", entities, config={"num_labels": 3}),
    "fill-mask": Reference(
        "ForMaskedLM",
        lambda ask, text: filled(lambda one: ask(one, tokenizer_kwargs=CUT), text),
        rows={"text": "{}{mask}"},
    ),
    "zero-shot-classification": Reference(
        "ForSequenceClassification",
        judged,
        params={"candidate_labels": LABELS},
        config={"label2id": NLI, "id2label": {number: name for name, number in NLI.items()}},
    ),
    "text-ranking": Reference(
        "ForSequenceClassification",
        ranked,
        pipeline="text-classification",
        rows={"query": "the plot", "text": "{}"},
        config={"num_labels": 1},
    ),
}


def on_the_left(model):
    """The checkpoint, changed."""
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left", "truncation_side": "left"}))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_values_equal_transformers_pipeline(tmp_path, task, family):
    (name, mask), asked = FAMILIES[family], TASKS[task]
    model = on_the_left(getattr(zoo, family)(tmp_path / "model", name + asked.head, **asked.config))
    rows = {column: [form.format(text, mask=mask) for text in TEXTS] for column, form in asked.rows.items()}
    case = Case(task, model, rows, asked.params)
    output = run_inline(plan_of(case.job(tmp_path)))
    made = predictions(output, task, asked.params)
    reference = pipeline(asked.pipeline or task, model=str(model), device="cpu")
    expected = [asked.ask(reference, text) for text in rows["text"]]
    assert_close([{name: row[name] for name in one} for row, one in zip(made, expected, strict=True)], expected)
    assert {row["truncated"] for row in made} == {True, False}
    check_batches_change_nothing(case, tmp_path, output)


@pytest.mark.parametrize(
    ("task", "family", "column", "params"),
    [
        ("text-generation", "llama", "prompt", {"do_sample": False, "max_new_tokens": 6}),
        ("text-generation", "gpt2", "prompt", {"seed": 3, "max_new_tokens": 6}),
        ("summarization", "bart", "text", {"max_new_tokens": 6}),
        ("translation", "marian", "text", {"max_new_tokens": 6}),
    ],
)
def test_what_is_written_does_not_depend_on_a_tokenizers_side(tmp_path, task, family, column, params):
    """All but where a text is cut: a decoder's prompt loses its beginning in any case."""
    model = getattr(zoo, family)(tmp_path / "model")
    case = Case(task, model, {column: TEXTS[: None if column == "prompt" else len(ODD)]}, params)
    expected = run_inline(plan_of(case.job(tmp_path)))
    on_the_left(model)
    output = run_inline(plan_of(case.job(tmp_path)))
    assert predictions(output, task, params) == predictions(expected, task, params)
    check_batches_change_nothing(case, tmp_path, output)

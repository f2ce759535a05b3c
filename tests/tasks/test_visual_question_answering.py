import base64
import json
from pathlib import Path

import pyarrow as pa
import pytest

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check
from tests.tasks.image_rows import IMAGES
from tests.zoo import pictures, vision, vqa

TASK = "visual-question-answering"
RECORDS = json.loads((Path(__file__).parent.parent / "golden" / f"{TASK}.json").read_text())["records"]
QUESTIONS = ["is the dog red?", "what?", "", "x", "the 😀 river", "הנהר הוא", "what is the one two three river actor"]
ROWS = {"image": IMAGES[:7], "question": QUESTIONS}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"vilt": vqa.vilt(folder / "vilt"), "blip": vqa.blip(folder / "blip")}


def golden_rows(record):
    images = [base64.b64decode(each["image"]) for each in record["inputs"]]
    return {"image": images, "question": [each["question"] for each in record["inputs"]]}


@pytest.mark.parametrize("record", [r for r in RECORDS if r["kind"] == "vilt"], ids=lambda r: str(r["params"]))
def test_answers_and_scores_are_those_of_transformers_4(models, tmp_path, record):
    """Its top_k is 5 where none is given, and its one answer is a list."""
    params = {"top_k": 5, **record["params"]}
    made = run_inline(plan_of(Case(TASK, models["vilt"], golden_rows(record), params).job(tmp_path)))
    if params["top_k"] == 1:
        answers = [[{"answer": row["answer"], "score": row["score"]}] for row in made.to_pylist()]
    else:
        answers = made["answers"].to_pylist()
    assert_close(answers, record["expected"])


def test_written_answers_are_those_of_transformers_4(models, tmp_path):
    (record,) = [record for record in RECORDS if record["kind"] == "blip"]
    made = run_inline(plan_of(Case(TASK, models["blip"], golden_rows(record)).job(tmp_path)))
    assert made["answer"].to_pylist() == [answers[0]["answer"] for answers in record["expected"]]
    assert made["score"].null_count == len(made)


@pytest.mark.parametrize(
    ("kind", "params"),
    [("vilt", {}), ("vilt", {"top_k": 2}), ("vilt", {"top_k": None}), ("blip", {"max_new_tokens": 6, "num_beams": 2})],
    ids=str,
)
def test_the_contract_holds(models, tmp_path, kind, params):
    output = check(Case(TASK, models[kind], ROWS, params), tmp_path)
    answers = pa.list_(pa.struct([("answer", pa.string()), ("score", pa.float32())]))
    if params.get("top_k", 1) == 1:
        assert output.schema.field("answer").type == pa.string()
        assert output.schema.field("score").type == pa.float32()
    else:
        assert output.schema.field("answers").type == answers
        assert {len(row) for row in output["answers"].to_pylist()} == {params["top_k"] or 5}


def test_a_question_of_another_length_in_the_batch_changes_no_written_answer(models, tmp_path):
    """BLIP's decoder looks at the padding of a question."""
    questions = ["red", "is the dog red and is the river great?"]
    rows = {"image": [IMAGES[0]] * 4, "question": questions * 2}
    case = Case(TASK, models["blip"], rows, {"max_new_tokens": 8})
    together = run_inline(plan_of(case.job(tmp_path), max_batch_tokens=10**6))["answer"].to_pylist()
    alone = run_inline(plan_of(case.job(tmp_path), max_batch_rows=1))["answer"].to_pylist()
    assert together == alone


@pytest.mark.parametrize(("kind", "limit"), [("vilt", 40), ("blip", 40)])
def test_a_question_over_the_limit_is_cut_and_says_so_or_is_an_error(models, tmp_path, kind, limit):
    questions = [" ".join(["river"] * count) for count in (limit - 3, limit - 2, limit - 1, 100 * limit)]
    rows = {"image": [pictures.png()] * 4, "question": questions}
    params = {"max_new_tokens": 4} if kind == "blip" else {}
    made = run_inline(plan_of(Case(TASK, models[kind], rows, params).job(tmp_path)))
    assert made["error"].null_count == 4
    assert made["truncated"].to_pylist() == [False, False, True, True]
    strict = Case(TASK, models[kind], rows, {**params, "truncation": False})
    errors = run_inline(plan_of(strict.job(tmp_path)))["error"].to_pylist()
    assert errors[:3] == [None, None, f"too_long: {limit + 1} tokens, the limit is {limit}"]


def test_a_broken_image_is_the_error_of_its_row_alone(models, tmp_path):
    broken = pictures.broken_pictures()
    rows = {"image": [pictures.png(), *broken.values()], "question": ["what?"] * (1 + len(broken))}
    made = run_inline(plan_of(Case(TASK, models["vilt"], rows).job(tmp_path)))
    assert made["error"].is_valid().to_pylist() == [False, *[True] * len(broken)]
    assert made["answer"].is_valid().to_pylist() == [True, *[False] * len(broken)]


@pytest.mark.parametrize(
    ("kind", "params", "said"),
    [
        ("blip", {"top_k": 2}, "this model writes one answer"),
        ("vilt", {"num_beams": 2}, "for models that write: this one chooses"),
        ("blip", {"max_new_tokens": 999}, "positions for 319 new tokens"),
        ("vilt", {"top_k": 0}, "must be greater than 0, got 0"),
    ],
)
def test_what_cannot_be_done_is_refused_when_the_job_is_planned(models, tmp_path, kind, params, said):
    with pytest.raises(SpecError, match=said):
        plan_of(Case(TASK, models[kind], ROWS, params).job(tmp_path))


def test_other_heads_are_refused(tmp_path):
    captions = vqa.blip(tmp_path / "blip", "BlipForConditionalGeneration")
    with pytest.raises(SpecError, match="it is a BlipForConditionalGeneration, and this takes a BlipForQuestion"):
        plan_of(Case(TASK, captions, ROWS).job(tmp_path))
    with pytest.raises(SpecError, match="no AutoModelForVisualQuestionAnswering for models of type 'vit'"):
        plan_of(Case(TASK, vision.vit(tmp_path / "vit"), ROWS).job(tmp_path))

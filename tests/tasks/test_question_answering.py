import json
import shutil
from pathlib import Path

import pytest

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.models import sentences
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import text as zoo

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "question-answering.json").read_text())["records"]
KINDS = {record["kind"]: record["head"] for record in GOLDEN}
CONTEXT = "paris is a city and the river is great"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("readers")
    made = {r["kind"]: (r["head"], r["config"]) for r in GOLDEN}
    return {kind: getattr(zoo, kind)(root / kind, head, **config) for kind, (head, config) in made.items()}


def case_of(folder, rows, **params):
    columns = {name: [row[name] for row in rows] for name in ("question", "context")}
    return Case("question-answering", folder, columns, params)


def answers_of(output):
    """Each row's answers as 4.57 gave them: a list of dicts, for top_k 1 too."""
    names = ("answer", "score", "start", "end")
    return [row["answers"] if "answers" in row else [{name: row[name] for name in names}] for row in output.to_pylist()]


@pytest.mark.parametrize("record", GOLDEN, ids=lambda record: f"{record['kind']} {record['params']}")
def test_answers_equal_those_of_transformers_4(folders, tmp_path, record):
    """All but the spans of probability 0 with which 4.57 fills up its top_k, in an order of the machine's choice."""
    output = run_inline(plan_of(case_of(folders[record["kind"]], record["inputs"], **record["params"]).job(tmp_path)))
    compared = 0
    for made, error, expected in zip(answers_of(output), output["error"].to_pylist(), record["expected"], strict=True):
        if isinstance(expected, dict) and "error" in expected:
            continue
        expected = expected if isinstance(expected, list) else [expected]
        real = [answer for answer in expected if answer["score"] > 0] or expected[:1]
        assert error is None
        assert_close(made, real)
        compared += 1
    assert compared >= 11


def test_the_pipeline_of_4_was_asked_with_every_parameter():
    asked = {name for record in GOLDEN for name in record["params"]}
    assert asked >= {"top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "align_to_words"}
    assert len(KINDS) >= 3


@pytest.mark.parametrize("params", [{}, {"top_k": 3, "doc_stride": 10}])
def test_question_answering_keeps_the_contract(folders, tmp_path, params):
    contexts = [CONTEXT, " ".join(sentences(20, seed=4)), "Paris! paris; PARIS", "x"]
    rows = [{"question": "where is it?", "context": context} for context in contexts]
    output = check(case_of(folders["bert"], rows, **params), tmp_path)
    for context, answers in zip(contexts, answers_of(output), strict=True):
        assert all(context[one["start"] : one["end"]] == one["answer"] for one in answers)
    assert len(answers_of(output)[2]) == 1 + 2 * bool(params)


def test_an_empty_question_or_context_is_an_error(folders, tmp_path):
    rows = [
        {"question": "", "context": CONTEXT},
        {"question": "who?", "context": ""},
        {"question": "who?", "context": " "},
    ]
    output = run_inline(plan_of(case_of(folders["bert"], rows).job(tmp_path)))
    assert output["error"].to_pylist() == ["empty_input: question is empty", "empty_input: context is empty", None]
    assert answers_of(output)[2] == [{"answer": "", "score": 0.0, "start": 0, "end": 0}], "as 4.57 says it"


def test_a_question_without_room_for_the_context_is_cut_or_an_error(folders, tmp_path):
    """4.57 panics there; max_question_len means something only then, as it did."""
    rows = [
        {"question": "good bad " * 15, "context": "the film was good " * 30},
        {"question": "good " * 20, "context": "x"},
    ]
    cut = run_inline(plan_of(case_of(folders["bert"], rows, max_question_len=4).job(tmp_path)))
    assert cut["truncated"].to_pylist() == [True, False]
    short = [{"question": "good bad good bad", "context": rows[0]["context"]}]
    (tmp_path / "short").mkdir()
    expected = run_inline(plan_of(case_of(folders["bert"], short).job(tmp_path / "short")))
    assert_close(answers_of(cut)[:1], answers_of(expected))
    whole = run_inline(plan_of(case_of(folders["bert"], rows).job(tmp_path)))
    message = (
        "too_long: a question of 30 tokens leaves 15 of 48 for the context; set max_question_len or doc_stride lower"
    )
    assert whole["error"].to_pylist() == [message, None]


def test_an_answer_in_the_last_window_is_found(folders, tmp_path):
    """Repeating a window does not change what it holds: the same answer is told once, with its scores added up."""
    context = "the river of london " * 40
    output = run_inline(
        plan_of(case_of(folders["bert"], [{"question": "who?", "context": context}], top_k=50).job(tmp_path))
    )
    [answers] = answers_of(output)
    assert len({answer["answer"].lower() for answer in answers}) == len(answers) > 1
    assert max(answer["end"] for answer in answers) <= len(context)


def test_a_tokenizer_that_pads_on_the_left_takes_the_context_first(folders, tmp_path):
    """As in 4.57, which forgot there that an answer is no part of the question: no golden values."""
    model = shutil.copytree(folders["bert"], tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"padding_side": "left"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [{"question": "where is the river?", "context": " ".join(sentences(8, seed=5))}]
    made, other = (
        answers_of(run_inline(plan_of(case_of(folder, rows, top_k=9).job(tmp_path))))[0]
        for folder in (model, folders["bert"])
    )
    assert all(rows[0]["context"][one["start"] : one["end"]] == one["answer"] != "" for one in made)
    assert [one["score"] for one in made] != [one["score"] for one in other]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_seq_len": 49}, "max_seq_len is 49, and this model takes 48 tokens"),
        ({"doc_stride": 45}, "doc_stride is 45, and a window has 45 tokens; write less"),
        ({"max_seq_len": 3}, "doc_stride is 1, and a window has 0 tokens"),
        ({"top_k": 0}, "top_k"),
        ({"padding": True}, "padding"),
    ],
)
def test_settings_that_cannot_work_are_refused(folders, tmp_path, params, message):
    with pytest.raises(SpecError, match=message):
        plan_of(case_of(folders["bert"], [{"question": "a", "context": "b"}], **params).job(tmp_path))


def test_a_model_without_the_head_is_refused(classifier, tmp_path):
    with pytest.raises(SpecError, match="and this takes a BertForQuestionAnswering"):
        plan_of(case_of(classifier, [{"question": "a", "context": "b"}]).job(tmp_path))

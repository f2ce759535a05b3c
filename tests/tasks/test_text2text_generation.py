import pytest

from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, check
from tests.tasks.seq2seq import check_golden
from tests.zoo import text


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_texts_are_those_of_transformers_4(models, tmp_path, kind):
    assert check_golden("text2text-generation", "generated_text", kind, models, tmp_path) > 40


def test_the_contract_holds_for_greedy_text_and_a_stop_string(models, tmp_path):
    model, rows = text.t5(models / "own"), {"text": ["the city of paris", "x", "", "where is the river?"]}
    params = {"num_beams": 1, "max_new_tokens": 12}
    whole = check(Case("text2text-generation", model, rows, params), tmp_path)["generated_text"].to_pylist()
    stop = whole[0][2:4]
    case = Case("text2text-generation", model, rows, {**params, "stop": [stop, "\n"]})
    made = run_inline(plan_of(case.job(tmp_path)))["generated_text"].to_pylist()
    assert made == [each.split(stop)[0] for each in whole]


def test_t5_takes_any_length_unless_told_otherwise(models, tmp_path):
    """Its tokenizer says 64, which is what it was trained on; its relative positions know no end."""
    model, rows = text.t5(models / "long"), {"text": ["river " * 99]}
    for params, cut in (({}, False), ({"max_input_length": 64}, True)):
        asked = {"num_beams": 1, "max_new_tokens": 4, **params}
        output = run_inline(plan_of(Case("text2text-generation", model, rows, asked).job(tmp_path)))
        assert output["truncated"].to_pylist() == [cut]


def test_prefix_is_put_in_front(models, tmp_path):
    model, asked = text.t5(models / "prefix"), {"num_beams": 1, "max_new_tokens": 12}
    made = []
    for rows, params in (
        (["the river"], {"prefix": "summarize: "}),
        (["summarize: the river"], {}),
        (["the river"], {}),
    ):
        case = Case("text2text-generation", model, {"text": rows}, {**asked, **params})
        made.append(run_inline(plan_of(case.job(tmp_path)))["generated_text"].to_pylist())
    assert made[0] == made[1] != made[2]

import json

import pytest

from hfbatch import tasks
from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, check
from tests.tasks.seq2seq import check_golden
from tests.zoo import text

TEXTS = ["the city of paris", "x", "", "where is the river?"]
LANGUAGES = {"src_lang": "en_XX", "tgt_lang": "de_DE"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def mbart(models):
    return text.mbart(models / "mbart")


@pytest.fixture(scope="module")
def t5(models):
    return text.t5(models / "t5")


@pytest.mark.parametrize(
    ("task", "kind", "least"),
    [
        ("translation_en_to_de", "t5", 40),
        ("translation", "bart", 8),
        ("translation", "marian", 30),
        ("translation", "mbart", 16),
    ],
)
def test_translations_are_those_of_transformers_4(models, tmp_path, task, kind, least):
    assert check_golden(task, "translation_text", kind, models, tmp_path) >= least


def test_the_contract_holds_for_languages(mbart, tmp_path):
    check(Case("translation", mbart, {"text": TEXTS}, {**LANGUAGES, "max_new_tokens": 6}), tmp_path)


def test_languages_stand_in_the_name_or_in_params(t5, tmp_path):
    made, logged = [], []
    for name, params in (
        ("translation_en_to_de", {}),
        ("translation", {"src_lang": "en", "tgt_lang": "de"}),
        ("translation", {}),
    ):
        job = Case("translation", t5, {"text": TEXTS}, {**params, "max_new_tokens": 4}).job(tmp_path)
        output = run_inline(plan_of({**job, "task": name}))
        made.append(output["translation_text"].to_pylist())
        logged.append(json.loads(output["parameters"][0].as_py())["params"]["tgt_lang"])
    assert made[0] == made[1] == made[2]
    assert logged == ["de", "de", None]


def test_the_target_language_changes_the_text(mbart, tmp_path):
    made = []
    for target in ("de_DE", "fr_XX"):
        params = {**LANGUAGES, "tgt_lang": target, "max_new_tokens": 6}
        output = run_inline(plan_of(Case("translation", mbart, {"text": TEXTS}, params).job(tmp_path)))
        made.append(output["translation_text"].to_pylist())
    assert made[0] != made[1]


@pytest.mark.parametrize("name", ["translation_en_to_de", "translation_en_XX_to_de_DE", "translation_zh_cn_to_en"])
def test_a_name_that_fits_is_the_task(name):
    assert tasks.find(name).name == "translation"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "it knows many languages: write params.src_lang and params.tgt_lang"),
        ({"src_lang": "en_XX"}, "write params.src_lang and params.tgt_lang"),
        ({**LANGUAGES, "tgt_lang": "german"}, "params.tgt_lang: 'german' is none of its languages"),
        ({**LANGUAGES, "src_lang": "en"}, "params.src_lang: 'en' is none of its languages"),
    ],
)
def test_languages_that_are_missing_or_unknown_are_refused(mbart, tmp_path, params, said):
    with pytest.raises(SpecError, match=said):
        plan_of(Case("translation", mbart, {"text": TEXTS}, params).job(tmp_path))


def test_a_pair_that_the_checkpoint_was_not_trained_for_is_refused(t5, tmp_path):
    with pytest.raises(SpecError, match="it knows translation_en_to_de, not translation_en_to_ja"):
        plan_of({**Case("translation", t5, {"text": TEXTS}).job(tmp_path), "task": "translation_en_to_ja"})

import json
import shutil

import pytest

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.models import sentences
from tests.tasks.contract import Case, check
from tests.tasks.seq2seq import check_golden
from tests.zoo import text

TEXTS = [*sentences(5, seed=1, longest=12), "", "x", "the 😀 river שלום"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bart(models):
    return text.bart(models / "bart")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_summaries_are_those_of_transformers_4(models, bart, tmp_path, kind):
    assert check_golden("summarization", "summary_text", kind, models, tmp_path) > 40


def test_the_contract_holds_for_sampled_summaries(bart, tmp_path):
    """Beams are compared with 4.57 above; here noise must not depend on the batch."""
    params = {"do_sample": True, "num_beams": 1, "max_new_tokens": 8, "num_return_sequences": 2, "seed": 5}
    output = check(Case("summarization", bart, {"text": TEXTS}, params), tmp_path)
    texts = output["summary_text"].to_pylist()
    assert all(len(row) == 2 for row in texts)
    assert len({text for row in texts for text in row}) > len(TEXTS)


def test_a_text_over_the_positions_is_cut_and_says_so_or_is_an_error(bart, tmp_path):
    """62 characters and two special tokens are the 64 positions that the model has."""
    rows = {"text": ["x" * 61, "x" * 62, "x" * 63, "x" * 6400]}
    params = {"max_new_tokens": 4}
    output = run_inline(plan_of(Case("summarization", bart, rows, params).job(tmp_path)))
    assert output["truncated"].to_pylist() == [False, False, True, True]
    assert output["error"].null_count == 4
    made = output["summary_text"].to_pylist()
    assert made[1] == made[2] == made[3]
    strict = run_inline(plan_of(Case("summarization", bart, rows, {**params, "truncation": False}).job(tmp_path)))
    assert [bool(error) for error in strict["error"].to_pylist()] == [False, False, True, True]
    assert strict["error"][2].as_py() == "too_long: 65 tokens, the limit is 64"


def test_settings_that_stand_in_an_older_config_count(bart, tmp_path):
    """Checkpoints from before generation_config.json have them in config.json."""
    older, rows = tmp_path / "older", {"text": TEXTS}
    shutil.copytree(bart, older)
    settings = json.loads((older / "generation_config.json").read_text())
    config = json.loads((older / "config.json").read_text()) | settings
    (older / "config.json").write_text(json.dumps(config))
    (older / "generation_config.json").unlink()
    made = [run_inline(plan_of(Case("summarization", model, rows).job(tmp_path))) for model in (bart, older)]
    assert made[0]["summary_text"] == made[1]["summary_text"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"do_sample": True}, "do_sample and num_beams above 1 do not go together"),
        ({"num_return_sequences": 9}, "num_return_sequences 9 needs"),
        ({"stop": "x"}, "a beam search knows no stop strings: set num_beams: 1"),
        ({"max_new_tokens": 99}, "positions for 64 new tokens, not for 99"),
        ({"no_repeat_ngram_size": 1}, "set 2 or more"),
        ({"top_p": 1.5}, "must be at most 1, got 1.5"),
    ],
)
def test_what_cannot_be_done_is_refused_when_the_job_is_planned(bart, tmp_path, params, said):
    with pytest.raises(SpecError, match=said):
        plan_of(Case("summarization", bart, {"text": TEXTS}, params).job(tmp_path))


def test_a_decoder_has_no_weights_for_it(models, tmp_path):
    model = text.gpt2(models / "gpt2")
    with pytest.raises(SpecError, match="AutoModelForSeq2SeqLM"):
        plan_of(Case("summarization", model, {"text": TEXTS}).job(tmp_path))

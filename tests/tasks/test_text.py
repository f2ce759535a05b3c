from types import SimpleNamespace

import pytest
from transformers import AutoConfig, AutoTokenizer, pipeline

from hfbatch.tasks.text import TextParams, model_max_length, tokenise
from tests.models import sentences
from tests.tasks.contract import Case, assert_close, check


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        (512, {"model_type": "bert", "max_position_embeddings": 512}, 512),
        (10**30, {"model_type": "bert", "max_position_embeddings": 512}, 512),
        (128, {"model_type": "bert", "max_position_embeddings": 512}, 128),
        (10**30, {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        (10**30, {"model_type": "t5"}, None),
        (512, {"model_type": "t5"}, 512),
    ],
)
def test_the_models_own_limit(tokenizer, config, expected):
    assert model_max_length(SimpleNamespace(model_max_length=tokenizer), SimpleNamespace(**config)) == expected


def test_a_roberta_takes_texts_up_to_its_last_position(roberta, tmp_path):
    """30 tokens work, 32 would index past the position table; the tokenizer itself knows no limit."""
    texts = [*sentences(20, longest=12), "good " * 60]
    output = check(Case("text-classification", roberta, {"text": texts}), tmp_path)
    assert output["truncated"].to_pylist() == [False] * 20 + [True]
    reference = pipeline("text-classification", model=str(roberta), device="cpu")
    expected = [reference(text, truncation=True, max_length=30)[0]["score"] for text in texts]
    assert_close(output["score"].to_pylist(), expected)


def test_a_stored_truncation_and_padding_play_no_part(minilm):
    """MiniLM's tokenizer.json cuts at 128 and pads to it; the model takes 512."""
    from hfbatch.job import Source, load_task

    task = load_task("feature-extraction", {}, Source(str(minilm)))
    sequences = tokenise(task.tokenizer, task.config, TextParams(), ["word " * 300, "word"])
    assert sequences.ragged("input_ids").lengths.tolist() == [302, 3]
    assert sequences["truncated"].tolist() == [False, False]


def test_max_length_lowers_the_limit_and_never_raises_it(classifier):
    tokenizer, config = AutoTokenizer.from_pretrained(classifier), AutoConfig.from_pretrained(classifier)
    for asked, limit in ((16, 16), (1000, 64)):
        made = tokenise(tokenizer, config, TextParams(max_length=asked), ["good " * 200])
        assert made.ragged("input_ids").lengths.tolist() == [limit]
        assert made.ragged("input_ids").values[-1] == tokenizer.sep_token_id


def test_no_text_gives_no_sequence(classifier):
    tokenizer, config = AutoTokenizer.from_pretrained(classifier), AutoConfig.from_pretrained(classifier)
    assert len(tokenise(tokenizer, config, TextParams(), [])) == 0

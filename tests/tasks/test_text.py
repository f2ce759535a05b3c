from types import SimpleNamespace

import pytest
from transformers import AutoConfig, AutoTokenizer, pipeline

from hfbatch.tasks import text as text_module
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


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["classifier", "roberta", "minilm"])
def test_long_texts_are_cut_as_the_tokenizer_cuts_them(request, name, side):
    """Ids, types and special tokens, also where a text itself spells a special token or is longer by one."""
    folder = request.getfixturevalue(name)
    tokenizer, config = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoConfig))
    tokenizer.truncation_side = side
    word = tokenizer.sep_token
    texts = [" ".join(sentences(40, longest=12)), "good " * 29, "good " * 30 + word, f"{word} " * 90, "good " * 31, "x"]
    made = tokenise(tokenizer, config, TextParams(max_length=30), texts)
    expected = tokenizer(texts, truncation=True, max_length=30)
    assert [ids.tolist() for ids in made.ragged("input_ids")] == expected["input_ids"]
    if "token_type_ids" in made.columns:
        assert [types.tolist() for types in made.ragged("token_type_ids")] == expected["token_type_ids"]
    assert made["truncated"].tolist() == [True, True, True, True, True, False]


def test_texts_are_cut_by_a_tokenizer_that_does_it_another_way(minilm):
    """One that keeps no token of the text's end, but marks what it cut."""
    tokenizer, config = AutoTokenizer.from_pretrained(minilm), AutoConfig.from_pretrained(minilm)

    class Marking(type(tokenizer)):
        def __call__(self, *args, max_length=None, **options):
            made = super().__call__(*args, max_length=max_length, **options)
            if max_length is not None:
                made["input_ids"] = [[*ids[:-1], 103] if len(ids) == max_length else ids for ids in made["input_ids"]]
            return made

    tokenizer.__class__ = Marking
    made = tokenise(tokenizer, config, TextParams(max_length=8), ["good " * 20, "bad " * 20, "fine"])
    assert [int(ids[-1]) for ids in made.ragged("input_ids")] == [103, 103, tokenizer.sep_token_id]


def test_a_long_text_is_tokenised_once(minilm, monkeypatch):
    tokenizer, config = AutoTokenizer.from_pretrained(minilm), AutoConfig.from_pretrained(minilm)
    seen, encode = [], text_module._encode
    monkeypatch.setattr(text_module, "_encode", lambda *given: seen.extend(given[1]) or encode(*given))
    tokenise(tokenizer, config, TextParams(max_length=8), [f"{number} good " * 20 for number in range(50)])
    assert len(seen) == 51  # and one of them again, to see how it is cut

"""Texts far longer than the model takes: the same tokens as the whole text would give, without tokenising all of it."""

from __future__ import annotations

import random

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hfbatch.tasks import text
from hfbatch.tasks.text import TextParams, tokenise
from tests.models import WORDS, sentences

PIECES = [
    *WORDS,
    *[" ", " ", " ", "  ", "\n", "\t \n", "   \n\n", "\u00a0", "\u3000"],
    *[
        ".",
        ",",
        "!!",
        "'s",
        "'ll",
        "--",
        "(",
        "\u3002",
        "\u65e5\u672c\u8a9e",
        "na\u00efve",
        "e\u0301",
        "\u00df",
        "\u0130",
    ],
    *[
        "1234567",
        "3.14",
        "\U0001f642",
        "\U0001f468\u200d\U0001f469",
        "[MASK]",
        "<mask>",
        "[SEP]",
        "</s>",
        "\u202e",
        "\0",
    ],
]


@pytest.fixture(scope="module")
def unigram():
    """SentencePiece's way: spaces become signs, words are split before them."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(
        sentences(300), trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


@pytest.fixture(params=["classifier", "roberta", "minilm", "unigram"])
def tokenizer(request):
    found = request.getfixturevalue(request.param)
    return found if request.param == "unigram" else transformers.AutoTokenizer.from_pretrained(found)


@pytest.mark.parametrize("limit", [8, 30, 64])
def test_a_long_text_gives_the_first_tokens_that_the_whole_text_gives(tokenizer, limit, monkeypatch):
    monkeypatch.setattr(text, "_LONG", 16)
    rng, config = random.Random(limit), transformers.PretrainedConfig()
    texts = ["".join(rng.choices(PIECES, k=rng.choice([5, 60, 700]))) for _ in range(150)]
    texts += [rng.choice(PIECES) * 500 for _ in range(60)]
    made = tokenise(tokenizer, config, TextParams(max_length=limit), texts)
    right = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    rows = made.row.tolist()
    assert [made.ragged("input_ids")[i].tolist() for i in range(len(rows))] == [right[row] for row in rows]
    assert sorted({*rows, *made.errors}) == list(range(len(texts)))
    whole = tokenizer(texts)["input_ids"]
    assert made.columns["truncated"].tolist() == [len(whole[row]) > limit for row in rows]
    shortened = sum(len(text.beginning(tokenizer, one, limit)) < len(one) for one in texts)
    assert shortened > 20, "else this shows nothing"


def test_a_cell_of_100_megabytes_is_a_row_like_any_other(classifier):
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    config = transformers.PretrainedConfig()
    cells = ["good", "the movie was good " * 5_300_000, "a" * 100_000_000, "bad"]
    made = tokenise(tokenizer, config, TextParams(), cells)
    assert made.row.tolist() == [0, 1, 3]
    assert made.columns["truncated"].tolist() == [False, True, False]
    assert str(made.errors[2]) == "too_long: 100,000,000 characters with no word end to cut at"
    made = tokenise(tokenizer, config, TextParams(truncation=False), cells)
    assert str(made.errors[1]) == "too_long: over 865 tokens, the limit is 64"

"""What all tasks that generate share: noise, penalties, stop strings, and which setting counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.generation import logits_process as known

from hfbatch.tasks.generation import GenerationParams, Generator
from hfbatch.tasks.sampling import drawn, penalised, streams, uniform, warpers
from tests.zoo import text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(text.gpt2(tmp_path_factory.mktemp("models") / "gpt2"))


def generator(params, saved, tokenizer=None, **layers):
    tokenizer = tokenizer or SimpleNamespace(pad_token_id=None)
    checkpoint = SimpleNamespace(tokenizer=tokenizer, generation_config=GenerationConfig(**saved))
    return Generator(GenerationParams(**params), checkpoint, **layers)


def test_the_noise_of_a_text_depends_on_key_seed_number_and_step_alone():
    keys = np.array([7, 2**63, 0], dtype=np.uint64)
    whole = streams(keys, 3, 2)
    assert whole[2:4].tolist() == streams(keys[1:2], 3, 2).tolist()
    assert whole[::2].tolist() == streams(keys, 3, 1).tolist(), "more texts leave the first as it is"
    many = [streams(np.arange(50, dtype=np.uint64), seed, 3) for seed in (0, 1)]
    drawn_numbers = np.concatenate([uniform(each, step) for each in many for step in range(20)])
    assert len(np.unique(drawn_numbers)) == len(drawn_numbers)
    assert 0 < drawn_numbers.min() < 0.01
    assert 0.99 < drawn_numbers.max() < 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 4, "top_p": 0.9}],
    ids=str,
)
@pytest.mark.parametrize("tail", [0, 20], ids=lambda tail: f"{tail} unlikely tokens")
def test_tokens_are_drawn_as_often_as_softmax_says(settings, tail):
    """Pearson's statistic over 20,000 draws stays below its 99.9 % quantile; seed and keys are fixed."""
    rows, logits = 20_000, torch.tensor([0.0, 2.0, -1.0, 1.0, *[-20.0] * tail, -3.0, 1.5])
    scores = logits.repeat(rows, 1)
    for warper in warpers(settings):
        scores = warper(None, scores)
    expected = scores[0].softmax(dim=-1).numpy() * rows
    noise = streams(np.arange(rows, dtype=np.uint64), 11, 1)
    for step in range(3):
        ids = torch.zeros((rows, 4 + step), dtype=torch.int64)
        tokens = drawn(4, noise, settings)(ids, logits.repeat(rows, 1)).argmax(dim=-1)
        counts = torch.bincount(tokens, minlength=len(logits)).numpy()
        likely = expected > 5
        assert (counts[expected == 0] == 0).all()
        assert counts[~likely].sum() < 5
        assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 20.5


def test_what_narrows_the_distribution_does_so_in_the_order_of_transformers():
    settings = {"eta_cutoff": 0.1, "min_p": 0.1, "top_p": 0.9, "top_k": 4, "temperature": 0.7, "typical_p": 0.9}
    names = ("Temperature", "TopK", "TopP", "MinP", "Typical", "Eta")
    assert [type(each) for each in warpers(settings)] == [getattr(known, f"{name}LogitsWarper") for name in names]
    assert warpers({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}) == []


def test_penalties_count_what_was_generated_and_not_the_prompt():
    ids = torch.tensor([[3, 3, 1, 1, 2], [0, 0, 0, 0, 0]])
    made = penalised(2, presence=0.5, frequency=0.25)(ids, torch.zeros(2, 4))
    assert made.tolist() == [[0, -1.0, -0.75, 0], [-1.25, 0, 0, 0]]


@pytest.mark.parametrize("stop", ["river", "e river", " river is", "good\n", "é"])
def test_a_text_ends_before_the_first_stop_string_and_counts_the_tokens_up_to_it(tokenizer, stop):
    whole = "the river, the river is good\nand café"
    tokens = np.array(tokenizer(whole)["input_ids"])
    made = generator({"stop": ["never", stop]}, {}, tokenizer)._completion(tokens, False, None)
    assert made.text == whole.split(stop)[0]
    assert stop in tokenizer.decode(tokens[: made.tokens])
    assert stop not in tokenizer.decode(tokens[: made.tokens - 1])
    assert made.stopped


def test_a_special_token_can_be_a_stop_string(tokenizer):
    tokens = np.array(tokenizer("good<|endoftext|>bad")["input_ids"])
    made = generator({"stop": "<|endoftext|>"}, {}, tokenizer)._completion(tokens, False, None)
    assert (made.text, made.stopped) == ("good", True)


def test_params_beat_the_checkpoint_which_beats_the_pipelines_defaults():
    saved = {"num_beams": 2, "max_length": 30, "eos_token_id": [5, 6]}
    assert generator({}, saved, below={"max_new_tokens": 256}).settings["max_length"] == 30
    assert "max_new_tokens" not in generator({}, saved, below={"max_new_tokens": 256}).settings
    asked = generator({"max_new_tokens": 9}, saved, above={"num_beams": 4})
    assert asked.settings["max_new_tokens"] == 9
    assert "max_length" not in asked.settings
    assert asked.settings["num_beams"] == 4
    assert asked.ends == [5, 6]
    assert asked.settings["pad_token_id"] == 5, "a batch is filled up with something, and the mask hides it"


def test_what_only_a_default_asks_for_leaves_room_for_the_prompt():
    short, asked, total = (
        generator({}, {"max_new_tokens": 100}),
        generator({"max_new_tokens": 20}, {}),
        {"max_length": 50},
    )
    assert short.prompt_limit(64) == 32
    assert short.room(np.array([1, 32, 60]), 64).tolist() == [63, 32, 4]
    assert asked.prompt_limit(64) == 44
    assert asked.room(np.array([1, 44]), 64).tolist() == [20, 20]
    assert asked.prompt_limit(None) is None
    assert asked.room(np.array([10**6]), None).tolist() == [20]
    assert generator({}, total).room(np.array([1, 49]), 64).tolist() == [49, 1]
    with pytest.raises(ValueError, match="64 leaves no room for a prompt, the limit is 64 tokens"):
        generator({"max_new_tokens": 64}, {}).prompt_limit(64)


def test_temperature_0_is_the_likeliest_token():
    saved = {"do_sample": True, "temperature": 0.6}
    assert generator({}, saved).samples
    assert not generator({"temperature": 0}, saved).samples
    with pytest.raises(ValueError, match="leave out do_sample: true"):
        generator({"temperature": 0, "do_sample": True}, saved)


def test_several_texts_need_noise_or_beams():
    with pytest.raises(ValueError, match="num_return_sequences 2 needs do_sample: true, or num_beams"):
        generator({"num_return_sequences": 2}, {})
    assert generator({"num_return_sequences": 2, "num_beams": 2}, {}).texts == 2
    assert generator({"num_return_sequences": 2, "do_sample": True}, {}).texts == 2

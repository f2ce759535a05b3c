"""Rows that join and leave a running batch get what each gets alone, and what cannot be run so is said and not run."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from hfbatch.sequences import Ragged, Sequences
from hfbatch.tasks import decoders, decoding
from hfbatch.tasks.choosing import Row
from hfbatch.tasks.decoding import complete, shared_front, way_of
from hfbatch.tasks.generation import GenerationParams, Generator
from hfbatch.tasks.slots import Pass, Slots
from tests.zoo import text

HEADS = {
    **{"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "qwen2": "Qwen2ForCausalLM"},
    **{"bart": "BartForConditionalGeneration", "t5": "T5ForConditionalGeneration", "marian": "MarianMTModel"},
}
ROOM = 14
TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}

    def load(name, attention="sdpa"):
        if (name, attention) not in made:
            path = folder / name if (folder / name).exists() else getattr(text, name)(folder / name)
            head = getattr(transformers, HEADS[name])
            made[name, attention] = head.from_pretrained(path, attn_implementation=attention).eval()
        return made[name, attention]

    return load


class Rows:
    """Prompts as a batch; counts its steps."""

    def __init__(self, model, count=12, front=(), budget=120):
        rng = np.random.default_rng(3)
        self.lengths = rng.integers(1, 20, count)
        size = model.config.get_text_config(decoder=True).vocab_size
        self.prompts = [[*front, *rng.integers(4, size - 1, length).tolist()] for length in self.lengths]
        keys = np.arange(count, dtype=np.uint64) * np.uint64(2**40 + 1)
        columns = {"input_ids": Ragged.from_lists(self.prompts), "_key": keys}
        self.sequences, self.room, self.steps = Sequences(np.arange(count), columns), (budget, 128), 0
        self.wanted = rng.integers(1, ROOM + 1, count)

    def alive(self, finished):
        self.steps += 1

    def part(self, index):
        ids = [torch.tensor(self.prompts[number]) for number in index]
        mask = [torch.ones_like(each) for each in ids]
        padded = [torch.nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (ids, mask)]
        return SimpleNamespace(inputs={"input_ids": padded[0]}, mask=padded[1])


def generator_of(model, params=None, settings=None):
    saved = model.generation_config.to_diff_dict()
    named = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"}
    saved = {name: value for name, value in saved.items() if name in named} | (settings or {})
    checkpoint = SimpleNamespace(tokenizer=None, generation_config=transformers.GenerationConfig(**saved))
    params = {"max_new_tokens": ROOM, "do_sample": False, "seed": 5, **(params or {})}
    return Generator(GenerationParams(**params), checkpoint)


def texts_of(outputs):
    tokens, counts = outputs["tokens"].values.tolist(), outputs["token_counts"].reshape(-1).tolist()
    ends = np.cumsum([0, *counts])
    return [tokens[start:end] for start, end in pairwise(ends)], outputs["ended"].tolist()


def alone(generator, model, rows, room):
    """The same by model.generate, row by row."""
    texts, ended = [], []
    for number, prompt in enumerate(rows.prompts):
        inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.int64)}
        columns = 1 if model.config.is_encoder_decoder else len(prompt)
        limit = None if model.config.is_encoder_decoder else room[number : number + 1]
        made = generator(model, inputs, rows.sequences["_key"][number : number + 1], columns, limit)
        one = texts_of(made)
        texts, ended = [*texts, *one[0]], [*ended, *one[1]]
    return texts, ended


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_greedy_rows_that_come_and_go_are_those_of_generate_one_by_one(zoo, monkeypatch, name, attention):
    model = zoo(name, attention)
    rows, generator = Rows(model), generator_of(model)
    assert way_of(generator, model) is None
    running, join = [], decoding.Decoder.join
    monkeypatch.setattr(decoding.Decoder, "join", lambda own, new: running.append(len(own.rows)) or join(own, new))
    made = texts_of(complete(generator, model, rows, rows.wanted))
    assert made == alone(generator, model, rows, rows.wanted)
    assert len({len(each) for each in made[0]}) > 3
    assert max(running) > 0, "rows join beside others that are not at their end"


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        ({"repetition_penalty": 1.7}, {}),
        ({"no_repeat_ngram_size": 2}, {}),
        ({"min_new_tokens": 6}, {}),
        ({"presence_penalty": 1.5, "frequency_penalty": 0.5}, {}),
        ({}, {"bad_words_ids": [[228], [182, 397], [190]]}),
        ({}, {"suppress_tokens": [182, 190], "begin_suppress_tokens": [400, 103, 228]}),
        ({}, {"forced_eos_token_id": 7}),
        ({"do_sample": True, "temperature": 0.8}, {}),
        ({"do_sample": True, "top_p": 0.9, "num_return_sequences": 3, "repetition_penalty": 1.2}, {}),
    ],
    ids=str,
)
def test_what_changes_logits_does_so_as_for_each_row_alone(zoo, params, settings):
    model = zoo("gpt2")
    rows, generator = Rows(model, 8), generator_of(model, params, settings)
    room = np.maximum(rows.wanted, 6)  # transformers warns where fewer than the fewest fit
    assert way_of(generator, model) is None
    made = texts_of(complete(generator, model, rows, room))
    assert made == alone(generator, model, rows, room)
    assert made != texts_of(complete(generator_of(model), model, rows, room)), "it changes something"


@pytest.mark.parametrize("name", ["bart", "t5", "marian"])
@pytest.mark.parametrize(
    "settings", [{}, {"forced_bos_token_id": 5, "min_length": 5, "forced_eos_token_id": 6}], ids=str
)
def test_rows_of_an_encoder_decoder_leave_one_by_one_and_are_those_of_generate(zoo, name, settings):
    model = zoo(name)
    rows, generator = Rows(model), generator_of(model, {}, settings)
    assert way_of(generator, model) is None
    room = np.full(len(rows.prompts), ROOM)
    assert texts_of(complete(generator, model, rows, room)) == alone(generator, model, rows, room)


def test_a_beginning_that_all_prompts_share_is_computed_once(zoo):
    model, seen = zoo("llama"), []
    rows, generator = Rows(model, front=range(4, 44), budget=10**4), generator_of(model)
    hook = model.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    made = texts_of(complete(generator, model, rows, np.ones(12, dtype=np.int64)))
    hook.remove()
    assert seen[0] == 40
    assert sum(seen) <= 40 + 12 * max(rows.lengths)
    assert made == alone(generator, model, rows, np.ones(12, dtype=np.int64))


def test_a_shared_beginning_leaves_each_prompt_a_token_and_is_worth_a_pass():
    front = list(range(20))
    assert shared_front(Ragged.from_lists([front, [*front, 1], [*front, 2]])).tolist() == front[:19]
    assert shared_front(Ragged.from_lists([[*front, 1], [*front[:18], 9, 9]])).tolist() == front[:18]
    assert len(shared_front(Ragged.from_lists([front[:10], front]))) == 0
    assert len(shared_front(Ragged.from_lists([front]))) == 0


def test_in_main_memory_rows_take_no_more_than_their_keys_and_values_may_have(zoo, monkeypatch):
    """How large those are nobody knows before the first row has some."""
    model = zoo("llama")
    monkeypatch.setattr(decoders, "_HOST_PREFILL", 10**6)
    rows = [Row(number, np.full(20, 7 + number), 12) for number in range(40)]
    running = decoders.Decoder(model, (10**6, 128))
    assert running.admits(rows) == 1
    with torch.inference_mode():
        running.join(rows[:1])
        per_token = sum(layer.keys[0, :, 0].nbytes + layer.values[0, :, 0].nbytes for layer in running.slots.layers)
        monkeypatch.setattr(running, "_host_bytes", 9 * 20 * per_token)
        assert running.admits(rows[1:]) == 8
        running.join(rows[1:9])
        assert running.admits(rows[9:]) == 0
        assert (
            sum(layer.keys.nbytes + layer.values.nbytes for layer in running.slots.layers) <= 1.3 * 9 * 20 * per_token
        )


def test_prompts_are_computed_a_few_at_a_time_on_a_cpu(zoo, monkeypatch):
    monkeypatch.setattr(decoders, "_HOST_PREFILL", 30)
    running = decoders.Decoder(zoo("llama"), (10**6, 128))
    rows = [Row(number, np.full(20, 7 + number), 12) for number in range(6)]
    with torch.inference_mode():
        running.join(rows[:1])
        assert running.admits(rows[1:]) == 2


def test_a_slot_that_held_nan_is_clean_for_the_next_row():
    slots, made = Slots(1, torch.device("cpu")), torch.ones(1, 2, 3, 4)
    slots.fit(2, 6, 6)
    slots.layers[0].update(made * torch.nan, made)
    slots.rows = 1
    slots.keep(np.array([], dtype=np.int64), 3)
    slots.now = Pass()
    slots.layers[0].update(made[:, :, :2], made[:, :, :2])
    slots.now = Pass(places=torch.tensor([2]), longest=6)
    keys, _ = slots.layers[0].update(made[:, :, :1], made[:, :, :1])
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_the_last_rows_move_into_the_gaps_with_all_they_have():
    slots = Slots(1, torch.device("cpu"))
    slots.fit(5, 2, 2)
    slots.layers[0].update(torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 3), torch.zeros(5, 1, 2, 3))
    slots.rows = 5
    order = slots.keep(np.array([1, 3, 4]), 2)
    assert sorted(order.tolist()) == [1, 3, 4]
    assert slots.layers[0].keys[:3, 0, 1, 0].tolist() == order.tolist()


def test_the_end_of_the_run_ends_the_loop(zoo):
    model = zoo("llama")
    rows = Rows(model)

    def stop(finished):
        rows.steps += 1
        if rows.steps == 3:
            raise InterruptedError

    rows.alive = stop
    with pytest.raises(InterruptedError):
        complete(generator_of(model), model, rows, rows.wanted)


def causal(name, **config):
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(**{**TINY, "initializer_range": 0.4, **config})
    return transformers.AutoModelForCausalLM.from_config(made).eval()


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("Mistral", {"sliding_window": 8}, "keeps DynamicSlidingWindowLayer in its cache"),
        ("Mamba", {}, "keeps LinearAttentionLayer in its cache"),
        ("Falcon", {"alibi": True}, "falcon refuses what is asked of it"),
        ("GPTNeo", {"attention_types": [[["global", "local"], 1]]}, "attention within a window"),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "longest row"),
    ],
    ids=str,
)
def test_a_model_that_does_not_fit_goes_the_way_of_generate_and_says_why(name, config, said):
    model = causal(name, **config)
    generator = Generator(
        GenerationParams(), SimpleNamespace(tokenizer=None, generation_config=model.generation_config)
    )
    assert not generator.settle(model)
    assert said in generator.way
    assert generator.way.startswith("model.generate")


@pytest.mark.parametrize(
    ("params", "settings", "said"),
    [
        ({"num_beams": 2}, {}, "a search with 2 beams"),
        ({}, {"guidance_scale": 2.0, "renormalize_logits": True}, "the setting guidance_scale, renormalize_logits"),
    ],
)
def test_settings_that_the_loop_does_not_know_go_the_way_of_generate(zoo, params, settings, said):
    assert way_of(generator_of(zoo("llama"), params, settings), zoo("llama")) == said


def test_a_model_that_takes_no_notice_of_its_positions_is_found_out(zoo, monkeypatch):
    model = zoo("llama")
    plain = model.forward

    def deaf(self=None, position_ids=None, **given):
        return plain(**given)

    monkeypatch.setattr(model, "forward", deaf)
    assert "answers a row beside others" in way_of(generator_of(model), model)
    monkeypatch.undo()
    assert decoding._distance(model) < 1e-4

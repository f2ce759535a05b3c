"""Layers that see no padding give what the padded model gives, for every architecture that is let in."""

import copy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.model import Predict
from hfbatch.packing import NotPackable, Packed, install, packed
from tests.inline import plan_of
from tests.models import sentences
from tests.zoo import text as zoo

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
    "num_labels": 5,
    "pad_token_id": 1,
}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "num_labels": 5}
SEQUENCE, TOKEN = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
KINDS = {
    "bert": (transformers.BertConfig(**SMALL), SEQUENCE),
    "bert, a vector a token": (transformers.BertConfig(**SMALL), "AutoModel"),
    "roberta, whose positions begin behind the padding's": (transformers.RobertaConfig(**SMALL), SEQUENCE),
    "distilbert": (transformers.DistilBertConfig(**DISTIL), TOKEN),
    "electra": (transformers.ElectraConfig(**SMALL, embedding_size=16), TOKEN),
    "modernbert, some of whose layers look at neighbours only": (
        transformers.ModernBertConfig(**SMALL, local_attention=8, global_attn_every_n_layers=2),
        SEQUENCE,
    ),
    "llama, a decoder that classifies by the last token": (
        transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
        SEQUENCE,
    ),
    "mistral, with a sliding window": (
        transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=6),
        TOKEN,
    ),
    "gpt2": (transformers.GPT2Config(**SMALL, n_layer=3, n_head=4, n_embd=32), TOKEN),
}


def model_of(name):
    config, head = copy.deepcopy(KINDS[name])
    torch.manual_seed(0)
    return getattr(transformers, head).from_config(config).eval()


def batch_of(lengths, left=False):
    """Token ids (sequences, longest) and which of them are real."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    mask = mask[:, ::-1].copy() if left else mask
    ids = np.random.default_rng(len(lengths)).integers(5, 60, mask.shape)
    return torch.from_numpy(np.where(mask, ids, 1)), mask


def both_ways(model, ids, mask):
    inputs = {"input_ids": ids, "attention_mask": torch.from_numpy(mask).long()}
    with torch.inference_mode():
        plain = model(**inputs)[0]
        with packed(mask, CPU):
            return plain, model(**inputs)[0]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("lengths", [[30, 17, 17, 9, 3, 1], [12, 12, 12], [20], [3, 40]], ids=str)
def test_every_result_is_that_of_the_padded_model(name, lengths):
    model = model_of(name)
    assert install(model) is None
    ids, mask = batch_of(lengths)
    plain, ours = both_ways(model, ids, mask)
    if plain.dim() == 3:
        plain, ours = plain[torch.from_numpy(mask)], ours[torch.from_numpy(mask)]
    assert torch.allclose(plain, ours, atol=2e-5)
    assert len(lengths) == 1 or not torch.allclose(plain[0], plain[-1], atol=1e-3), "a model that says always the same"


@pytest.mark.parametrize("name", ["bert", "mistral, with a sliding window"])
def test_no_layer_sees_padding(name):
    model, seen = model_of(name), []
    install(model)
    stack = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 3)
    for layer in stack:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    both_ways(model, *batch_of([9, 4, 4, 2]))
    assert seen[:3] == [(4, 9, 32)] * 3
    assert seen[3:] == [(1, 19, 32)] * 3


def test_a_neighbour_changes_nothing():
    model = model_of("bert, a vector a token")
    install(model)
    ids, mask = batch_of([9, 4, 4, 2])
    _, before = both_ways(model, ids, mask)
    ids[0] = 7
    _, after = both_ways(model, ids, mask)
    assert torch.equal(before[1, :4], after[1, :4])
    assert not torch.allclose(before[0], after[0], atol=1e-3)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.booleans())
def test_packing_takes_out_what_is_no_token_and_unpacking_puts_the_rest_back(lengths, left):
    _, mask = batch_of(lengths, left)
    batch = Packed.of(mask, CPU)
    values = torch.arange(mask.size * 2, dtype=torch.float32).reshape(*mask.shape, 2) + 1
    flat = batch.pack(values)
    assert flat.shape == (1, sum(lengths), 2)
    assert torch.equal(flat[0], values[torch.from_numpy(mask)])
    assert torch.equal(batch.unpack(flat), values * torch.from_numpy(mask)[..., None])
    shared = values[:1]
    assert torch.equal(batch.pack(shared)[0], shared.expand_as(values)[torch.from_numpy(mask)])
    assert sum(rows * length for _, rows, length in batch.runs) == sum(lengths)
    assert batch.pack(None) is None
    assert batch.pack("text") == "text"


@pytest.mark.parametrize(
    ("config", "head", "reason"),
    [
        (transformers.T5Config(vocab_size=60, d_model=32, d_ff=48, num_layers=2, num_heads=4), "AutoModel", "stack"),
        (transformers.AlbertConfig(**SMALL, embedding_size=16), SEQUENCE, "stack"),
        (transformers.DebertaV2Config(**SMALL), SEQUENCE, "attention"),
    ],
    ids=["two stacks", "one layer many times", "an attention of its own"],
)
def test_a_model_that_cannot_be_packed_is_left_alone(config, head, reason):
    model = getattr(transformers, head).from_config(config)
    before = model.config._attn_implementation
    assert reason in install(model)
    assert model.config._attn_implementation == before


def test_an_attention_that_the_job_asks_for_is_left_alone():
    model = transformers.AutoModel.from_config(copy.deepcopy(KINDS["bert"][0]), attn_implementation="eager")
    assert install(model) == "its attention is eager"


@pytest.fixture
def predict_of(tmp_path, classifier):
    def make(model=classifier, task="text-classification", **machine):
        texts = [" ".join([text] * (1 + number % 4)) for number, text in enumerate(sentences(40))]
        pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
        job = {"task": task, "model": {"id": str(model)}}
        job |= {"input": {"path": str(tmp_path / "in.parquet")}, "output": {"path": str(tmp_path / "out")}}
        plan = plan_of(job, **machine)
        predict = Predict(plan.job.step, plan.machine, 1, gpu=False)
        return predict, predict.task.preprocess(pa.table({"text": texts}))

    return make


def test_a_job_runs_packed_after_a_check_on_its_own_rows_and_without_padding(predict_of):
    predict, sequences = predict_of()
    assert (predict.engine.packer.open, predict.engine.packer.on) == (True, False)
    ours, errors = predict.predict(sequences)
    assert errors == {}
    assert predict.engine.packer.layout == "packed"
    assert (
        predict.engine.meter.padded_tokens == predict.engine.meter.tokens == sequences.ragged("input_ids").lengths.sum()
    )
    padded, _ = predict_of(packing=False)
    expected, _ = padded.predict(sequences)
    assert padded.engine.packer.layout == "padded (packing: false)"
    assert padded.engine.meter.padded_tokens > padded.engine.meter.tokens
    assert np.allclose(ours.dense("logits"), expected.dense("logits"), atol=1e-5)


def test_a_model_that_disagrees_with_itself_keeps_its_padding(predict_of, monkeypatch):
    monkeypatch.setattr(Packed, "unpack", lambda self, value: value.new_ones(self.rows, self.longest, value.shape[-1]))
    monkeypatch.setattr("hfbatch.packing.widen", lambda states, longest: states.new_ones(states.shape[1], longest, 32))
    predict, sequences = predict_of()
    found, errors = predict.predict(sequences)
    assert errors == {}
    assert predict.engine.packer.layout == "padded (without padding its logits are others)"
    monkeypatch.undo()
    plain, _ = predict_of(packing=False)
    assert np.allclose(found.dense("logits"), plain.predict(sequences)[0].dense("logits"), atol=1e-5)


def test_a_model_that_fails_without_padding_keeps_it_and_the_report_says_why(predict_of, monkeypatch):
    monkeypatch.setattr(Packed, "unpack", lambda self, value: 1 / 0)
    monkeypatch.setattr("hfbatch.packing.widen", lambda states, longest: 1 / 0)
    predict, sequences = predict_of()
    _, errors = predict.predict(sequences)
    assert errors == {}
    assert predict.engine.packer.layout == "padded (division by zero)"


def test_rows_of_one_length_say_nothing_about_packing(predict_of):
    predict, sequences = predict_of()
    lengths = sequences.ragged("input_ids").lengths
    alike = sequences.take(np.flatnonzero(lengths == lengths[0]))
    predict.predict(alike)
    assert predict.engine.packer.open
    predict.predict(sequences)
    assert not predict.engine.packer.open


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_lengths_of_any_kind(lengths):
    model = _shared()
    plain, ours = both_ways(model, *batch_of(sorted(lengths, reverse=True)))
    assert torch.allclose(plain, ours, atol=2e-5)


_kept = {}


def _shared():
    if not _kept:
        _kept["model"] = model_of("roberta, whose positions begin behind the padding's")
        install(_kept["model"])
    return _kept["model"]


TAGS = "token-classification"
FIRST = {
    **{name: KINDS[name] for name in ("bert", "roberta, whose positions begin behind the padding's")},
    "distilbert": (transformers.DistilBertConfig(**DISTIL), SEQUENCE),
    "electra": (transformers.ElectraConfig(**SMALL, embedding_size=16), SEQUENCE),
    "xlm-roberta": (transformers.XLMRobertaConfig(**SMALL), SEQUENCE),
}


@pytest.mark.parametrize("lengths", [[30, 17, 17, 9, 3, 1], [12, 12, 12], [20], [3, 40]], ids=str)
@pytest.mark.parametrize("name", FIRST)
def test_a_last_layer_that_sees_first_tokens_alone_gives_the_same_results(name, lengths):
    config, head = copy.deepcopy(FIRST[name])
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(config).eval()
    assert install(model) is None
    seen = []
    linears = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
    widest = max(linears, key=lambda module: (module.out_features, linears.index(module)))  # of the last layer
    widest.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
    ids, mask = batch_of(lengths)
    inputs = {"input_ids": ids, "attention_mask": torch.from_numpy(mask).long()}
    with torch.inference_mode():
        plain = model(**inputs)[0]
        with packed(mask, CPU, first=True):
            found = model(**inputs)[0]
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    assert seen == [mask.size, len(lengths)]


@pytest.mark.parametrize("kind", ["modernbert, some of whose layers look at neighbours only", "gpt2"])
def test_a_last_layer_that_needs_more_than_states_refuses_first_tokens_alone(kind):
    model = model_of(kind)
    assert install(model) is None
    ids, mask = batch_of([5, 3])
    with torch.inference_mode(), packed(mask, CPU, first=True), pytest.raises(NotPackable, match="every token"):
        model(input_ids=ids, attention_mask=torch.from_numpy(mask).long())


def test_an_attention_that_makes_its_keys_in_another_way_refuses_first_tokens_alone():
    model = model_of("bert")
    assert install(model) is None
    last = model.bert.encoder.layer[-1].attention.self
    last.key = torch.nn.Sequential(last.key)
    ids, mask = batch_of([5, 3])
    with torch.inference_mode(), packed(mask, CPU, first=True), pytest.raises(NotPackable, match="is not known"):
        model(input_ids=ids, attention_mask=torch.from_numpy(mask).long())


def test_of_the_last_layer_a_classifier_gets_first_tokens_alone_where_that_changes_nothing(predict_of, tmp_path):
    rotary = zoo.modernbert(tmp_path / "modernbert")
    tagger = zoo.bert(tmp_path / "tagger", head="BertForTokenClassification")
    for made, first in ((predict_of(), True), (predict_of(rotary), False), (predict_of(tagger, TAGS), False)):
        predict, sequences = made
        _, errors = predict.predict(sequences)
        assert errors == {}
        assert predict.engine.packer.layout == "packed"
        assert predict.engine.packer.first is first


def test_a_head_that_reads_more_than_the_first_token_gets_all(predict_of, monkeypatch):
    """As the check on the run's own rows finds out."""
    predict, sequences = predict_of()
    expected, _ = predict.predict(sequences)
    monkeypatch.setattr("hfbatch.packing.widen", lambda states, longest: states.new_ones(states.shape[1], longest, 32))
    other, _ = predict_of()
    found, _ = other.predict(sequences)
    assert other.engine.packer.layout == "packed"
    assert not other.engine.packer.first
    assert np.allclose(found.dense("logits"), expected.dense("logits"), atol=1e-5)

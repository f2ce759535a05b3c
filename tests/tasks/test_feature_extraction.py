import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.models import HIDDEN, sentences
from tests.tasks.contract import Case, assert_close, check

TEXTS = [*sentences(40), "", "naïve café 電影 ☃"]
FLAGS = {  # as sentence-transformers names them, in the order in which it joins their vectors
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last_token",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
}


def test_every_tokens_vector_equals_transformers_pipeline(encoder, tmp_path):
    output = check(Case("feature-extraction", encoder, {"text": TEXTS}), tmp_path)
    reference = pipeline("feature-extraction", model=str(encoder), device="cpu")
    for made, text in zip(output["embedding"].to_pylist(), TEXTS, strict=True):
        assert_close(made, reference(text, tokenize_kwargs={"truncation": True, "max_length": 64})[0])


def reference_vectors(model, texts, pooling, max_length=64, skip=0):
    """One text at a time: no batch, no padding; without the first `skip` tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    vectors = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length))[0][0]
        weights = torch.arange(1, len(hidden) + 1)[skip:, None]
        hidden = hidden[skip:]
        ways = {
            "mean": hidden.mean(0),
            "cls": hidden[0],
            "last_token": hidden[-1],
            "max": hidden.amax(0),
            "mean_sqrt_len": hidden.sum(0) / len(hidden) ** 0.5,
            "weighted_mean": (hidden * weights).sum(0) / weights.sum(),
        }
        vectors.append(ways[pooling].numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "last_token", "weighted_mean"])
def test_pooled_vectors_equal_the_model_called_alone(encoder, tmp_path, pooling):
    output = check(Case("feature-extraction", encoder, {"text": TEXTS}, {"pooling": pooling}), tmp_path)
    assert output.schema.field("embedding").type == pa.list_(pa.field("item", pa.float32(), False), HIDDEN)
    made = np.array(output["embedding"].to_pylist())
    assert np.abs(made - reference_vectors(encoder, TEXTS, pooling)).max() < 1e-4


def test_dimensions_are_cut_before_the_length_becomes_one(encoder, tmp_path):
    params = {"pooling": "mean", "truncate_dim": 8, "normalize": True}
    output = check(Case("feature-extraction", encoder, {"text": TEXTS}, params), tmp_path)
    expected = reference_vectors(encoder, TEXTS, "mean")[:, :8]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    made = np.array(output["embedding"].to_pylist())
    assert made.shape == (len(TEXTS), 8)
    assert np.abs(made - expected).max() < 1e-4


def test_half_precision_stays_close_to_float32(encoder, tmp_path, write_parquet, job_for):
    job = job_for(
        "feature-extraction", encoder, write_parquet("in.parquet", {"text": TEXTS}), pooling="mean", normalize=True
    )
    full = np.array(run_inline(plan_of(job))["embedding"].to_pylist())
    job["model"]["dtype"] = "bfloat16"
    half = np.array(run_inline(plan_of(job))["embedding"].to_pylist())
    assert half.dtype == full.dtype
    assert ((full * half).sum(axis=1) > 0.99).all()


def test_minilm_embeds_real_text_as_plain_transformers_does(minilm, tmp_path):
    texts = [
        "New drug lowers the risk of stroke.",
        "Flu season is here: get your shot!",
        "RT @user: 5 tips http://t.co/x",
    ]
    params = {"pooling": "mean", "normalize": True}
    output = check(Case("feature-extraction", minilm, {"text": texts}, params), tmp_path)
    expected = reference_vectors(minilm, texts, "mean")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert ((np.array(output["embedding"].to_pylist()) * expected).sum(axis=1) > 0.9999).all()


def sentence_transformer(folder, model, pooling, modules=("Normalize",), prompts=None, **model_config):
    """A directory as sentence-transformers saves it, around a checkpoint."""
    shutil.copytree(model, folder)
    names = ["Transformer", "Pooling", *modules]
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "1_Pooling").mkdir()
    files = {"modules.json": listed, "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, **pooling}}
    files |= {"sentence_bert_config.json": model_config, "config_sentence_transformers.json": prompts or {}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def vectors_of(model, tmp_path, texts, **params):
    output = run_inline(plan_of(Case("feature-extraction", model, {"text": texts}, params).job(tmp_path)))
    return np.array(output["embedding"].to_pylist()), output["truncated"].to_pylist()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_minilm_without_params_is_what_sentence_transformers_makes_of_it(minilm, tmp_path):
    """Mean over tokens, length 1, texts cut at 256 tokens: so its directory says, and its README."""
    texts = ["New drug lowers the risk of stroke.", "word " * 300]
    output = check(Case("feature-extraction", minilm, {"text": texts}), tmp_path)
    assert output["truncated"].to_pylist() == [False, True]
    expected = unit(reference_vectors(minilm, texts, "mean", max_length=256))
    assert np.abs(np.array(output["embedding"].to_pylist()) - expected).max() < 1e-5
    longer, truncated = vectors_of(minilm, tmp_path, texts, max_length=400)
    assert truncated == [False, False]
    assert np.abs(longer - unit(reference_vectors(minilm, texts, "mean", max_length=400))).max() < 1e-5


@pytest.mark.parametrize(
    ("pooling", "modules"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, ()),
        ({"pooling_mode_max_tokens": True, "pooling_mode_lasttoken": True}, ("Normalize",)),
        ({"pooling_mode": ["mean_sqrt_len_tokens", "weightedmean", "cls"]}, ()),
        ({"pooling_mode": "max"}, ("Normalize",)),
        ({}, ()),
    ],
)
def test_a_directory_says_how_its_vectors_are_pooled_and_joined(encoder, tmp_path, pooling, modules):
    model = sentence_transformer(tmp_path / "model", encoder, pooling, modules)
    output = check(Case("feature-extraction", model, {"text": TEXTS}), tmp_path)
    written = pooling.get("pooling_mode", [name for name in FLAGS if pooling.get(name)] or ["mean"])
    modes = [FLAGS.get(name, name) for name in ([written] if isinstance(written, str) else written)]
    expected = np.concatenate([reference_vectors(encoder, TEXTS, mode) for mode in modes], axis=1)
    made = np.array(output["embedding"].to_pylist())
    assert made.shape == (len(TEXTS), HIDDEN * len(modes))
    assert np.abs(made - (unit(expected) if modules else expected)).max() < 1e-4


def test_params_overrule_the_directory(encoder, tmp_path):
    directory = {"prompts": {"query": "four "}, "default_prompt_name": "query"}
    model = sentence_transformer(tmp_path / "model", encoder, {"pooling_mode": "cls"}, prompts=directory)
    whole = vectors_of(model, tmp_path, TEXTS, normalize=False)[0]
    assert np.abs(whole - reference_vectors(encoder, ["four " + text for text in TEXTS], "cls")).max() < 1e-4
    plain = vectors_of(model, tmp_path, TEXTS, pooling="mean")[0]
    assert np.abs(plain - reference_vectors(encoder, TEXTS, "mean")).max() < 1e-4


@pytest.mark.parametrize("params", [{"prompt_name": "query"}, {"prompt": "one two "}])
def test_a_prompt_stands_before_every_text(encoder, tmp_path, params):
    prompts = {"prompts": {"query": "one two ", "document": ""}}
    model = sentence_transformer(tmp_path / "model", encoder, {}, (), prompts)
    made = vectors_of(model, tmp_path, TEXTS, **params)[0]
    assert np.abs(made - reference_vectors(encoder, ["one two " + text for text in TEXTS], "mean")).max() < 1e-4
    assert np.abs(made - vectors_of(model, tmp_path, TEXTS, prompt_name="document")[0]).max() > 0.1


@pytest.mark.parametrize(
    ("written", "mode"), [("mean", "mean"), ("cls", "cls"), ("weightedmean", "weighted_mean"), ("max", "max")]
)
def test_a_prompt_is_left_out_of_the_pooling_where_the_directory_says_so(encoder, tmp_path, written, mode):
    model = sentence_transformer(tmp_path / "model", encoder, {"pooling_mode": written, "include_prompt": False}, ())
    texts = TEXTS[:20]
    made = vectors_of(model, tmp_path, texts, prompt="one two ")[0]  # [CLS] one two
    expected = reference_vectors(encoder, ["one two " + text for text in texts], mode, skip=3)
    assert np.abs(made - expected).max() < 1e-4


def test_a_directory_may_lower_the_case_and_the_limit(roberta, tmp_path):
    text = "The GOOD film " * 5
    plain = shutil.copytree(roberta, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text()) | {"architectures": ["RobertaModel"]}
    (plain / "config.json").write_text(json.dumps(config))
    model = sentence_transformer(tmp_path / "model", plain, {}, (), do_lower_case=True, max_seq_length=12)
    made, truncated = vectors_of(model, tmp_path, [text])
    assert truncated == [True]
    assert np.abs(made - reference_vectors(plain, [text.lower()], "mean", max_length=12)).max() < 1e-4


@pytest.mark.parametrize("stride", [0, 10])
def test_a_long_text_is_the_mean_of_its_windows(encoder, tmp_path, stride):
    texts = ["good", " ".join(sentences(30, seed=2)), "bad film " * 80]
    params = {"pooling": "mean", "stride": stride, "normalize": True, "truncate_dim": 16}
    output = check(Case("feature-extraction", encoder, {"text": texts}, params), tmp_path)
    assert output["truncated"].to_pylist() == [False] * 3
    expected = unit(np.stack([window_means(encoder, text, stride)[:16] for text in texts]))
    assert np.abs(np.array(output["embedding"].to_pylist()) - expected).max() < 1e-4


def window_means(model, text, stride):
    """Windows made by hand: 62 tokens of text between [CLS] and [SEP], each `stride` before the end of the last."""
    tokenizer, model = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    ids, vectors = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], []
    for start in range(0, max(1, len(ids) - stride), 62 - stride):
        window = [tokenizer.cls_token_id, *ids[start : start + 62], tokenizer.sep_token_id]
        with torch.inference_mode():
            vectors.append(model(torch.tensor([window]))[0][0].mean(0).numpy())
    return np.mean(vectors, axis=0)


@pytest.mark.parametrize(
    ("own", "params", "message"),
    [
        ({"modules": ("Dense",)}, {}, "its modules are Transformer, Pooling, Dense: .*write params.pooling to take"),
        ({"pooling": {"pooling_mode": "attention"}}, {}, "it pools by attention, .*write params.pooling"),
        ({}, {"prompt_name": "query"}, r"no prompt 'query' \(it has: none\); write params.prompt"),
        ({}, {"prompt_name": "query", "prompt": "query: "}, "leave one out"),
        ({}, {"prompt": "good " * 70}, "the prompt has 71 tokens of the 64 of a sequence"),
        ({}, {"pooling": "none", "stride": 8}, "set params.pooling, such as mean"),
        ({}, {"stride": 62}, "stride is 62, and a window holds 62 tokens of text; write less"),
        ({"pooling": {"include_prompt": False}}, {"prompt": "good ", "stride": 8}, "leave stride out"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_way_out(encoder, tmp_path, own, params, message):
    model = sentence_transformer(tmp_path / "model", encoder, **{"pooling": {}, **own})
    with pytest.raises(SpecError, match=message):
        plan_of(Case("feature-extraction", model, {"text": ["good"]}, params).job(tmp_path))

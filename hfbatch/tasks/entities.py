"""Labelled tokens to words and entities, as transformers' TokenClassificationPipeline joins them. Pure numpy.

A span is a run of tokens with one label: a token, a word, or an entity. Tokens are counted over all sequences of a
block; no span crosses the border of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from hfbatch.sequences import Array


class Entity(NamedTuple):
    """One entry of a text's list."""

    name: str
    score: float
    position: int  # of the first token, within its sequence
    word: str
    start: int | None  # characters
    end: int | None


@dataclass(frozen=True, eq=False)
class Spans:
    """All arrays have one entry a span."""

    window: Array  # the sequence it is of
    first: Array  # its first token
    last: Array
    label: Array
    score: Array  # (spans,); (spans, labels) before a label is chosen

    def __len__(self) -> int:
        return len(self.first)

    def take(self, index: Array) -> Spans:
        """The spans of `index`."""
        return Spans(self.window[index], self.first[index], self.last[index], self.label[index], self.score[index])

    def joined(self, starts: Array) -> Spans:
        """Runs of spans as one each, with the label and score of its first; a run begins at each of `starts`."""
        ends = np.append(starts[1:], len(self)) - 1 if len(starts) else starts
        return replace(self.take(starts), last=self.last[ends])

    def borders(self) -> Array:
        """(spans,) bool: where another sequence begins."""
        return np.append(True, self.window[1:] != self.window[:-1])[: len(self)]


def words(tokens: Spans, continues: Array, way: Literal["first", "average", "max"]) -> Spans:
    """Words with one label each. `continues` (tokens,) bool: the token goes on with the word of the one before."""
    starts = np.flatnonzero(~continues | tokens.borders())
    made = tokens.joined(starts)
    if way == "first" or not len(starts):
        return made
    if way == "average":
        counts = np.diff(np.append(starts, len(tokens)))
        scores = np.add.reduceat(tokens.score, starts, axis=0) / counts[:, None]
        return replace(made, label=scores.argmax(axis=1), score=scores.max(axis=1))
    word = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(tokens))))
    surest = np.flatnonzero(tokens.score == np.maximum.reduceat(tokens.score, starts)[word])
    chosen = surest[np.unique(word[surest], return_index=True)[1]]  # the first of equals
    return replace(made, label=tokens.label[chosen], score=tokens.score[chosen])


def groups(spans: Spans, labels: list[str]) -> tuple[Spans, Array]:
    """Neighbours of one kind as entities, with their mean score; and where each begins in `spans`.

    B- begins an entity, anything else goes on with one of its kind.
    """
    kinds = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    kind = np.array([numbers[one] for one in kinds])[spans.label]
    begins = np.array([label.startswith("B-") for label in labels])[spans.label] | spans.borders()
    begins[1:] |= kind[1:] != kind[:-1]
    starts = np.flatnonzero(begins)
    made = spans.joined(starts)
    if len(starts):
        counts = np.diff(np.append(starts, len(spans)))
        made = replace(made, score=np.add.reduceat(spans.score, starts) / counts)
    return made, starts


def without_overlaps(entities: list[Entity]) -> list[Entity]:
    """The entities of a text's windows in order, and of those that overlap the longest, then the surest."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start or 0):
        if not kept or not _overlap(kept[-1], entity):
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def is_subword(tokenizer: Any, tokens: Array, offsets: Array, text: str) -> Array:
    """(tokens,) bool: whether a token goes on with the word of the one before it.

    Known where the vocabulary marks such tokens, by the mark that makes them longer than their text; guessed from
    spaces elsewhere. `offsets` (tokens, 2) are characters of `text`.
    """
    start = offsets[:, 0].astype(np.int64)
    if getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None):
        unique, inverse = np.unique(tokens, return_inverse=True)
        sizes = np.array([len(token) for token in tokenizer.convert_ids_to_tokens(unique.tolist())], dtype=np.int64)
        marked = sizes[inverse] != offsets[:, 1] - start if len(tokens) else np.zeros(0, dtype=bool)
    else:
        signs = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        space = np.append(signs == ord(" "), False)
        marked = (start > 0) & ~space[start - 1] & ~space[start]
    return np.asarray(marked & (tokens != tokenizer.unk_token_id))


def _overlap(one: Entity, other: Entity) -> bool:
    return (one.start or 0) <= (other.start or 0) < (one.end or 0)


def _weight(entity: Entity) -> tuple[int, float]:
    return (entity.end or 0) - (entity.start or 0), entity.score

r"""How much of a text repeats itself: the mark of a language model that ran into a loop.

It is seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training" (2019,
https://arxiv.org/abs/1908.04319): 1 - different n-grams / n-grams, from 0 (none comes twice) to nearly 1. Here over
words, whatever the tokenizer, so that a limit means the same for every model: a word is a run of letters and digits,
in capitals or not; each mark of punctuation counts as one, and so does each character of a script without spaces.
"""

from __future__ import annotations

import re

import pyarrow as pa

_WIDE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+|[^\w\s]")  # three sets without overlap: nothing to backtrack over


def repetition(text: str, n: int) -> float:
    """The share of `n`-grams that stood before, in [0, 1); 0 for a text of fewer words."""
    words = _WORD.findall(text.casefold())
    grams = len(words) - n + 1
    if grams < 1:
        return 0.0
    different = len(set(zip(*(words[start:] for start in range(n)), strict=False)))
    return (grams - different) / grams


def repetitive(texts: pa.Array, limit: float, n: int) -> dict[int, str]:
    """Row of `texts` (rows,) -> its repetition, where that is over `limit`."""
    found = {}
    for row, text in enumerate(texts.to_pylist()):
        if text and (share := repetition(text, n)) > limit:
            found[row] = f"{share:.2f} of its {n}-grams stood before, the limit is {limit:g}"
    return found

"""Which language a text is in, of 139, by py3langid: naive Bayes over bytes, without a network.

It comes with the extra `language`. What it cannot tell (too short, names, numbers, markup) is in no language.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import pyarrow as pa

MAX_CHARACTERS = 2000  # of a text are looked at, some 2 ms: more would not make it surer
_NONE = frozenset({"und", "zxx"})  # undetermined; no language
PACKAGE, FIX = "py3langid", 'pip install "hfbatch[language]"'


def installed() -> bool:
    """Whether the package is there."""
    return find_spec(PACKAGE) is not None


def known_languages() -> frozenset[str]:
    """The codes (ISO 639) it can tell apart. ImportError without the package."""
    return frozenset(_identifier().labels) - _NONE


def foreign(texts: pa.Array, allow: Collection[str], min_confidence: float) -> dict[int, str]:
    """Row of `texts` (rows,) -> the language it is in, where that is none of `allow`.

    A text whose language is less sure than `min_confidence` is let through. ImportError without the package.
    """
    identify, found = _identifier().classify, dict[int, str]()
    for row, text in enumerate(texts.to_pylist()):
        if not text:
            continue
        language, confidence = identify(text[:MAX_CHARACTERS])
        if confidence >= min_confidence and language not in _NONE and language not in allow:
            found[row] = f"{language}, with probability {confidence:.2f}"
    return found


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

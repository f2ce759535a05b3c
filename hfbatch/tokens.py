"""Texts tokenised once for all steps of a job whose tokenizers are the same, while one block is under way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

Encoded: TypeAlias = tuple[list[list[int]], list[list[int]]]  # token ids and token types of each text

_now: dict[str, dict[str, tuple[list[int], list[int]]]] | None = None  # tokenizer -> text -> its ids and types
_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@contextmanager
def shared(several: bool) -> Iterator[None]:
    """Inside, where `several` models see the same rows, what `encoded` has made is kept."""
    global _now
    before, _now = _now, {} if several else None
    try:
        yield
    finally:
        _now = before


def encoded(tokenizer: Any, texts: Sequence[str], make: Callable[[list[str]], Encoded]) -> Encoded:
    """What `make(texts)` gives, which is asked only for texts that are new to an equal tokenizer."""
    if _now is None or not tokenizer.is_fast:
        return make(list(texts))
    known = _now.setdefault(_identity(tokenizer), {})
    new = [text for text in dict.fromkeys(texts) if text not in known]
    known.update(zip(new, zip(*make(new), strict=True), strict=True))
    pairs = [known[text] for text in texts]
    return [ids for ids, _ in pairs], [types for _, types in pairs]


def _identity(tokenizer: Any) -> str:
    """A hash of all that decides on token ids; truncation and padding are given with each call."""
    if tokenizer not in _known:
        content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        content.update(truncation=None, padding=None)
        splits = tokenizer.init_kwargs.get("split_special_tokens")
        text = json.dumps([type(tokenizer).__name__, tokenizer.model_input_names, splits, content], sort_keys=True)
        _known[tokenizer] = hashlib.sha256(text.encode()).hexdigest()
    return _known[tokenizer]

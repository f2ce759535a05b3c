"""Prompts and chats to token ids, in which only what the checkpoint's own template wrote is special.

A row that holds `<|im_start|>` holds twelve characters of text. Before the template sees a message its special
strings are veiled as text that no tokenizer knows; afterwards the stretches with such a veil, and only those, are
tokenised again with all special tokens off. Everything else is what `apply_chat_template` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from hfbatch.errors import RowError

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # noncharacters of Unicode: hardly a text has them, and there they are veiled too
_VEIL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_LONG = (
    64  # characters a token, as in text.py: of what is longer than twice that the rest is cut before it is tokenised
)

Message = Mapping[str, Any]


class Prompts:
    """Token ids of prompts and chats for one tokenizer; `options` go to the chat template."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None, start: int | None = None) -> None:
        """`start`: the token that stands for an empty prompt."""
        self.tokenizer, self.options, self.start = tokenizer, dict(options or {}), start
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        special = {**added, **dict(named)}
        self._strings = sorted((text for text in (*special, _OPEN) if text), key=len, reverse=True)
        self._special = {number: text for text, number in special.items()}
        self._pattern = re.compile("|".join(map(re.escape, self._strings)) or "(?!)")

    def veil(self, value: Any) -> Any:
        """`value`, of which every string, at any depth, has its special strings veiled."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: f"{_OPEN}{self._strings.index(found[0])}{_CLOSE}", value)
        if isinstance(value, Mapping):
            return {name: self.veil(part) for name, part in value.items()}
        return [self.veil(part) for part in value] if isinstance(value, list) else value

    def unveil(self, text: str) -> str:
        """`text` with its special strings as they were."""
        return _VEIL.sub(lambda found: self._strings[int(found[1])], text)

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as the model sees it, veiled; a last message of the assistant is continued, as the pipeline does.

        RowError where the template refuses the messages.
        """
        if not messages:
            raise RowError("empty_input", "there are no messages")
        going_on = messages[-1].get("role") == "assistant"
        veiled = [self.veil({name: part for name, part in each.items() if part is not None}) for each in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                veiled,
                tokenize=False,
                add_generation_prompt=not going_on,
                continue_final_message=going_on,
                **self.options,
            )
        except Exception as error:  # a template may raise anything
            raise RowError("bad_messages", f"the chat template refuses them: {str(error)[:200]}") from error
        return text

    def of_chat(self, messages: Sequence[Message], room: int | None) -> tuple[list[int], bool]:
        """Token ids of a chat, and whether it was cut to `room` tokens.

        Cut are the beginnings of messages: the earliest first, those of the system last. What the template wrote
        stays. RowError where that alone takes more.
        """
        chat = [dict(each) for each in messages]
        texts = [each for each in chat if isinstance(each.get("content"), str)]
        texts.sort(key=lambda each: each.get("role") == "system")
        excess = 0 if room is None else sum(len(each["content"]) for each in texts) - 2 * _LONG * room
        if excess > 0:
            _shorten(texts, excess)
        ids = self.encode(self.render(chat), False)
        if room is None or len(ids) <= room:
            return ids, excess > 0
        for each in texts:
            while len(ids) > room and each["content"]:
                each["content"] = self._without(each["content"], len(ids) - room)
                ids = self.encode(self.render(chat), False)
        if len(ids) > room:
            raise RowError("too_long", f"{len(ids)} tokens of the chat template alone, there is room for {room}")
        return ids, True

    def of_text(self, text: str, room: int | None) -> tuple[list[int], bool]:
        """Token ids of a plain prompt, as the tokenizer makes them; and whether its beginning was cut off.

        Special tokens that the tokenizer puts in front stay.
        """
        long = room is not None and len(text) > 2 * _LONG * room
        ids = self.encode(text[-2 * _LONG * room :] if room is not None and long else text, True)
        if not ids and self.start is None:
            raise RowError("empty_input", "the prompt has no tokens")
        ids = ids or [self.start or 0]
        if room is None or (len(ids) <= room and not long):
            return ids, False
        first = self._first(ids)
        return (ids[:first] + ids[max(first, len(ids) - room + first) :])[:room], True

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text that may have veils."""
        if _OPEN not in text:
            ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
            return ids
        if not self.tokenizer.is_fast:
            raise RowError("special_text", "it holds special tokens, which this tokenizer cannot write as text")
        made = self.tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
        ids, spans, out, begin = made["input_ids"], _places(made["offset_mapping"], len(text)), list[int](), 0
        for stop in [i for i in range(len(ids)) if self._is_special(ids[i], text[slice(*spans[i])])] + [len(ids)]:
            start = spans[begin - 1][1] if begin else 0
            stretch = text[start : spans[stop][0] if stop < len(ids) else len(text)]
            out += self._plain(self.unveil(stretch), start) if _OPEN in stretch else ids[begin:stop]
            out += ids[stop : stop + 1]
            begin = stop + 1
        return out

    def _is_special(self, token: int, found: str) -> bool:
        """Whether `token` is special where it was made of `found`: nothing, if the tokenizer put it there by itself.

        The token for what is unknown is special by its number, but not there.
        """
        return token in self._special and found.strip() in ("", self._special[token])

    def _plain(self, text: str, start: int) -> list[int]:
        """Token ids of a stretch that begins at `start` and in which nothing is special."""
        words = self.tokenizer.backend_tokenizer.pre_tokenizer
        inner = start > 0 and getattr(words, "prepend_scheme", None) == "first"
        if inner:  # such tokenizers put a space before the first stretch alone
            words.prepend_scheme = "never"
        try:
            made = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        finally:
            if inner:
                words.prepend_scheme = "first"
        ids: list[int] = made["input_ids"]
        return ids

    def _without(self, text: str, count: int) -> str:
        """`text` without its first `count` tokens, at least one character shorter."""
        if self.tokenizer.is_fast:
            spans = self.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
            )["offset_mapping"]
            return text[max(1, spans[count][0]) :] if count < len(spans) else ""
        tokens = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return text[ceil(len(text) * min(1.0, count / max(tokens, 1))) :]

    def _first(self, ids: list[int]) -> int:
        """How many special tokens the tokenizer put in front of `ids`."""
        around = self.tokenizer("", verbose=False)["input_ids"]
        return next(
            (i for i, (a, b) in enumerate(zip(around, ids, strict=False)) if a != b), min(len(around), len(ids))
        )


def _places(spans: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """`spans`, in which tokens that stand for no character are in front of the text or behind it."""
    places: list[tuple[int, int]] = []
    for start, stop in spans:
        behind = start == stop and bool(places) and places[-1][1] > 0
        places.append((size, size) if behind else (start, stop))
    return places


def _shorten(messages: Sequence[dict[str, Any]], excess: int) -> None:
    """Takes `excess` characters off the beginnings of messages."""
    for each in messages:
        cut = min(excess, len(each["content"]))
        each["content"], excess = each["content"][cut:], excess - cut

"""Long sound in overlapping chunks, and the chunks' tokens back to one text: speech recognition without the model.

The overlaps (strides) give each chunk its context. CTC drops the tokens that were heard there; Whisper and other
sequence-to-sequence models, whose tokens have no place in time, are folded where the texts of neighbours agree best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hfbatch.sequences import Array


class Chunking(NamedTuple):
    """How sound is cut, in samples: `left` and `right` of each chunk overlap its neighbours."""

    size: int
    left: int
    right: int


class Part(NamedTuple):
    """What the model made of one chunk."""

    tokens: Array  # (tokens,) int
    stride: tuple[int, int, int]  # samples of the chunk, and how many at its ends overlap; all 0: it is the whole
    times: Array | None = None  # (tokens,) seconds into the chunk, where word timestamps are asked for


class Chunk(NamedTuple):
    """A piece of the text and when it was said, in seconds; None: the model did not say."""

    text: str
    start: float | None
    end: float | None


def chunking(length_s: float, stride_s: float | tuple[float, float] | None, rate: int, frame: int) -> Chunking:
    """Seconds to samples, in whole frames. ValueError where chunks would not advance."""
    strides = (stride_s, stride_s) if isinstance(stride_s, int | float) else stride_s or (length_s / 6, length_s / 6)
    size, left, right = (round(seconds * rate / frame) * frame for seconds in (length_s, *strides))
    if size <= left + right:
        raise ValueError(
            f"params.stride_length_s: {strides[0]:g} + {strides[1]:g} s leave nothing of a chunk of {length_s:g} s; "
            "write less than half of chunk_length_s"
        )
    return Chunking(size, left, right)


def cut(samples: Array, how: Chunking | None, least: int = 1) -> Iterator[tuple[Array, tuple[int, int, int]]]:
    """The chunks of a sound with their strides, as transformers' pipeline cuts them; None: the sound as it is.

    A last chunk of less than `least` samples, of which the model makes nothing, is left out.
    """
    if how is None:
        yield samples, (0, 0, 0)
        return
    for start in range(0, len(samples), how.size - how.left - how.right):
        chunk, last = samples[start : start + how.size], start + how.size >= len(samples)
        left, right = how.left if start else 0, 0 if last else how.right
        if len(chunk) > left and (start == 0 or len(chunk) >= least):
            yield chunk, (len(chunk), left, right)
        if last:
            return


def whisper_text(
    parts: Sequence[Part], tokenizer: Any, timestamps: bool | str, rate: int, precision: float
) -> tuple[str, list[Chunk] | None]:
    """The text of a sound's parts, and its chunks where `timestamps` asks for them.

    `precision`: seconds a timestamp token.
    """
    outputs = []
    for part in parts:
        output: dict[str, Any] = {"tokens": part.tokens[None], "stride": tuple(n / rate for n in part.stride)}
        outputs.append(output if part.times is None else {**output, "token_timestamps": part.times[None]})
    text, more = tokenizer._decode_asr(
        outputs, return_timestamps=timestamps, return_language=None, time_precision=precision
    )
    return text, [Chunk(c["text"], *c["timestamp"]) for c in more["chunks"]] if timestamps else None


def ctc_text(
    parts: Sequence[Part], tokenizer: Any, timestamps: bool | str, rate: int, frame: int
) -> tuple[str, list[Chunk] | None]:
    """As whisper_text; a token stands for `frame` samples."""
    tokens = np.concatenate([_heard_once(part, frame) for part in parts])
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    if not timestamps:
        return text, None
    offsets = tokenizer.decode(tokens, skip_special_tokens=False, output_char_offsets=True)["char_offsets"]
    if timestamps == "word":
        offsets = tokenizer._get_word_offsets(offsets, tokenizer.replace_word_delimiter_char)
    seconds = frame / rate
    return text, [Chunk(o[timestamps], o["start_offset"] * seconds, o["end_offset"] * seconds) for o in offsets]


def seq2seq_text(parts: Sequence[Part], tokenizer: Any) -> str:
    """The text of a sound's parts; two neighbours meet where the end of one and the start of the other agree."""
    special = set(tokenizer.all_special_ids)
    tokens: list[int] = []
    for part in parts:
        coming = [token for token in part.tokens.tolist() if token not in special]
        tokens.extend(coming[_overlap(tokens, coming) :])
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _heard_once(part: Part, frame: int) -> Array:
    """The tokens of a part without those of its overlaps."""
    samples, left, right = part.stride
    if not samples:
        return part.tokens
    total = round(samples / frame)
    return part.tokens[round(left / samples * total) : total - round(right / samples * total)]


def _overlap(before: Sequence[int], after: Sequence[int]) -> int:
    """How many tokens at the start of `after` best repeat the end of `before`; a long match beats a short one."""
    best, found = 0.0, 0
    for size in range(1, len(after) + 1):
        end, start = before[-size:], after[:size]
        matches = sum(a == b for a, b in zip(end, start, strict=True)) if len(end) == size else 0
        share = matches / size + size / 10_000
        if matches > 1 and share > best:
            best, found = share, size
    return found

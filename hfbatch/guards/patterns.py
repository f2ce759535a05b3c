r"""Regular expressions over columns of texts, which no text can make slow: RE2's, run by Arrow.

RE2 reads a text once, whatever the pattern (https://github.com/google/re2/wiki/Syntax): in return it has no
look-around and no \1. The texts are data of strangers; nothing here tells what stood in one, only where.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def check_pattern(pattern: str) -> str:
    """The pattern. ValueError, in words, where RE2 does not take it, or where every text fits it."""
    try:
        fits = pc.match_substring_regex(pa.array(["", "\N{SNOWMAN}"]), pattern)
    except pa.ArrowInvalid as error:
        reason = str(error).removeprefix("Invalid regular expression: ")
        raise ValueError(f"no regular expression of RE2 ({reason}), which has no look-around and no \\1") from None
    if all(fits.to_pylist()):
        raise ValueError("fits every text, an empty one too")
    return pattern


def rows_with(texts: pa.Array, pattern: str) -> list[int]:
    """The rows of `texts` (rows,) in which `pattern` occurs; none that are null."""
    fits = pc.fill_null(pc.match_substring_regex(texts, pattern), False)
    return [int(row) for row in np.flatnonzero(np.asarray(fits))]


def denied(texts: pa.Array, patterns: Sequence[str]) -> dict[int, str]:
    """Row of `texts` (rows,) -> which of `patterns` occur in it, how often, and from which character on."""
    told = dict[int, list[str]]()
    for number, pattern in enumerate(patterns):
        rows = rows_with(texts, pattern)
        found = texts.take(pa.array(rows, pa.int64()))
        counts = pc.count_substring_regex(found, pattern).to_pylist()
        starts = pc.find_substring_regex(found, pattern).to_pylist()
        for row, text, count, start in zip(rows, found.to_pylist(), counts, starts, strict=True):
            character = len(text.encode()[:start].decode())  # Arrow counts bytes
            times = "once" if count == 1 else f"{count:,} times"
            told.setdefault(row, []).append(f"patterns.{number} {times}, first at character {character:,}")
    return {row: "; ".join(parts) for row, parts in sorted(told.items())}


def pieces(texts: pa.Array, pattern: str) -> Iterator[tuple[int, list[str]]]:
    """(row, the text cut at each match) for the rows in which `pattern` occurs; odd pieces are the matches."""
    rows = rows_with(texts, pattern)
    mark = f"<{secrets.token_hex(8)}>"  # of no meaning and not to be guessed, so that it stands in no text
    marked = pc.replace_substring_regex(texts.take(pa.array(rows, pa.int64())), pattern, f"{mark}\\0{mark}")
    for row, text in zip(rows, marked.to_pylist(), strict=True):
        yield row, text.split(mark)

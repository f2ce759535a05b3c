"""Data about persons in columns of texts, known by its form: found, counted, and replaced.

A pattern of RE2 names candidates, and what is known of the form decides: check digits, lengths, ranges. So 16 digits
that fail Luhn's check are no card, and 12:30:45 is no address. What has no form of its own (names, streets) is for a
token-classification model. Counts are told, never what was found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, TypeAlias

import pyarrow as pa

from hfbatch.guards.patterns import pieces

Kind: TypeAlias = Literal["email", "iban", "credit_card", "ssn", "ip", "phone"]


class Span(NamedTuple):
    """Characters [start, stop) of a text."""

    start: int
    stop: int
    kind: str


class Candidate(NamedTuple):
    """What a pattern found, with the characters next to it ("" at an end of the text)."""

    text: str
    before: str
    after: str

    def stands_alone(self, start: int, stop: int) -> bool:
        """Whether no letter or digit touches the part [start, stop)."""
        left = self.text[start - 1] if start else self.before
        right = self.text[stop] if stop < len(self.text) else self.after
        return not left.isalnum() and not right.isalnum()


Parts: TypeAlias = Iterator[tuple[int, int]]  # [start, stop) of a candidate, in order, without overlaps


def found(texts: pa.Array, kinds: Collection[str]) -> dict[int, list[Span]]:
    """Where such data stands in `texts` (rows,), for the rows that have some; spans of two kinds may overlap."""
    spans = dict[int, list[Span]]()
    for kind, (pattern, parts) in _FORMS.items():
        for row, split in pieces(texts, pattern) if kind in kinds else ():
            if own := [Span(start, stop, kind) for start, stop in _real(split, parts)]:
                spans.setdefault(row, []).extend(own)
    return {row: spans[row] for row in sorted(spans)}


def merged(spans: Iterable[Span]) -> list[Span]:
    """In order and without overlaps: those that do become one, of the kind of the first or else the longer."""
    made = list[Span]()
    for span in sorted(spans, key=lambda span: (span.start, -span.stop)):
        if made and span.start < made[-1].stop:
            made[-1] = made[-1]._replace(stop=max(span.stop, made[-1].stop))
        else:
            made.append(span)
    return made


def hidden(text: str, spans: Iterable[Span]) -> str:
    """The text with [EMAIL], [IBAN] and so on in place of the spans, which are `merged`."""
    made, done = list[str](), 0
    for span in spans:
        made += [text[done : span.start], f"[{span.kind.upper()}]"]
        done = span.stop
    return "".join([*made, text[done:]])


def _real(split: list[str], parts: Callable[[Candidate], Parts]) -> Iterator[tuple[int, int]]:
    """What is real of the candidates (the odd pieces) of a text, as characters [start, stop) of it."""
    text, place = "".join(split), 0
    for number, piece in enumerate(split):
        after = place + len(piece)
        if number % 2:
            candidate = Candidate(piece, text[place - 1 : place] if place else "", text[after : after + 1])
            yield from ((place + start, place + stop) for start, stop in parts(candidate))
        place = after


def _whole(candidate: Candidate) -> Parts:
    yield 0, len(candidate.text)


_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}[0-9]{2}")
# Characters by country (ISO 13616, the registry of SWIFT).
_LENGTHS = {
    code[:2]: int(code[2:])
    for code in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
        "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
        "YE30"
    ).split()
}


def _ibans(candidate: Candidate) -> Parts:
    """As long as its country has them, with the remainder 1 modulo 97 (ISO 7064)."""
    done = 0
    for head in _IBAN.finditer(candidate.text):
        start, length = head.start(), _LENGTHS.get(head[0][:2], 0)
        places = [start + place for place, c in enumerate(candidate.text[start : start + 2 * length]) if c.isalnum()]
        if not length or start < done or len(places) < length:
            continue
        stop = places[length - 1] + 1
        written = "".join(candidate.text[place] for place in places[:length])
        if (
            candidate.stands_alone(start, stop)
            and int("".join(str(int(c, 36)) for c in written[4:] + written[:4])) % 97 == 1
        ):
            yield start, stop
            done = stop


_GROUPED = ((4, 4, 4, 4, 3), (4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 1))  # the longest first
_SHAPES = {4: _GROUPED} | {length: ((length,),) for length in range(13, 20)}  # by the digits of the first group
_BRANDS = (  # the first digits, and how many there are
    (re.compile(r"4"), {13, 16, 19}),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), {16}),
    (re.compile(r"3[47]"), {15}),
    (re.compile(r"30[0-5]|3[689]"), {14}),
    (re.compile(r"352[89]|35[3-8]|6011|64[4-9]|65|62"), {16, 17, 18, 19}),
)


def _cards(candidate: Candidate) -> Parts:
    """Digits in the groups of a card, with a known beginning, that pass Luhn's check (ISO/IEC 7812)."""
    groups, done = list(re.finditer("[0-9]+", candidate.text)), 0
    for number, first in enumerate(groups):
        if first.start() < done:
            continue
        for shape in _SHAPES.get(len(first[0]), ()):
            own = groups[number : number + len(shape)]
            digits = "".join(group[0] for group in own)
            if tuple(len(group[0]) for group in own) == shape and _is_card(digits):
                if candidate.stands_alone(first.start(), own[-1].end()):
                    done = own[-1].end()
                    yield first.start(), done
                break


def _is_card(digits: str) -> bool:
    known = any(beginning.match(digits) and len(digits) in lengths for beginning, lengths in _BRANDS)
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return known and (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _ssns(candidate: Candidate) -> Parts:
    """Numbers that were given out, or may be (https://www.ssa.gov/employer/randomization.html)."""
    area, group, serial = re.split("[ -]", candidate.text)
    given = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    if given and candidate.text[3] == candidate.text[6] and "-" not in (candidate.before, candidate.after):
        yield from _alone(candidate)


def _addresses(candidate: Candidate) -> Parts:
    """Addresses of version 4 and 6. `A::B` without a digit is a name in a program."""
    text = candidate.text.rstrip(".:") if not candidate.text.endswith("::") else candidate.text
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return
    digits = re.findall("[0-9A-Fa-f]", text)
    if address.version == 4 or (len(digits) > 2 and any(digit.isdigit() for digit in digits)):
        yield from (part for part in ((0, len(text)),) if candidate.stands_alone(*part) and candidate.before != ".")


def _phones(candidate: Candidate) -> Parts:
    """+ and 8 to 15 digits (E.164), a North American number, or 9 to 12 digits with a leading 0, in like groups."""
    text, international = candidate.text, "+" in candidate.text
    groups = list(re.finditer("[0-9]+", text))
    if not international and text.lstrip("(").startswith("0"):
        gaps = [text[a.end() : b.start()].strip("()") for a, b in pairwise(groups)]
        alike = next((number for number, gap in enumerate(gaps[1:], 2) if gap != gaps[1]), len(groups))
        groups = groups[:alike]
    low, high = (8, 15) if international else (9, 12)
    sizes = list(accumulate(len(group[0]) for group in groups))
    fit = [group.end() for group, size in zip(groups, sizes, strict=True) if low <= size <= high]
    if fit and not candidate.before.isalnum() and (fit[-1] < len(text) or not candidate.after.isalnum()):
        yield 0, fit[-1]


def _alone(candidate: Candidate) -> Parts:
    if candidate.stands_alone(0, len(candidate.text)):
        yield 0, len(candidate.text)


_LETTER = r"\p{L}\p{M}\p{N}"
_FORMS: Mapping[str, tuple[str, Callable[[Candidate], Parts]]] = {
    "email": (
        rf"""(?:[{_LETTER}.!#$%&'*+/=?^_`{{|}}~-]+|"[^"\n]{{1,64}}")@"""
        rf"(?:(?:[{_LETTER}-]+\.)+(?:xn--[a-z0-9-]+|[\p{{L}}\p{{M}}]{{2,}})|\[[0-9A-Fa-fIPv:.]+\])",
        _whole,
    ),
    "iban": (r"[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,}", _ibans),
    "credit_card": (r"[0-9](?:[ .-]?[0-9]){12,}", _cards),
    "ssn": (r"[0-9]{3}[ -][0-9]{2}[ -][0-9]{4}", _ssns),
    "ip": (r"[0-9]{1,3}(?:\.[0-9]{1,3}){3,}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*", _addresses),
    "phone": (
        r"\(?\+\(?[0-9](?:[ ()./\x{a0}-]{0,3}[0-9]){6,}"
        r"|\(0[1-9][0-9]{0,4}\) ?[0-9]{2,8}(?:[ -][0-9]{2,8}){0,3}"
        r"|(?:\b1[ .-])?(?:\([2-9][0-9]{2}\)[ -]?|\b[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b"
        r"|\b0[1-9][0-9]{0,3}(?:[ -][0-9]{2,8}){1,4}\b",
        _phones,
    ),
}

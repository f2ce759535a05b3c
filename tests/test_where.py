from __future__ import annotations

import datetime
import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.where import WhereError, columns_of, parse_where

UTC = datetime.UTC
TABLE = pa.table(
    {
        "stars": pa.array([1, 3, None, 5], pa.int8()),
        "lang": ["en", "de", "en", None],
        "text": pa.array(["a", "héé", None, "dddd"], pa.large_string()),
        "day": [datetime.date(2024, 1, day) for day in (1, 2, 3, 4)],
        "at": [datetime.datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)],
        "ok": [True, False, None, True],
        "my col": [1.5, 2.5, 3.5, 4.5],
        "a.b": [1, 2, 3, 4],
        "tags": [["x"], ["x", "y"], None, []],
    }
)


def rows(text: str) -> list[int]:
    numbered = TABLE.append_column("n", pa.array(range(4)))
    return numbered.filter(parse_where(text, TABLE.schema))["n"].to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stars >= 3", [1, 3]),
        ("stars >= 3 and lang == 'de'", [1]),
        ("stars == 5 or lang == 'en'", [0, 2, 3]),
        ("1 < stars <= 5", [1, 3]),
        ("not stars == 3", [0, 3]),
        ("stars != 3", [0, 3]),  # null is neither
        ("ok", [0, 3]),
        ("not ok", [1]),
        ("ok == True", [0, 3]),
        ("stars in [1, 5]", [0, 3]),
        ("stars in (-1, 1)", [0]),
        ("stars in []", []),
        ("lang not in ['en']", [1, 3]),
        ("lang in ['de', None]", [1, 3]),
        ("lang is None", [3]),
        ("stars is not None and lang is not None", [0, 1]),
        ("'h' in text", [1]),
        ("'h' not in text", [0, 2, 3]),
        ("text.startswith('h') or text.endswith('d')", [1, 3]),
        ("len(text) == 3", [1]),  # characters, not bytes
        ("len(tags) == 0", [3]),
        ("day >= '2024-01-03'", [2, 3]),
        ("day in ['2024-01-01']", [0]),
        ("at < '2024-01-02T00:00Z'", [0]),
        ("`my col` * 2 > 5", [2, 3]),
        ("`a.b` == 2", [1]),
        ("stars * 100 > 200", [1, 3]),  # int8 does not overflow
        ("stars / 2 == 1.5", [1]),
        ("(stars - 4) % 3 == 0", [0]),
        ("(stars - 4) % 3 == 2", [1]),  # -1 % 3 is 2, as in Python
        ("1 / (stars - 1) > 0", [1, 3]),  # by zero is null
        ("-stars < -2", [1, 3]),
        ("-3 < stars", [0, 1, 3]),
        ("True", [0, 1, 2, 3]),
        ("stars >= 3\n  and  # a folded YAML line\n  ok", [3]),
        ("lang == '`stars`'", []),
    ],
)
def test_an_expression_keeps_the_rows_for_which_it_is_true(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("strs > 3", "no column 'strs'", "write stars"),
        ("`my cl` > 3", "no column 'my cl'", "write `my col`"),
        ("lang == french", "no column 'french'", "'french' with quotes"),
        ("stars > 'x'", "\"stars > 'x'\" mixes types that do not go together (int8, string)", "stars is int8"),
        ("stars > 1 and (lang == 3 or ok)", "'lang == 3' mixes", "lang is string"),
        ("ok and stars", "'ok and stars' mixes", "stars is int8"),
        ("len(stars) > 1", "'len(stars)' mixes", "stars is int8"),
        ("'x' in stars", "mixes", "stars is int8"),
        ("lang + 1 > 2", "'lang + 1' mixes", "lang is string"),
        ("stars", "'stars' gives int8, not true or false", "stars >= 3"),
        ("stars + 1", "gives int64", "compare"),
        ("stars = 3", "is not an expression", "write =="),
        ("stars > 3 && ok", "is not an expression", "write and"),
        ("stars > 3 AND ok", "is not an expression", "small letters"),
        ("stars > 3 & ok", "not allowed", "write and"),
        ("stars == None", "not allowed", "is None"),
        ("stars is 3", "not allowed", "write =="),
        ("stars in lang", "not allowed", "column in ['a', 'b']"),
        ("stars in [1, 'a']", "several types", "one type"),
        ("day > 'soon'", "'soon' is not a date32", "2024-12-31"),
        ("at > '2024-01-02'", "is not a timestamp", "Z"),
        ("stars / 0 > 1", "divides by zero", "another number"),
        ("stars > 99999999999999999999", "too large", "64 bits"),
        ("", "empty", "stars >= 3"),
        ("((((", "never closed", "allowed: comparisons"),
        ("a" * 10_001, "10,001 characters", "earlier"),
        ("stars+" * 200 + "1 > 0", "nested over 100 deep", "in [..]"),
        ("-" * 5000 + "1 > 0", "", "allowed"),
        ("x\0 > 1", "null bytes", "allowed"),
    ],
)
def test_what_cannot_be_used_is_told_with_the_way_out(text: str, message: str, fix: str) -> None:
    with pytest.raises(WhereError) as caught:
        parse_where(text, TABLE.schema)
    assert message in caught.value.message
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "lang.__class__ == 'x'",
        "[stars for stars in [1]]",
        "(lambda: 1)()",
        "f'{stars}' == '1'",
        "(stars := 3) == 3",
        "stars[0] == 1",
        "lang.upper() == 'EN'",
        "stars ** 9 > 1",
        "b'x' == lang",
        "...",
        "1j == stars",
        "stars if ok else 1",
    ],
)
def test_nothing_else_of_python_has_a_meaning(text: str) -> None:
    with pytest.raises(WhereError, match="not allowed here") as caught:
        parse_where(text, TABLE.schema)
    assert "allowed: comparisons" in (caught.value.fix or "")


def test_the_columns_of_an_expression_are_all_names_but_functions() -> None:
    assert columns_of("len(text) > 3 and `my col` in [1.5] and lang == 'stars' and 1 < stars < len") == {
        *("text", "my col", "stars", "lang", "len")
    }


def test_a_thousand_terms_are_not_deep() -> None:
    text = " or ".join(f"stars=={number}" for number in range(5, 700))
    assert len(text) < 10_000
    assert rows(text) == [3]


def test_an_expression_travels_to_workers() -> None:
    expression = pickle.loads(pickle.dumps(parse_where("stars >= 3", TABLE.schema)))
    assert TABLE.filter(expression).num_rows == 2


WORDS = [
    *TABLE.schema.names,
    "`my col`",
    "and",
    "or",
    "not",
    "in",
    "is",
    "None",
    "'x'",
    "1",
    "-2.5",
    "(",
    ")",
    "[",
    "]",
]
SIGNS = [",", "==", "<", "+", "*", "/", "%", "-", "len(", ".startswith('a')", "`", "'", "\\", "#", "\n", "lambda", ":"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS + SIGNS), max_size=8).map(" ".join))
def test_any_text_is_a_filter_or_a_where_error(text: str) -> None:
    try:
        expression = parse_where(text, TABLE.schema)
    except WhereError:
        return
    assert TABLE.filter(expression).num_rows <= 4

"""Regular expressions over columns, on harmless texts and on such as are made to be slow."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.guards.patterns import check_pattern, denied, pieces, rows_with


def texts(*values):
    return pa.array(values, pa.large_string())


def test_a_text_is_denied_with_the_pattern_its_count_and_its_first_character():
    found = denied(
        texts("Please IGNORE previous, ignore all previous", "fine", None, "ünï: x"),
        ["(?i)ignore (all )?previous", "x"],
    )
    assert found == {
        0: "patterns.0 2 times, first at character 7",
        3: "patterns.1 once, first at character 5",
    }


def test_several_patterns_of_one_row_are_told_together_and_show_nothing_of_the_text():
    found = denied(texts("secret word secret"), ["word", "secret"])
    assert found == {0: "patterns.0 once, first at character 7; patterns.1 2 times, first at character 0"}


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(?:a?){500}a{500}", "(.*)(.*)(.*)x"])
def test_no_text_makes_a_pattern_slow(pattern):
    """With Python's own module each of these would take longer than anyone can wait."""
    long = "a" * 100_000
    assert set(denied(texts(long + "!", long[:200] + "b"), [check_pattern(pattern)])) <= {0, 1}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(abc", "missing )"),
        ("(?=x)a", "no look-around"),
        (r"(a)\1", "invalid escape sequence"),
        ("a{1001}", "repetition size"),
        ("a*", "fits every text"),
        ("", "fits every text"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["^$", "x", r"\bword\b", r"\p{Greek}", "(?i)ß"])
def test_a_pattern_that_some_texts_fit_is_returned(pattern):
    assert check_pattern(pattern) == pattern


@settings(deadline=None, max_examples=40)
@given(st.lists(st.none() | st.text(alphabet="ab <>é\0", max_size=12), max_size=6))
def test_pieces_are_the_text_and_every_second_one_is_what_python_finds(values):
    column, found = texts(*values), dict(pieces(texts(*values), "a+b?"))
    assert (
        sorted(found) == rows_with(column, "a+b?") == [row for row, text in enumerate(values) if text and "a" in text]
    )
    for row, split in found.items():
        assert "".join(split) == values[row]
        assert split[1::2] == re.findall("a+b?", values[row])

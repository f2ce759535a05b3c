"""How much a text repeats itself, in loops and in prose."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.guards.repetition import repetition, repetitive

WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=4), max_size=40)


def test_it_is_the_share_of_n_grams_that_stood_before():
    assert repetition("a b c d a b c d", 4) == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("a b a b a b", 2) == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    "text", ["", "one two three", "one two three four", "die Katze sitzt auf der Matte und schläft"]
)
def test_a_short_text_and_one_without_repetition_have_none(text):
    assert repetition(text, 4) == 0


@pytest.mark.parametrize("loop", ["the river ", "no! ", "好的。", "ไทย", "word\n", "- "])
def test_a_loop_is_nearly_all_repetition_in_every_script(loop):
    assert repetition(f"A fine beginning of some words. {loop * 100}", 4) > 0.8


def test_capitals_do_not_make_another_word():
    assert repetition("No no NO no No no", 2) == repetition("no no no no no no", 2) == 0.8


@settings(deadline=None, max_examples=40)
@given(WORDS, st.integers(1, 5))
def test_it_is_a_share_and_a_doubled_text_has_half_or_more(words, n):
    once, twice = repetition(" ".join(words), n), repetition(" ".join(words * 2), n)
    assert 0 <= once < 1
    grams = max(0, 2 * len(words) - n + 1)
    assert twice >= max(0, len(words) - n + 1) / max(grams, 1)


@settings(deadline=None, max_examples=40)
@given(st.sets(st.text("abcdefgh", min_size=1, max_size=4), max_size=40), st.integers(1, 5))
def test_different_words_repeat_nothing(words, n):
    assert repetition(" ".join(words), n) == 0


def test_rows_over_the_limit_are_told_with_their_share():
    texts = pa.array(["a b a b a b", None, "", "a b c d e f"], pa.large_string())
    assert repetitive(texts, 0.5, 2) == {0: "0.60 of its 2-grams stood before, the limit is 0.5"}
    assert repetitive(texts, 0.6, 2) == {}

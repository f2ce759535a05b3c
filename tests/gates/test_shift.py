"""Counts of labels and numbers, and how far two runs are apart: against definitions written out, and against numpy."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.gates import shift
from hfbatch.gates.shift import Labels, Numbers, TooManyLabels, compared, jensen_shannon, psi, tally_of

FLOATS = st.lists(st.floats(-1e9, 1e9) | st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0]), min_size=1, max_size=60)


def numbers(*parts):
    counted = Numbers()
    for part in parts:
        counted.add(np.array(part, dtype=np.float64))
    return counted


def labels(**counts):
    counted = Labels()
    counted.add(counts)
    return counted


@settings(deadline=None, max_examples=50)
@given(FLOATS, FLOATS, st.floats(0, 1))
def test_quantiles_are_numpys_and_do_not_depend_on_batches(one, other, share):
    values = np.array([*one, *other]) + 0.0
    expected = np.quantile(values, share, method="inverted_cdf")
    assert numbers(one, other).quantile(share) == numbers([*other, *one]).quantile(share) == expected
    assert numbers(one, other).mean == pytest.approx(values.mean(), abs=1e-6)


def test_more_different_numbers_than_are_kept_are_told_by_their_leading_bits(monkeypatch):
    monkeypatch.setattr(shift, "MOST_NUMBERS", 4096)
    values = np.random.default_rng(0).lognormal(size=20_000)
    counted, backwards = numbers(*np.array_split(values, 7)), numbers(*np.array_split(values[::-1], 3))
    assert len(counted.counted()[0]) <= 4096
    assert counted.counted()[1].sum() == 20_000
    for mine, other in zip(counted.counted(), backwards.counted(), strict=True):
        assert (mine == other).all(), "whatever the order"
    for share in (0.01, 0.5, 0.99):
        assert counted.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.005)
    assert psi(*compared(counted, numbers(values))) < 0.001, "one that is exact beside one that is not"


def test_what_is_not_finite_counts_nowhere_and_nothing_has_no_mean():
    counted = numbers([1.0, math.nan, math.inf])
    assert (counted.rows, counted.mean, counted.quantile(0.5)) == (1, 1.0, 1.0)
    assert (numbers().mean, numbers().quantile(0.5), Labels().share("a")) == (None, None, None)


def test_the_index_of_labels_is_its_definition():
    now, last = compared(labels(good=30, bad=70), labels(good=50, bad=50))
    by_hand = (0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5)
    assert psi(now, last) == pytest.approx(by_hand)
    assert psi(last, now) == pytest.approx(by_hand)
    middle = (0.4, 0.6)
    halves = [
        sum(p * math.log2(p / m) for p, m in zip(shares, middle, strict=True)) for shares in ((0.3, 0.7), (0.5, 0.5))
    ]
    assert jensen_shannon(now, last) == pytest.approx(sum(halves) / 2)


def test_alike_is_zero_and_nothing_in_common_is_one_bit():
    assert psi(*compared(labels(a=1, b=3), labels(a=10, b=30))) == pytest.approx(0)
    assert jensen_shannon(*compared(labels(a=1, b=3), labels(a=10, b=30))) == pytest.approx(0)
    assert jensen_shannon(*compared(labels(a=5), labels(b=7))) == pytest.approx(1)
    assert math.isfinite(psi(*compared(labels(a=5), labels(b=7)))), "an empty bin has a floor"


def test_a_label_of_one_row_in_a_million_moves_nothing():
    assert psi(*compared(labels(a=1_000_000, rare=1), labels(a=1_000_000))) < 1e-9


def test_numbers_are_compared_by_the_tenths_of_the_last_run():
    last = numbers(np.arange(1000))
    now, before = compared(numbers(np.arange(1000) + 100), last)
    assert before.tolist() == [100] * 10
    assert now.tolist() == [0, *[100] * 8, 200]
    assert psi(*compared(last, last)) == 0


@pytest.mark.parametrize("moved", [0.5, 1.5])
def test_a_column_that_had_one_value_shifts_to_either_side(moved):
    now, last = compared(numbers([moved] * 50), numbers([1.0] * 50))
    assert (now * last).sum() == 0
    assert psi(now, last) > 1


@settings(deadline=None, max_examples=50)
@given(FLOATS, FLOATS)
def test_both_measures_are_never_negative_and_each_row_is_in_one_bin(one, other):
    now, last = compared(numbers(one), numbers(other))
    assert (now.sum(), last.sum()) == (len(one), len(other))
    assert psi(now, last) >= 0
    assert 0 <= jensen_shannon(now, last) <= 1 + 1e-9


def test_texts_that_are_no_labels_are_told(monkeypatch):
    monkeypatch.setattr(shift, "MOST_LABELS", 3)
    with pytest.raises(TooManyLabels, match="over 3 different values"):
        labels(a=1, b=1, c=1, d=1)


@pytest.mark.parametrize(
    ("kind", "tally"),
    [
        (pa.string(), Labels),
        (pa.large_string(), Labels),
        (pa.bool_(), Labels),
        (pa.dictionary(pa.int32(), pa.string()), Labels),
        (pa.float32(), Numbers),
        (pa.int8(), Numbers),
        (pa.list_(pa.string()), type(None)),
        (pa.binary(), type(None)),
    ],
)
def test_what_counts_a_column_follows_its_type(kind, tally):
    assert type(tally_of(kind)) is tally

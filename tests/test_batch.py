import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hfbatch.batch import SMALLEST, cut, halve, pack_by_length, padded_tokens

lengths = st.lists(st.integers(0, 600), max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths, st.integers(1, 4096), st.integers(1, 64))
def test_every_sequence_is_in_exactly_one_batch_within_the_budget(lengths, max_tokens, max_rows):
    batches = pack_by_length(lengths, max_tokens, max_rows)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or padded_tokens(batch, lengths) <= max_tokens


@given(lengths, st.integers(1, 4096), st.integers(1, 64), st.randoms(use_true_random=False))
def test_sequences_of_different_kinds_never_share_a_batch(lengths, max_tokens, max_rows, random):
    kinds = np.array([random.randrange(4) for _ in lengths], dtype=np.int64)
    batches = pack_by_length(lengths, max_tokens, max_rows, kinds)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    longest = [max(1, int(lengths[batch].max())) for batch in batches]  # an empty one counts as of one token
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        assert len(set(kinds[batch].tolist())) == 1
        assert len(batch) <= max_rows
        assert len(batch) == 1 or padded_tokens(batch, lengths) <= max_tokens


def cut_for(lanes, lengths, max_tokens, packed=True):
    return list(cut(np.asarray(lengths), lambda: (max_tokens, 1024), None, packed, lanes))


@given(lengths, st.integers(1, 4096), st.integers(2, 8), st.booleans())
def test_for_several_lanes_no_batch_is_larger_and_none_is_left_out(lengths, max_tokens, lanes, packed):
    batches = cut_for(lanes, lengths, max_tokens, packed)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for batch in batches:
        tokens = int(np.maximum(lengths[batch], 1).sum()) if packed else padded_tokens(batch, lengths)
        assert len(batch) == 1 or tokens <= max_tokens


@given(st.lists(st.integers(1, 60), min_size=100, max_size=400), st.integers(512, 4096), st.integers(2, 8))
def test_lanes_that_take_the_next_batch_when_they_are_free_end_together(lengths, max_tokens, lanes):
    """To the smallest batch: a lane's time is its tokens."""
    lengths, busy = np.array(lengths), np.zeros(lanes)
    for batch in cut_for(lanes, lengths, max_tokens):
        busy[busy.argmin()] += lengths[batch].sum()
    assert busy.max() - busy.min() <= SMALLEST


def test_a_few_rows_are_dealt_to_all_lanes_and_batches_before_the_last_are_full():
    assert [len(batch) for batch in cut_for(1, [512] * 4, 2048)] == [4]
    assert [len(batch) for batch in cut_for(2, [512] * 4, 2048)] == [2, 1, 1]
    assert [len(batch) for batch in cut_for(2, [20] * 10, 2048)] == [10], "too few to share"
    assert [len(batch) for batch in cut_for(2, [64] * 200, 2048)][:5] == [32] * 5


def test_a_sequence_longer_than_the_budget_gets_its_own_batch():
    batches = pack_by_length(np.array([3, 900, 4]), max_tokens=100, max_rows=8)
    assert [batch.tolist() for batch in batches] == [[1], [2, 0]]


def test_the_longest_comes_first_and_equal_lengths_keep_their_order():
    batches = pack_by_length(np.array([2, 5, 2, 5]), max_tokens=10, max_rows=8)
    assert [batch.tolist() for batch in batches] == [[1, 3], [0, 2]]


def test_long_tailed_lengths_are_hardly_padded_even_in_a_small_shard():
    """The promise of at most 4 % padding on text with a long tail, for the smallest shard and the CPU's budget."""
    drawn = np.random.default_rng(0).lognormal(3.2, 1.3, size=1024)
    lengths = np.clip(drawn, 3, 512).astype(np.int64)
    batches = pack_by_length(lengths, 2048, 1024)
    padded = sum(padded_tokens(batch, lengths) for batch in batches)
    assert 1 - lengths.sum() / padded < 0.04
    assert len(batches) < 2 * padded / 2048


def test_equal_lengths_fill_the_budget():
    batches = pack_by_length(np.full(100, 20), max_tokens=400, max_rows=64)
    assert [len(batch) for batch in batches] == [20] * 5


def test_a_batch_ends_where_lengths_fall_steeply():
    """10 + 9 + 1 tokens: with the short one the batch would cost 30 for 20 real ones."""
    batches = pack_by_length(np.array([9, 1, 10]), max_tokens=64, max_rows=8)
    assert [batch.tolist() for batch in batches] == [[2, 0], [1]]


@given(st.lists(st.integers(1, 600), min_size=2, max_size=50))
def test_halves_are_two_that_share_nothing_and_lose_nothing(values):
    lengths = np.array(sorted(values, reverse=True))
    left, right = halve(np.arange(len(lengths)), lengths)
    assert min(len(left), len(right)) > 0
    assert [*left, *right] == list(range(len(lengths)))

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfbatch import columns as col
from hfbatch.errors import RowError
from hfbatch.sequences import Ragged, Sequences

PIECES = [("a.parquet", "v", 100, 103), ("b.parquet", "v", 0, 1), ("a.parquet", "w", 0, 2)]
TICKET = col.Ticket("s", 6, "digest", PIECES)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (0, "a.parquet row 100"),
        (2, "a.parquet row 102"),
        (3, "b.parquet row 0"),
        (4, "a.parquet row 0"),
        (5, "a.parquet row 1"),
    ],
)
def test_a_row_is_placed_in_the_file_it_was_read_from(row, place):
    assert TICKET.place(row) == place


def test_a_row_behind_the_last_piece_has_no_place():
    with pytest.raises(IndexError, match="shard s has no such row"):
        TICKET.place(6)


def test_a_ticket_survives_the_way_through_arrow_and_gathers_stats():
    table = TICKET.plus(read_s=0.5).on(pa.table({"x": [1, 2]}))
    back = col.ticket_of(table).plus(tokens=3)
    assert (back.shard, back.rows, back.place(3), dict(back.stats)) == (
        "s",
        6,
        "b.parquet row 0",
        {"read_s": 0.5, "tokens": 3},
    )
    assert col.ticket_of(back.on(table)).stats["tokens"] == 3


def test_rows_of_two_shards_in_one_block_are_refused():
    rows = pa.table({"x": [1, 2]})
    both = pa.concat_tables([TICKET.on(rows), col.Ticket("t", 2, "", []).on(rows)])
    with pytest.raises(AssertionError, match="rows of 2 shards"):
        col.ticket_of(both)


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(0, 50)))
def test_a_digest_tells_row_numbers_and_their_order_apart(one, other):
    assert (col.digest(np.array(one, np.int64)) == col.digest(np.array(other, np.int64))) == (one == other)


def test_a_digest_does_not_depend_on_how_the_numbers_are_stored():
    rows = np.arange(10)
    assert col.digest(rows[::2]) == col.digest(np.array([0, 2, 4, 6, 8], np.int32))


def test_a_column_is_added_or_replaced_in_its_place():
    table = pa.table({"a": [1], "b": [2]})
    assert col.with_column(table, "a", pa.array(["x"])).to_pydict() == {"a": ["x"], "b": [2]}
    assert col.with_column(table, "c", pa.array(["x"])).column_names == ["a", "b", "c"]


def test_an_earlier_error_stays():
    table = pa.table({col.ERROR: pa.array([None, "null_input: text is null", None])})
    made = col.with_errors(table, {0: RowError("a", "x"), 1: RowError("b", "y")})
    assert made[col.ERROR].to_pylist() == ["a: x", "null_input: text is null", None]


def test_sequences_of_a_block_are_found_by_their_prefix_and_not_by_the_users_columns():
    sequences = Sequences(np.array([0, 0, 2]), {"input_ids": Ragged.from_lists([[1], [2, 3], [4]])})
    table = pa.table({"input_ids": ["mine", "my", "own"], col.ERROR: pa.nulls(3, pa.string())})
    back = col.sequences_of(col.with_sequences(table, col.INPUT, sequences), col.INPUT)
    assert back.row.tolist() == [0, 0, 2]
    assert list(back.columns) == ["input_ids"]
    assert back.ragged("input_ids").values.tolist() == [1, 2, 3, 4]


def test_columns_that_count_their_sequences_differently_are_refused():
    """Read as one, they would give a row the values of its neighbour."""
    table = pa.table({col.ERROR: pa.nulls(2, pa.string())})
    table = col.with_sequences(table, col.INPUT, Sequences(np.array([0, 1]), {"a": np.array([1, 2])}))
    table = col.with_sequences(table, col.OUTPUT, Sequences(np.array([1]), {"b": np.array([3])}))
    with pytest.raises(AssertionError, match="sequences"):
        col.sequences_of(table, col.INPUT, col.OUTPUT)


@given(st.integers(0, 60), st.sets(st.integers(0, 59)))
def test_every_bad_row_is_found_and_every_good_one_goes_through_exactly_once_in_order(count, bad):
    rows = np.arange(count) * 7
    bad = {7 * row for row in bad if row < count}

    def work(index):
        if bad & set(index.tolist()):
            raise ValueError(f"bad one among {len(index)}")
        return index.tolist()

    parts, errors = col.isolate(work, rows, "failed")
    assert [row for _, made in parts for row in made] == [row for row in rows.tolist() if row not in bad]
    assert all(index.tolist() == made for index, made in parts)
    assert errors.keys() == bad
    assert {str(error) for error in errors.values()} <= {"failed: ValueError: bad one among 1"}


def test_a_row_error_keeps_its_own_code_and_a_good_block_is_worked_on_once():
    calls = []

    def work(index):
        calls.append(len(index))
        if 2 in index:
            raise RowError("too_loud", "row 2")

    assert col.isolate(work, np.array([0, 1]), "failed")[1] == {}
    assert calls == [2]
    _, errors = col.isolate(work, np.arange(4), "failed")
    assert {row: str(error) for row, error in errors.items()} == {2: "too_loud: row 2"}


def test_what_is_no_ones_row_passes_through():
    def work(index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        col.isolate(work, np.arange(4), "failed")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (KeyError(), "KeyError"),
        (OSError("x" * 999), "OSError: " + "x" * 300),
    ],
)
def test_an_exception_is_described_in_one_short_line(error, text):
    assert col.describe(error) == text


def test_a_panic_of_a_library_in_rust_is_a_rows_error_like_any_other():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    def work(rows):
        for row in rows:
            stride = 9 if row == 2 else 0  # as long as what is left for text: tokenizers asserts, which is a panic
            tokenizer.enable_truncation(max_length=4, stride=stride)
            tokenizer.encode("a a a a a a a a")

    parts, errors = col.isolate(work, np.arange(4), "failed")
    assert [rows.tolist() for rows, _ in parts] == [[0, 1], [3]]
    assert errors.keys() == {2}


def test_keys_tell_rows_apart_and_do_not_change_with_the_shard():
    whole = col.keys(TICKET, np.arange(6))
    assert len(set(whole.tolist())) == 6
    again = col.Ticket("t", 3, "other", [("b.parquet", "v", 0, 1), ("a.parquet", "w", 101, 103)])
    assert col.keys(again, np.array([0, 2])).tolist() == [whole[3], whole[2]]
    assert col.keys(again, np.array([2, 0])).tolist() == [whole[2], whole[3]]


def test_the_numbers_of_parts_are_added_and_of_peaks_and_times_the_extremes_taken():
    parts = [
        {"forward_s": 1.0, "peak_rss": 5.0, "first_s": 10.0, "last_s": 11.0, "actor": "a"},
        {"forward_s": 2.0, "peak_rss": 3.0, "first_s": 9.0, "last_s": 12.0, "actor": "a"},
    ]
    assert col.total(parts) == {"forward_s": 3.0, "peak_rss": 5.0, "first_s": 9.0, "last_s": 12.0}


def test_counts_of_parts_of_a_block_add_up_bin_by_bin():
    assert col.total([{"token_lengths": [1, 2]}, {}, {"token_lengths": [1, 0, 5]}]) == {"token_lengths": [2, 2, 5]}

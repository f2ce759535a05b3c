import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfbatch.sequences import Ragged, Sequences, scatter

lists = st.lists(st.lists(st.integers(0, 50_000), max_size=9), max_size=20)


@given(lists, st.randoms(use_true_random=False))
def test_take_gives_the_items_in_the_order_asked_for(items, random):
    ragged = Ragged.from_lists(items)
    index = [random.randrange(len(items)) for _ in range(7)] if items else []
    taken = ragged.take(np.array(index, dtype=np.int64))
    assert [list(taken[i]) for i in range(len(taken))] == [items[i] for i in index]


def test_long_items_are_taken_as_short_ones_are():
    rng = np.random.default_rng(0)
    items = [rng.normal(size=size).astype(np.float32) for size in (2000, 0, 300, 1, 2000)]
    index = np.array([4, 1, 0, 0, 2])
    taken = Ragged.from_arrays(items).take(index)
    assert taken.values.dtype == np.float32
    assert [taken[i].tolist() for i in range(5)] == [items[i].tolist() for i in index]


def test_only_sequences_equal_in_every_shape_are_of_one_kind():
    shapes = {"x.shape": np.array([[3, 4], [4, 3], [3, 4], [3, 4]]), "y.shape": np.array([[1], [1], [2], [1]])}
    kinds = Sequences(np.arange(4), {**shapes, "z": np.arange(4)}).shapes()
    assert [kinds[0] == kind for kind in kinds] == [True, False, False, True]
    assert kinds[1] != kinds[2]
    assert Sequences(np.arange(4), {"z": np.arange(4)}).shapes() is None


@given(st.lists(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=3), max_size=12))
def test_sequences_survive_the_way_through_arrow(rows):
    """Rows with no, one and several sequences; ragged, dense and boolean columns."""
    flat = [sequence for row in rows for sequence in row]
    row = np.array([i for i, sequences in enumerate(rows) for _ in sequences], dtype=np.int64)
    columns = {
        "input_ids": Ragged.from_lists(flat),
        "vector": np.arange(len(flat) * 6, dtype=np.float32).reshape(len(flat), 2, 3),
        "flag": np.array([len(sequence) > 1 for sequence in flat], dtype=bool),
    }
    back = Sequences.from_arrow(Sequences(row, columns).to_arrow(len(rows)))
    assert np.array_equal(back.row, row)
    assert [list(back.ragged("input_ids")[i]) for i in range(len(flat))] == flat
    assert back.dense("vector").shape == (len(flat), 2, 3)
    assert np.array_equal(back.dense("vector"), columns["vector"])
    assert np.array_equal(back.dense("flag"), columns["flag"])


def test_sequences_survive_a_slice_of_the_arrow_columns():
    sequences = Sequences(np.arange(4), {"input_ids": Ragged.from_lists([[1], [2, 3], [], [4, 5, 6]])})
    table = pa.table(sequences.to_arrow(4)).slice(1, 2)
    back = Sequences.from_arrow({"input_ids": table["input_ids"].chunk(0)})
    assert [list(back.ragged("input_ids")[i]) for i in range(2)] == [[2, 3], []]


@given(lists, st.integers(1, 5))
def test_scatter_undoes_any_cut_into_batches(items, size):
    order = np.random.default_rng(len(items)).permutation(len(items))
    ragged = Ragged.from_lists(items)
    cuts = [order[start : start + size] for start in range(0, len(order), size)]
    if not cuts:
        return
    back = scatter([(cut, ragged.take(cut)) for cut in cuts], len(items))
    assert [list(back[i]) for i in range(len(back))] == items


@pytest.mark.parametrize("index", [[0, 1], [0, 1, 1], [0, 1, 3]])
def test_scatter_refuses_a_lost_or_doubled_result(index):
    with pytest.raises(AssertionError, match="lost or doubled"):
        scatter([(np.array(index), np.zeros(len(index)))], 3)

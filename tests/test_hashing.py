"""Equal hashes where, and only where, rows are equal."""

import datetime
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfbatch.hashing import HASH, as_numbers, hash_rows

TYPES = {
    "text": (pa.string(), st.text(max_size=4)),
    "bytes": (pa.binary(), st.binary(max_size=4)),
    "number": (pa.int64(), st.integers(-3, 3)),
    "score": (pa.float32(), st.sampled_from([0.0, 0.5, -1.0])),
    "half": (pa.float16(), st.sampled_from([np.float16(0), np.float16(0.5)])),
    "flag": (pa.bool_(), st.booleans()),
    "texts": (pa.list_(pa.string()), st.lists(st.none() | st.text(max_size=2), max_size=3)),
    "pair": (pa.list_(pa.float32(), 2), st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2)),
    "nested": (pa.list_(pa.list_(pa.int8())), st.lists(st.lists(st.integers(0, 2), max_size=2), max_size=3)),
    "chat": (
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        st.lists(st.fixed_dictionaries({"role": st.sampled_from("au"), "content": st.text(max_size=2)}), max_size=2),
    ),
    "day": (pa.date32(), st.dates(datetime.date(2026, 1, 1), datetime.date(2026, 1, 3))),
    "nothing": (pa.null(), st.none()),
}


@st.composite
def tables(draw):
    """Some rows of one to three columns, many of them equal."""
    names = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=3, unique=True))
    rows = draw(st.integers(0, 8))
    values = {name: st.lists(st.none() | TYPES[name][1], min_size=rows, max_size=rows) for name in names}
    return pa.table({name: pa.array(draw(values[name]), TYPES[name][0]) for name in names})


@given(tables())
def test_rows_share_a_hash_exactly_where_their_values_are_equal(table):
    hashes, rows = hash_rows(table).to_pylist(), [repr(row) for row in table.to_pylist()]
    assert [[one == other for other in hashes] for one in hashes] == [[one == other for other in rows] for one in rows]


@given(tables(), st.data())
def test_a_hash_is_of_the_row_alone_and_not_of_its_place_its_neighbours_or_the_order_of_columns(table, data):
    drawn = data.draw(st.lists(st.integers(0, max(0, len(table) - 1)), max_size=8 if len(table) else 0))
    index = pa.array(drawn, pa.int64())
    names = data.draw(st.permutations(table.column_names))
    hashes = hash_rows(table)
    assert hash_rows(table.take(index).select(names)).to_pylist() == hashes.take(index).to_pylist()
    middle = len(table) // 2
    assert hash_rows(table.slice(middle)).to_pylist() == hashes.to_pylist()[middle:], "where a buffer has an offset"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["a", None]), pa.array(["a", None], pa.large_string())),
        (pa.array(["a", "b"]), pa.array(["a", "b"]).dictionary_encode()),
        (pa.array([["a"], None]), pa.array([["a"], None], pa.large_list(pa.large_string()))),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32())), pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))),
    ],
)
def test_how_arrow_holds_a_value_makes_no_difference(one, other):
    assert hash_rows(pa.table({"x": one})) == hash_rows(pa.table({"x": other}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": ["ab"], "y": ["c"]}, {"x": ["a"], "y": ["bc"]}),
        ({"x": ["a"]}, {"y": ["a"]}),
        ({"x": ["a"]}, {"x": [b"a"]}),
        ({"x": [""]}, {"x": pa.array([None], pa.string())}),
        ({"x": [["ab"]]}, {"x": [["a", "b"]]}),
        ({"x": [[["a"], []]]}, {"x": [[[], ["a"]]]}),
        ({"x": pa.array([1], pa.int64())}, {"x": pa.array([1], pa.int32())}),
        ({"x": [0]}, {"x": pa.array([None], pa.int64())}),
    ],
)
def test_what_a_model_would_see_otherwise_has_another_hash(one, other):
    assert hash_rows(pa.table(one)) != hash_rows(pa.table(other))


def test_what_arrow_keeps_behind_a_null_is_not_hashed():
    values = pa.array(["kept", "secret"])
    nulled = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x01"), *values.buffers()[1:]])
    assert hash_rows(pa.table({"x": nulled})) == hash_rows(pa.table({"x": ["kept", None]}))


def test_hashes_as_numbers_are_the_same_bits():
    chance = random.Random(0)
    hashes = pa.array([chance.randbytes(16) for _ in range(9)], HASH)
    numbers = as_numbers(hashes.slice(2, 5))
    assert numbers.shape == (5, 2)
    assert [row.tobytes() for row in numbers] == hashes.to_pylist()[2:7]
    assert as_numbers(pa.array([], HASH)).shape == (0, 2)

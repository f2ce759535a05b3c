"""Columns of texts, lists and chats, taken apart and put together."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.guards.passages import Passages, holds_text, utf8

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
CHATS = [
    [{"role": "user", "content": "hi"}, {"role": "system", "content": None}],
    None,
    [],
    [{"role": "a", "content": "yo"}],
]


@pytest.mark.parametrize(
    ("column", "texts", "row", "joined"),
    [
        (pa.array(["a", None, "b"]), ["a", None, "b"], [0, 1, 2], ["a", None, "b"]),
        (pa.chunked_array([["a"], [None, "b"]]), ["a", None, "b"], [0, 1, 2], ["a", None, "b"]),
        (pa.array([b"a", b"\xff"]), ["a", ""], [0, 1], ["a", ""]),
        (pa.array([["a", "b"], None, [], ["c", None]]), ["a", "b", "c", None], [0, 0, 3, 3], ["a\nb", None, "", "c\n"]),
        (pa.array([["x"], ["a"], None]).slice(1), ["a"], [0], ["a", None]),
        (pa.array(CHATS, CHAT), ["hi", None, "yo"], [0, 0, 3], ["hi\n", None, "", "yo"]),
        (pa.nulls(2), [None, None], [0, 1], [None, None]),
    ],
)
def test_the_texts_of_a_column_have_their_rows(column, texts, row, joined):
    passages = Passages(column)
    assert holds_text(column.type)
    assert passages.texts.to_pylist() == texts
    assert passages.row.tolist() == row
    assert passages.joined().to_pylist() == joined


def test_other_texts_come_back_in_the_same_lists_and_messages():
    assert Passages(pa.array(["a", None, "b"])).replaced({2: "new"}).to_pylist() == ["a", None, "new"]
    assert Passages(pa.array([["a", "b"], None, [], ["c"]])).replaced({1: "new"}).to_pylist() == [
        ["a", "new"],
        None,
        [],
        ["c"],
    ]
    made = Passages(pa.array(CHATS, CHAT)).replaced({2: "new"})
    assert made.to_pylist() == [*CHATS[:3], [{"role": "a", "content": "new"}]]
    made.validate(full=True)


def test_bytes_that_are_no_text_stay_what_they_are():
    """So that the row gets its error from where rows are checked."""
    made = Passages(pa.array([b"\xff", b"a@b.de"])).replaced({1: "new"})
    assert made.cast(pa.large_binary()).to_pylist() == [b"\xff", b"new"]
    assert utf8(made)[1] == [0]


def test_a_place_in_a_joined_row_is_one_in_its_texts():
    passages = Passages(pa.array([["skip"], ["abc", "de"]]))
    assert passages.joined()[1].as_py() == "abc\nde"
    assert list(passages.parts(1, 1, 3)) == [(1, 1, 3)]
    assert list(passages.parts(1, 2, 5)) == [(1, 2, 3), (2, 0, 1)]
    assert list(passages.parts(1, 3, 4)) == []


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.int8()), pa.struct([("content", pa.string())]), pa.bool_()])
def test_other_columns_hold_no_text(kind):
    assert not holds_text(kind)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.none() | st.lists(st.none() | st.text(max_size=4), max_size=3), max_size=5))
def test_a_column_without_changes_comes_back_as_it_was(rows):
    column = pa.array(rows, pa.list_(pa.string()))
    assert Passages(column).replaced({}).to_pylist() == rows
    assert [None if row is None else "\n".join(text or "" for text in row) for row in rows] == Passages(
        column
    ).joined().to_pylist()

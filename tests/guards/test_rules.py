"""What each rule finds in columns that models and people wrote."""

import numpy as np
import pyarrow as pa
import pytest

from hfbatch.guards.passages import Passages
from hfbatch.guards.rules import best_scores, classified, holds_scores, persons, redacted, told, too_long
from hfbatch.guards.spec import Pii
from hfbatch.tasks.scores import LABEL

ENTITY = pa.struct([("entity_group", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())])


def labels(*rows):
    return pa.chunked_array(
        [pa.array([row and [{"label": name, "score": score} for name, score in row] for row in rows], pa.list_(LABEL))]
    )


def entities(*rows):
    names = ENTITY.names
    return pa.chunked_array(
        [pa.array([row and [dict(zip(names, one, strict=True)) for one in row] for row in rows], pa.list_(ENTITY))]
    )


def test_characters_are_counted_and_not_bytes():
    texts = pa.array(["ééé", "abcd", None, ""], pa.large_string())
    assert too_long(texts, 3) == {1: "4 characters, the limit is 3"}
    assert too_long(pa.array(["x" * 12_345], pa.large_string()), 1000) == {0: "12,345 characters, the limit is 1,000"}


def test_the_surest_of_the_refused_labels_decides():
    found = classified(labels([("a", 0.6), ("b", 0.3)], [("b", 0.5), ("c", 0.25)], None, []), ["b", "c"], 0.5)
    assert found == {1: "b 0.50, the threshold is 0.5"}


def test_names_that_a_model_finds_count_by_label_and_score_and_join_what_has_a_form():
    texts = Passages(pa.array(["Ann Lee, ann.lee@x.org", "Paris", None]))
    made = entities([("PER", 0.9, 0, 7), ("PER", 0.8, 9, 16), ("PER", 0.2, 17, 18)], [("LOC", 0.9, 0, 5)], None)
    spans = persons(texts, Pii(labels=["PER"], kinds=["email"]), made)
    assert told(texts, spans) == {0: "1 PER, 1 email"}
    assert redacted(texts, spans).to_pylist() == ["[PER], [EMAIL]", "Paris", None]
    alone = persons(texts, Pii(kinds=[], threshold=0.85), made)
    assert redacted(texts, alone).to_pylist() == ["[PER], ann.lee@x.org", "[LOC]", None]


def test_a_name_in_a_list_is_replaced_in_its_own_text():
    texts = Passages(pa.array([["hi", "Ann"], None]))
    spans = persons(texts, Pii(kinds=[]), entities([("PER", 0.9, 3, 6)], None))
    assert redacted(texts, spans).to_pylist() == [["hi", "[PER]"], None]
    assert told(texts, spans) == {0: "1 PER"}


@pytest.mark.parametrize(
    ("column", "best"),
    [
        (pa.array([0.25, None], pa.float32()), [0.25, np.nan]),
        (pa.array([[0.25, 0.5], [], None, [None]], pa.list_(pa.float32())), [0.5, np.nan, np.nan, np.nan]),
    ],
)
def test_of_several_scores_the_best_counts(column, best):
    assert holds_scores(column.type)
    assert np.array_equal(best_scores(pa.chunked_array([column])), best, equal_nan=True)
    assert not holds_scores(pa.string())
    assert not holds_scores(pa.list_(LABEL))

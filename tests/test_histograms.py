"""Counts of a shard: right, bounded whatever the rows hold, and the same whether counted at once or in parts."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from hfbatch import histograms as hist

LABELS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
ENTITIES = pa.list_(pa.struct([("entity_group", pa.string()), ("score", pa.float32()), ("start", pa.int32())]))


def test_lengths_fall_into_powers_of_two_with_the_limit_in_its_own_bin():
    assert hist.length_bins(np.array([1, 2, 3, 4, 5, 8, 9, 512, 512])) == [1, 1, 2, 2, 1, 0, 0, 0, 0, 2]
    assert hist.length_bins(np.array([0])) == [1]
    assert hist.length_bins(np.zeros(0, dtype=np.int64)) == []


def test_there_are_at_most_sixteen_lengths():
    bins = hist.length_bins(np.array([2**14, 2**14 + 1, 10**9]))
    assert len(bins) == hist.LENGTHS
    assert bins[-2:] == [1, 2]


def test_a_label_and_its_score_are_counted():
    table = pa.table({"label": ["b", "a", "b", None], "score": pa.array([0.01, 0.99, 1.0, None], pa.float32())})
    made = hist.of_rows(table)
    assert list(made["labels"].items()) == [("b", 2), ("a", 1)]
    assert made["scores"] == [1] + [0] * 18 + [2]


def test_of_a_list_of_labels_the_best_counts():
    rows = [
        [{"label": "a", "score": 0.625}, {"label": "b", "score": 0.375}],
        [],
        None,
        [{"label": "b", "score": 0.925}],
    ]
    made = hist.of_rows(pa.table({"labels": pa.array(rows, LABELS)}))
    assert made["labels"] == {"a": 1, "b": 1}
    assert sum(made["scores"]) == 2
    assert made["scores"][12] == made["scores"][18] == 1
    apart = {"labels": [["x", "y"], ["y"]], "scores": pa.array([[0.9, 0.1], [0.5]], pa.list_(pa.float32()))}
    made = hist.of_rows(pa.table(apart))
    assert made["labels"] == {"x": 1, "y": 1}
    assert sum(made["scores"]) == 2


def test_all_that_was_found_in_a_row_counts():
    rows = [[{"entity_group": "PER", "score": 0.9, "start": 0}, {"entity_group": "LOC", "score": 0.8, "start": 9}], []]
    made = hist.of_rows(pa.table({"entities": pa.array(rows, ENTITIES)}))
    assert made["labels"] == {"PER": 1, "LOC": 1}
    assert sum(made["scores"]) == 2


def test_scores_of_a_ranked_list_all_count():
    made = hist.of_rows(pa.table({"scores": pa.array([[0.1, 0.9], [0.5]], pa.list_(pa.float32()))}))
    assert "labels" not in made
    assert sum(made["scores"]) == 3


def test_a_column_of_free_text_and_the_datasets_own_columns_are_not_counted():
    table = pa.table({"text": ["a"], "label": ["theirs"], "p_label": ["ours"], "embedding": pa.array([[1.0]])})
    assert hist.of_rows(table, "p_", keep=("text", "label")) == {"labels": {"ours": 1}}
    assert hist.of_rows(table, "", keep=("text", "label")) == {}


def test_a_column_that_happens_to_have_such_a_name_is_left_alone():
    assert hist.of_rows(pa.table({"label": [1, 2], "score": ["high", "low"]})) == {}
    assert hist.of_rows(pa.table({"labels": pa.array([[[1]]], pa.list_(pa.list_(pa.int64())))})) == {}


def test_many_and_long_labels_stay_few_and_short():
    table = pa.table({"label": [f"{number} " + "x" * 1000 for number in range(10_000)]})
    made = hist.of_rows(table)
    assert len(made["labels"]) == hist.LABELS
    assert len(json.dumps(made)) < 8192


def test_scores_that_are_no_probabilities_have_no_bins():
    assert hist.score_bins(pa.chunked_array([pa.array([0.5, 7.0], pa.float32())])) == []
    assert hist.score_bins(pa.chunked_array([pa.array([-0.5], pa.float32())])) == []
    assert sum(hist.score_bins(pa.chunked_array([pa.array([1.0000001, -1e-7], pa.float32())]))) == 2
    assert hist.score_bins(pa.chunked_array([pa.array([float("nan"), None], pa.float32())])) == [0] * 20


def test_the_first_message_of_each_code_is_kept_short():
    errors = ["too_long: 600 tokens", "too_long: 700 tokens", "null_input: text is null", "odd", "x: " + "y" * 999]
    counted, messages = hist.of_errors(errors)
    assert counted == {"too_long": 2, "null_input": 1, "odd": 1, "x": 1}
    assert (messages["too_long"], messages["odd"]) == ("600 tokens", "")
    assert len(messages["x"]) == 200
    assert len(hist.of_errors(f"code{number}: m" for number in range(99))[1]) == hist.MESSAGES


def test_parts_add_up_to_the_whole():
    lengths = np.array([1, 5, 5, 30, 2000])
    parts = [hist.length_bins(lengths[:2]), [], hist.length_bins(lengths[2:])]
    assert hist.summed(parts) == hist.length_bins(lengths)
    assert hist.summed([]) == []
    assert hist.merged_labels([{"a": 1, "b": 5}, {"a": 9}]) == {"a": 10, "b": 5}
    assert hist.merged_scores([[1] * 20, [2] * 20]) == [3] * 20
    assert hist.merged_scores([[1] * 20, []]) == [], "one shard of logits says that the others are logits too"


def test_the_curve_goes_from_no_rows_to_all_and_never_down():
    curve = hist.finished([(100.0, 110.0, 50), (105.0, 120.0, 30), (120.0, 121.0, 20)])
    assert curve[0] == (0.0, 0)
    assert curve[-1] == (21.0, 100)
    assert dict(curve)[10.0] == 60, "all of the first shard, a third of the second"
    assert all(before[1] <= after[1] for before, after in pairwise(curve))


def test_the_curve_of_many_shards_has_two_hundred_points():
    curve = hist.finished([(number * 2.0, number * 2.0 + 3, 10) for number in range(5000)])
    assert len(curve) == hist.POINTS
    assert curve[-1][1] == 50_000


@pytest.mark.parametrize("spans", [[(5.0, 5.0, 10)], [(5.0, 4.0, 10)]], ids=["no time", "a clock set back"])
def test_a_shard_that_took_no_time_is_there_at_once(spans):
    assert hist.finished(spans)[-1][1] == 10


def test_no_shards_make_no_curve():
    assert hist.finished([]) == []

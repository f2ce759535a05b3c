"""The golden file: what is read of it, what is refused, and how far an output agrees with it."""

import json

import pyarrow as pa
import pytest

from hfbatch.gates import golden
from hfbatch.gates.golden import Agreement, GoldenProblem, read_golden
from hfbatch.gates.spec import GoldenSpec


def spec(path, **more):
    return GoldenSpec(path=str(path), key="id", min_accuracy=0.5, **more)


def agreed(right, found, **types):
    """`found`: (key, label) of the output's rows."""
    agreement = Agreement(right)
    for row in found:
        table = pa.table({"id": pa.array([row[0]], types.get("id")), "label": pa.array([row[1]], types.get("label"))})
        agreement.add(table["id"], table["label"])
    return agreement


def test_parquet_csv_and_json_lines_say_the_same(tmp_path, write_parquet):
    rows = {"id": [7, 8], "label": ["yes", "no"]}
    parquet = write_parquet("g.parquet", {**rows, "more": [1.5, 2.5]})
    (tmp_path / "g.csv").write_text("id,label\n7,yes\n8,no\n")
    (tmp_path / "g.jsonl").write_text(
        "".join(json.dumps({"id": n, "label": v}) + "\n" for n, v in zip(*rows.values(), strict=True))
    )
    for path in (parquet, tmp_path / "g.csv", tmp_path / "g.jsonl"):
        assert read_golden(spec(path)) == {"7": "yes", "8": "no"}


def test_a_key_with_leading_zeros_stays_as_it_is_written(tmp_path):
    (tmp_path / "g.csv").write_text("id,label\n007,yes\n")
    assert read_golden(spec(tmp_path / "g.csv")) == {"007": "yes"}


def test_the_right_label_may_stand_under_another_name(write_parquet):
    path = write_parquet("g.parquet", {"id": ["a"], "people": ["yes"]})
    assert read_golden(spec(path, truth="people")) == {"a": "yes"}


@pytest.mark.parametrize(
    ("columns", "key", "message"),
    [
        ({"key": ["a"], "label": ["x"]}, "key", r"has no column 'id'"),
        ({"id": ["a"], "truth": ["x"]}, "label", r"has no column 'label'"),
        ({"id": ["a"], "label": [["x"]]}, "label", r"column 'label' of the golden file is list"),
        ({"id": ["a", "a"], "label": ["x", "y"]}, "path", r"id 'a' is twice"),
        ({"id": ["a", None], "label": ["x", "y"]}, "path", r"row 1 of the golden file has no id"),
        ({"id": ["a", "b"], "label": ["x", None]}, "path", r"row 1 of the golden file has no label"),
        ({"id": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "path", "has no rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_the_key_that_names_it(columns, key, message, write_parquet):
    with pytest.raises(GoldenProblem, match=message) as refused:
        read_golden(spec(write_parquet("g.parquet", columns)))
    assert refused.value.key == key


def test_a_file_that_is_not_there_or_too_large_is_told(tmp_path, write_parquet, monkeypatch):
    with pytest.raises(GoldenProblem, match="does not exist") as refused:
        read_golden(spec(tmp_path / "g.parquet"))
    assert refused.value.key == "path"
    monkeypatch.setattr(golden, "MOST_ROWS", 1)
    with pytest.raises(GoldenProblem, match="more than 1 rows"):
        read_golden(spec(write_parquet("g.parquet", {"id": ["a", "b"], "label": ["x", "y"]})))


def test_accuracy_and_macro_f1_are_their_definitions():
    right = {"1": "a", "2": "a", "3": "a", "4": "b"}
    agreement = agreed(right, [("1", "a"), ("2", "b"), ("3", "c"), ("4", "b"), ("5", "a")])
    assert agreement.accuracy == 2 / 4
    a, b, c = 2 * 1 / (3 + 1), 2 * 1 / (1 + 2), 0
    assert agreement.f1 == pytest.approx((a + b + c) / 3)
    assert agreement.missing == []


def test_a_row_without_a_label_is_wrong_and_one_that_is_not_there_is_missing():
    agreement = agreed({"1": "a", "2": "a"}, [("1", None)], label=pa.string())
    assert (agreement.accuracy, agreement.f1, agreement.missing) == (0, 0, ["2"])
    nothing = agreed({"1": "a"}, [("9", "a")])
    assert (nothing.accuracy, nothing.f1, nothing.missing) == (None, None, ["1"])


def test_keys_are_compared_as_text_whatever_their_types():
    right = {"1": "true"}
    assert agreed(right, [(1, True)], id=pa.int64(), label=pa.bool_()).accuracy == 1
    assert agreed(right, [("1", "true")], label=pa.dictionary(pa.int32(), pa.string())).accuracy == 1

"""Frames of every library, read as Arrow and given back with more columns."""

import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hfbatch.errors import SpecError
from hfbatch.frames import ArrowFrame, DatasetFrame, PandasFrame, PolarsFrame, open_frame

COLUMNS = {"id": [3, 1, 2], "text": ["one", None, "three"]}
MADE = pa.table(
    {
        "label": pa.array(["a", None, "c"]),
        "score": pa.array([0.5, None, 0.25], pa.float32()),
        "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "count": pa.array([7, None, 9]),
        "model_id": pa.DictionaryArray.from_arrays(pa.array([0, 0, 0], pa.int32()), pa.array(["m"])),
    }
)
FRAMES = {
    "pandas": (pd.DataFrame, PandasFrame),
    "polars": (pl.DataFrame, PolarsFrame),
    "pyarrow": (pa.table, ArrowFrame),
    "datasets": (datasets.Dataset.from_dict, DatasetFrame),
}


def rows_of(frame):
    if isinstance(frame, pd.DataFrame):
        return pa.Table.from_pandas(frame, preserve_index=False).to_pylist()
    if isinstance(frame, pl.DataFrame):
        return frame.to_dicts()
    return frame.to_pylist() if isinstance(frame, pa.Table) else list(frame)


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_of_each_kind_comes_back_with_the_columns_behind_its_own(name):
    make, kind = FRAMES[name]
    frame = make(COLUMNS)
    opened = open_frame(frame)
    assert isinstance(opened, kind)
    assert (opened.names, opened.rows) == (["id", "text"], 3)
    whole = opened.plus(MADE)
    assert type(whole) is type(frame)
    assert open_frame(whole).names == ["id", "text", *MADE.column_names]
    assert rows_of(whole) == [
        {"id": 3, "text": "one", "label": "a", "score": 0.5, "vector": [1, 2], "count": 7, "model_id": "m"},
        {"id": 1, "text": None, "label": None, "score": None, "vector": None, "count": None, "model_id": "m"},
        {"id": 2, "text": "three", "label": "c", "score": 0.25, "vector": [3, 4], "count": 9, "model_id": "m"},
    ]
    assert open_frame(frame).names == ["id", "text"]


@pytest.mark.parametrize("name", FRAMES)
def test_rows_are_read_in_order_and_only_those_asked_for(name):
    opened = open_frame(FRAMES[name][0](COLUMNS))
    types = opened.types(["text"])
    assert types.field("text").type in (pa.string(), pa.large_string())
    table, errors = opened.read(types, 1, 3)
    assert table.schema == types
    assert table["text"].num_chunks == 1
    assert (table.to_pydict(), errors) == ({"text": [None, "three"]}, {})


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_without_rows_gets_typed_columns(name):
    opened = open_frame(FRAMES[name][0]({"text": pa.array([], pa.string())} if name == "pyarrow" else {"text": []}))
    whole = open_frame(opened.plus(MADE.slice(0, 0)))
    assert (whole.names, whole.rows) == (["text", *MADE.column_names], 0)
    assert pa.types.is_floating(whole.types(["score"]).field("score").type)


def test_a_pandas_frame_keeps_its_index_and_the_types_of_its_columns():
    frame = pd.DataFrame(
        {
            "text": pd.Series(["a", "b", "c"], dtype="category"),
            "when": pd.to_datetime(["2026-01-01"] * 3, utc=True),
            "whole": pd.array([1, None, 3], dtype="Int64"),
            0: [1.5, 2.5, 3.5],
        }
    )
    frame.index = pd.Index(["x", "x", "y"], name="key")
    frame.attrs["source"] = "a survey"
    before = frame.copy(deep=True)
    whole = PandasFrame(frame).plus(MADE)
    pd.testing.assert_frame_equal(whole[list(frame.columns)], before)
    pd.testing.assert_frame_equal(frame, before)
    assert whole.index.equals(frame.index)
    assert whole.index.name == "key"
    assert whole.attrs == {"source": "a survey"}


def test_new_columns_of_pandas_have_one_type_whether_a_row_failed_or_not():
    frame = pd.DataFrame({"text": ["a"]})
    good, bad = (PandasFrame(frame).plus(MADE.slice(row, 1)) for row in (0, 1))
    assert good.dtypes.to_dict() == bad.dtypes.to_dict()
    assert str(good.dtypes["count"]) == "Int64"
    assert good["score"].dtype == np.float32


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["a", None, "b"], dtype=object),
        pd.Series(["a", None, "b"], dtype="string"),
        pd.Series(["a", None, "b"], dtype="category"),
        pd.Series(["a", None, "b"], dtype=pd.ArrowDtype(pa.string())),
        pd.Series(["a", np.nan, "b"], dtype=object),
    ],
    ids=str,
)
def test_text_of_any_pandas_type_is_read_as_text(values):
    opened = PandasFrame(pd.DataFrame({"text": values}))
    table, errors = opened.read(opened.types(["text"]), 0, 3)
    assert (table.to_pydict(), errors) == ({"text": ["a", None, "b"]}, {})


def test_a_value_of_another_type_is_an_error_of_its_row():
    opened = PandasFrame(pd.DataFrame({"text": ["a", 5, "b", None, {"c": 1}]}))
    table, errors = opened.read(opened.types(["text"]), 1, 5)
    assert table.to_pydict() == {"text": [None, "b", None, None]}
    assert {row: str(error) for row, error in errors.items()} == {
        0: "wrong_type: text is int, not string",
        3: "wrong_type: text is dict, not string",
    }


def test_a_block_has_the_type_of_the_column_even_where_it_holds_only_nulls():
    opened = PandasFrame(pd.DataFrame({"text": [None] * 3 + ["a"]}, dtype=object))
    table, _ = opened.read(opened.types(["text"]), 0, 2)
    assert table.schema.field("text").type == pa.string()


def test_objects_that_arrow_does_not_know_are_refused_with_what_to_do():
    opened = PandasFrame(pd.DataFrame({"image": [object(), object()]}))
    with pytest.raises(SpecError, match="column 'image' holds object, which has no Arrow type\n  fix: make it text"):
        opened.types(["image"])


def test_a_dataset_keeps_its_order_features_and_format():
    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["x", "y"])})
    frame = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "kind": [0, 1, 0, 1]}, features=features)
    frame = frame.select([2, 0, 3]).with_format("numpy", columns=["kind"], output_all_columns=True)
    opened = DatasetFrame(frame)
    assert opened.read(opened.types(["text"]), 0, 2)[0].to_pydict() == {"text": ["c", "a"]}
    whole = opened.plus(MADE)
    assert whole.features["kind"] == features["kind"]
    assert (whole.format["type"], whole.format["columns"]) == ("numpy", ["kind"])
    assert [(row["text"], row["label"]) for row in whole] == [("c", "a"), ("a", None), ("d", "c")]


def test_a_table_keeps_its_metadata_and_dictionaries_are_read_as_their_values():
    table = pa.table({"text": pa.chunked_array([["a"], ["b", "a"]]).dictionary_encode()}).replace_schema_metadata(
        {"k": "v"}
    )
    opened = ArrowFrame(table)
    assert opened.types(["text"]) == pa.schema([("text", pa.string())])
    assert opened.read(opened.types(["text"]), 0, 3)[0].to_pydict() == {"text": ["a", "b", "a"]}
    assert opened.plus(MADE).schema.metadata == {b"k": b"v"}
    assert pa.types.is_dictionary(opened.plus(MADE).schema.field("text").type)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (pd.Series(["a"]), r"give frame\.to_frame\(\)"),
        (pl.LazyFrame({"text": ["a"]}), r"give frame\.collect\(\)"),
        (datasets.DatasetDict(), r"give one split of it, such as frame\['train'\]"),
        ([{"text": "a"}], r"give pandas\.DataFrame\(frame\)"),
        ("reviews.csv", r"read the file first; or for files of any size: hfbatch\.run"),
        (np.zeros(3), "give one of these"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_frame_is_told_what_to_give_instead(given, fix):
    with pytest.raises(SpecError, match=f"is no frame; those are pandas.DataFrame, .*\n  fix: {fix}"):
        open_frame(given)


def test_a_library_is_not_imported_for_its_frames():
    heavy = "{'pandas', 'polars', 'datasets', 'ray', 'torch', 'transformers'}"
    code = f"import sys, hfbatch.frames, hfbatch\nassert not {heavy} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

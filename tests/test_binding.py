"""Jobs against the columns of a real file, through a real checkpoint's config."""

import pyarrow as pa
import pytest

from hfbatch import hub
from hfbatch.binding import LINEAGE, bind
from hfbatch.errors import SpecError
from hfbatch.load import load_job
from tests.models import bert

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("review", pa.string()),
        ("summary", pa.large_string()),
        ("raw", pa.binary()),
        ("s", pa.int8()),
    ]
)


@pytest.fixture
def job(classifier):
    return {
        "task": "text-classification",
        "model": {"id": str(classifier)},
        "input": {"path": "in.parquet", "columns": {"text": "review"}},
        "output": {"path": "out"},
    }


def bound(job, schema=SCHEMA):
    spec = load_job(job)
    return bind(spec, [hub.resolve_model(step.model) for step in spec.each], schema)


def problems(job, schema=SCHEMA):
    with pytest.raises(SpecError) as info:
        bound(job, schema)
    return {problem.key: (problem.message, problem.fix) for problem in info.value.problems}


def test_kept_columns_come_first_then_the_tasks_then_error_and_lineage(job):
    made = bound(job)
    assert made.output_schema.names == [*SCHEMA.names, "label", "score", "truncated", "error", *LINEAGE]
    assert made.input_schema == SCHEMA
    assert dict(made.step.reads) == {"text": "review"}


def test_only_columns_that_are_kept_read_or_filtered_on_are_read_from_the_files(job):
    job["input"] |= {"keep": ["id"], "where": "s > 3"}
    made = bound(job)
    assert made.input_schema.names == ["id", "review", "s"]
    assert made.output_schema.names[:2] == ["id", "label"]


def test_keep_sets_the_order_of_the_output(job):
    job["input"]["keep"] = ["summary", "id"]
    assert bound(job).output_schema.names[:2] == ["summary", "id"]


def test_nothing_need_be_kept(job):
    job["input"]["keep"] = []
    assert bound(job).output_schema.names[0] == "label"


@pytest.mark.parametrize("column", ["review", "summary", "raw"])
def test_text_is_read_from_strings_large_strings_and_bytes(job, column):
    job["input"]["columns"] = {"text": column}
    assert dict(bound(job).step.reads) == {"text": column}


def test_a_column_that_is_not_there_points_at_its_key_with_the_nearest_name(job):
    job["input"]["columns"] = {"text": "reviews"}
    assert problems(job) == {"input.columns.text": ("the input has no column 'reviews'", "write 'review'")}


def test_a_column_like_no_other_gets_the_list_of_those_that_are_there(job):
    job["input"]["columns"] = {"text": "zzz"}
    assert problems(job) == {
        "input.columns.text": ("the input has no column 'zzz'", "the input has id, review, summary, raw, s")
    }


def test_an_input_that_is_not_mapped_says_how_to_map_it(job):
    del job["input"]["columns"]
    message, fix = problems(job)["input.columns.text"]
    assert message == "the input has no column 'text'"
    assert fix.endswith("or map it: columns: {text: YOUR_COLUMN}")


def test_a_column_of_another_type_names_both(job):
    job["input"]["columns"] = {"text": "id"}
    message, _ = problems(job)["input.columns.text"]
    assert message == "column 'id' is int64, text-classification reads text"


def test_an_input_the_task_does_not_have_is_a_problem(job):
    job["input"]["columns"] = {"text": "review", "txt_pair": "summary"}
    message, fix = problems(job)["input.columns.txt_pair"]
    assert message == "text-classification has no input 'txt_pair'"
    assert fix.startswith("the task reads text, text_pair;")


def test_an_optional_input_is_read_when_it_is_mapped_and_checked_as_any_other(job):
    job["input"]["columns"]["text_pair"] = "summary"
    assert dict(bound(job).step.reads) == {"text": "review", "text_pair": "summary"}
    job["input"]["columns"]["text_pair"] = "sumary"
    assert problems(job)["input.columns.text_pair"] == ("the input has no column 'sumary'", "write 'summary'")


def test_a_kept_column_that_is_not_there_points_at_its_place_in_the_list(job):
    job["input"]["keep"] = ["id", "revew", "s"]
    assert problems(job) == {"input.keep.1": ("the input has no column 'revew'", "write 'review'")}


def test_a_column_kept_twice_is_a_problem(job):
    job["input"]["keep"] = ["id", "s", "id"]
    assert problems(job) == {"input.keep.2": ("column 'id' is listed twice", "remove one of them")}


def test_a_filter_on_a_column_that_is_not_there_points_at_where(job):
    job["input"]["where"] = "stars > 3"
    message, _ = problems(job)["input.where"]
    assert "stars" in message


@pytest.mark.parametrize(("keep", "key"), [("all", "output.prefix"), (["id", "label"], "input.keep.1")])
def test_a_kept_column_with_the_name_of_a_prediction_asks_for_a_prefix(job, keep, key):
    schema, job["input"]["keep"] = SCHEMA.append(pa.field("label", pa.string())), keep
    message, fix = problems(job, schema)[key]
    assert message == "the output would have two columns 'label': one kept from the input, one from hfbatch"
    assert fix == "set output.prefix, such as 'pred_'"
    job["output"]["prefix"] = "pred_"
    assert "pred_label" in bound(job, schema).output_schema.names


@pytest.mark.parametrize("name", ["error", *LINEAGE])
def test_a_kept_column_with_a_name_of_hfbatchs_own_must_be_left_out(job, name):
    schema = SCHEMA.append(pa.field(name, pa.string()))
    message, fix = problems(job, schema)["output.prefix"]
    assert f"two columns '{name}'" in message
    assert fix == "leave it out of input.keep"
    job["input"]["keep"] = list(SCHEMA.names)
    assert bound(job, schema).output_schema.names.count(name) == 1


def test_a_prefix_cannot_make_a_prediction_take_a_name_of_hfbatchs_own(job, monkeypatch):
    """No task writes such a name today; one that did would lose its column without a word."""
    from hfbatch.tasks.text_classification import TextClassification

    monkeypatch.setattr(TextClassification, "writes", lambda self: pa.schema([("id", pa.string())]))
    job["output"]["prefix"], job["input"]["keep"] = "model_", ["s"]
    message, fix = problems(job)["output.prefix"]
    assert "two columns 'model_id'" in message
    assert fix == "write another prefix"


def test_a_prefix_that_makes_a_prediction_clash_with_a_kept_column_is_a_problem(job):
    schema, job["output"]["prefix"] = SCHEMA.append(pa.field("my_score", pa.string())), "my_"
    assert "two columns 'my_score'" in problems(job, schema)["output.prefix"][0]


@pytest.mark.parametrize("keep", ["all", ["_hfbatch_row"]])
def test_a_column_with_a_name_that_hfbatch_works_with_is_refused(job, keep):
    schema, job["input"]["keep"] = SCHEMA.append(pa.field("_hfbatch_row", pa.int64())), keep
    [(key, (message, fix))] = problems(job, schema).items()
    assert key == ("input.path" if keep == "all" else "input.keep.0")
    assert message == "column '_hfbatch_row': names that begin with _hfbatch are hfbatch's own"
    assert fix == "leave it out of input.keep, or rename it"
    job["input"]["keep"] = ["id"]
    assert "_hfbatch_row" not in bound(job, schema).input_schema.names


def test_all_problems_come_at_once_with_their_lines(job, tmp_path, classifier):
    path = tmp_path / "job.yaml"
    path.write_text(
        f"""task: text-classification
model: {{id: {classifier}}}
input:
  path: in.parquet
  columns:
    text: revew
    text_pair: id
  keep: [id, id, nothing]
  where: stars > 3
output: {{path: out}}
"""
    )
    with pytest.raises(SpecError) as info:
        bound(path)
    assert [(problem.key, problem.place.removeprefix(str(path))) for problem in info.value.problems] == [
        ("input.columns.text", ":6:5"),
        ("input.columns.text_pair", ":7:5"),
        ("input.keep.1", ":8:14"),
        ("input.keep.2", ":8:18"),
        ("input.where", ":9:3"),
    ]


def test_params_that_the_checkpoint_cannot_serve_are_pointed_at(job, masked):
    job |= {"task": "fill-mask", "params": {"targets": ["good"]}, "model": {"id": str(masked)}}
    assert bound(job).task == "fill-mask"
    job["params"] = {"targets": [""]}
    message, fix = problems(job)["params.targets"]
    assert message == "params.targets: '' has no token in this model's vocabulary"
    assert fix == "see hfbatch tasks fill-mask"


@pytest.mark.parametrize(
    ("written", "saved", "expected"),
    [("auto", "bfloat16", "bfloat16"), ("auto", None, "float32"), ("float16", "bfloat16", "float16")],
)
def test_dtype_auto_is_what_the_checkpoint_was_saved_in(job, tmp_path, written, saved, expected):
    import json

    model = bert(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config.pop("dtype", None)
    (model / "config.json").write_text(json.dumps(config | ({"dtype": saved} if saved else {})))
    job["model"] = {"id": str(model), "dtype": written}
    assert bound(job).step.dtype == expected

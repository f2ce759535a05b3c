"""enrich: predictions as columns of a frame, with models that stay."""

import os
import pickle
import shutil
import signal
import threading
from dataclasses import replace

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import hfbatch
from hfbatch import addition, bar, enrichment, resident
from hfbatch.addition import Request, make_addition
from hfbatch.errors import SpecError, SystemicError
from hfbatch.frames import ArrowFrame
from hfbatch.hub import resolve_model
from hfbatch.raydata import Enricher
from hfbatch.spec import Machine
from hfbatch.tasks.feature_extraction import FeatureExtraction
from hfbatch.tasks.text_classification import TextClassification
from tests.inline import plan_of, run_inline
from tests.models import sentences

ONE = {"threads_per_actor": 1}  # forwards run in the thread that asks


@pytest.fixture
def models(monkeypatch):
    """The tasks of what is loaded, from none on."""
    from hfbatch import chain

    loads, load = [], chain.Predict
    monkeypatch.setattr(chain, "Predict", lambda step, *rest: loads.append(step.task) or load(step, *rest))
    hfbatch.shutdown()
    return loads


@pytest.fixture(scope="module", autouse=True)
def _no_model_is_left():
    yield
    hfbatch.shutdown()


@pytest.fixture
def frame():
    return pd.DataFrame({"id": range(30), "text": sentences(30)})


@pytest.fixture
def labelled(classifier):
    """labelled(frame, **arguments): a call with the tiny classifier."""

    def call(frame, **arguments):
        return hfbatch.enrich(frame, **{"task": "text-classification", "model": classifier, **arguments})

    return call


def test_the_columns_are_those_of_a_job(frame, labelled, classifier, write_parquet, job_for):
    job = job_for("text-classification", classifier, write_parquet("in.parquet", pa.Table.from_pandas(frame)))
    expected = run_inline(plan_of(job)).to_pandas()
    found = labelled(frame, lineage=True)
    assert list(found.columns) == list(expected.columns)
    assert found.pop("run_id").nunique() == 1
    pd.testing.assert_frame_equal(found, expected.drop(columns="run_id"), check_dtype=False, atol=1e-5)


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_a_bad_row_has_nulls_and_its_error_and_the_others_results(labelled, kind):
    found = labelled(kind({"text": ["good", None, "bad film"], "n": [1, 2, 3]}))
    assert isinstance(found, kind if isinstance(kind, type) else pa.Table)
    rows = pa.table(found).to_pylist()
    assert [row["error"] for row in rows] == [None, "null_input: text is null", None]
    assert [row["label"] is None for row in rows] == [False, True, False]
    assert [row["n"] for row in rows] == [1, 2, 3]


def test_a_value_that_is_no_text_is_told_as_such(labelled):
    found = labelled(pd.DataFrame({"text": ["good", 7, "bad"]}))
    assert found["error"].dropna().to_dict() == {1: "wrong_type: text is int, not string"}
    assert found["label"].isna().tolist() == [False, True, False]


def test_blocks_make_no_difference(labelled, monkeypatch):
    frame = pd.DataFrame({"text": [*sentences(20), None, *sentences(9, seed=1)]}, index=range(30, 0, -1))
    whole = labelled(frame)
    monkeypatch.setattr(enrichment, "BLOCK_ROWS", 7)
    pd.testing.assert_frame_equal(labelled(frame), whole, atol=1e-5)
    assert whole["error"].dropna().index.tolist() == [10]


def test_a_frame_without_rows_gets_its_columns_and_loads_no_model(labelled, models):
    found = labelled(pl.DataFrame({"text": []}, schema={"text": pl.String}))
    assert found.schema == {
        "text": pl.String,
        "label": pl.String,
        "score": pl.Float32,
        "truncated": pl.Boolean,
        "error": pl.String,
    }
    assert not models


# models that stay


def test_a_second_call_finds_the_model_loaded(frame, labelled, models):
    first = labelled(frame)
    again = labelled(frame.rename(columns={"text": "body"}), column="body", prefix="second_", lineage=True)
    assert models == ["text-classification"]
    assert again["second_label"].tolist() == first["label"].tolist()
    assert '"input_columns":{"text":"body"}' in again["second_parameters"][0]


def test_other_params_are_another_model(frame, labelled, models):
    labelled(frame)
    labelled(frame, top_k=2)
    labelled(frame, on={"max_batch_tokens": 100})
    assert len(models) == 3


def test_the_last_two_models_stay(frame, labelled, models, encoder):
    labelled(frame)
    hfbatch.enrich(frame, task="feature-extraction", model=encoder)
    labelled(frame)
    assert models == ["text-classification", "feature-extraction"]
    labelled(frame, top_k=2)  # the one that was used longest ago goes
    labelled(frame)
    hfbatch.enrich(frame, task="feature-extraction", model=encoder)
    assert models == ["text-classification", "feature-extraction", "text-classification", "feature-extraction"]


def test_behind_warm_no_model_is_kept(frame, labelled, encoder, models):
    with hfbatch.warm(keep=1):
        labelled(frame)
        labelled(frame)
        hfbatch.enrich(frame, task="feature-extraction", model=encoder)
        assert len(resident.MODELS) == 1
    assert (len(resident.MODELS), resident.MODELS.keep) == (0, resident.KEEP)
    labelled(frame)
    hfbatch.shutdown()
    assert len(resident.MODELS) == 0
    assert models == ["text-classification", "feature-extraction", "text-classification"]


def test_models_leave_where_there_is_no_room_for_another(frame, labelled, encoder, models, monkeypatch):
    from hfbatch import engine

    load = engine.load_model

    def load_alone(*arguments):
        if len(resident.MODELS):
            raise torch.OutOfMemoryError("no room")
        return load(*arguments)

    labelled(frame)
    monkeypatch.setattr(engine, "load_model", load_alone)
    found = hfbatch.enrich(frame, task="feature-extraction", model=encoder)
    assert found["error"].isna().all()
    assert len(resident.MODELS) == 1


def test_a_model_that_has_changed_on_disk_is_another_model(frame, labelled, classifier, tmp_path, models):
    folder = shutil.copytree(classifier, tmp_path / "model")
    first = labelled(frame, model=folder, lineage=True)
    (folder / "README.md").write_text("changed")
    second = labelled(frame, model=folder, lineage=True)
    assert first["model_revision"][0] != second["model_revision"][0]
    assert len(models) == 2


def test_a_name_is_resolved_once_until_shutdown(frame, labelled, classifier, monkeypatch):
    asked = []

    def resolve(spec):
        asked.append(spec.id)
        return replace(resolve_model(spec.model_copy(update={"id": str(classifier)})), id=spec.id)

    monkeypatch.setattr(resident.hub, "resolve_model", resolve)
    labelled(frame, model="owner/name")
    labelled(frame, model="owner/name")
    hfbatch.shutdown()
    labelled(frame, model="owner/name")
    assert asked == ["owner/name"] * 2


def test_the_process_keeps_its_number_of_threads(frame, labelled):
    before = torch.get_num_threads()
    labelled(frame, on={"threads_per_actor": before + 1})
    assert torch.get_num_threads() == before


# Ctrl-C


def interrupting(monkeypatch, times, signals=1):
    """The forwards of `times` are those during which somebody presses Ctrl-C `signals` times."""
    forward, calls = TextClassification.forward, []

    def pressed(self, model, batch):
        calls.append(batch)
        if len(calls) in times:
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
        return forward(self, model, batch)

    monkeypatch.setattr(TextClassification, "forward", pressed)


@pytest.mark.parametrize("machine", [ONE, {"threads_per_actor": 2}])
def test_after_ctrl_c_the_model_is_still_there(frame, labelled, models, monkeypatch, machine):
    machine |= {"max_batch_tokens": 30}
    handler = signal.getsignal(signal.SIGINT)
    expected = labelled(frame, on=machine)
    interrupting(monkeypatch, {4})
    with pytest.raises(KeyboardInterrupt) as raised:
        labelled(frame, on=machine)
    assert raised.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is handler
    pd.testing.assert_frame_equal(labelled(frame, on=machine), expected, atol=1e-5)
    assert len(models) == 1


def test_ctrl_c_in_the_last_batch_is_not_lost(frame, labelled, monkeypatch):
    interrupting(monkeypatch, {1})
    with pytest.raises(KeyboardInterrupt):
        labelled(frame.head(1), on=ONE)


def test_a_second_ctrl_c_does_not_wait_and_the_model_is_loaded_anew(frame, labelled, models, monkeypatch):
    interrupting(monkeypatch, {2}, signals=2)
    with pytest.raises(KeyboardInterrupt):
        labelled(frame, on={**ONE, "max_batch_tokens": 30})
    assert len(resident.MODELS) == 0
    assert labelled(frame, on={**ONE, "max_batch_tokens": 30})["error"].isna().all()
    assert len(models) == 2


def test_another_thread_may_call(frame, labelled):
    found = []
    threads = [threading.Thread(target=lambda: found.append(labelled(frame))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pd.testing.assert_frame_equal(*found)


# what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"column": "txt"}, "column: the frame has no column 'txt'\n  fix: write 'text'; the frame has id, text"),
        ({"column": "id"}, "column.text: column 'id' is int64, text-classification reads text"),
        ({"column": {"text": "text", "image": "id"}}, "column.image: text-classification has no input 'image'"),
        ({"top_kk": 2}, "top_kk: unknown parameter\n  fix: write 'top_k'"),
        ({"colum": "text"}, "colum: no such argument, and no such parameter of the task\n  fix: write column="),
        ({"task": "text-clasification"}, "no task 'text-clasification'\n  fix: write 'text-classification'"),
        ({"model": {"id": "x", "revison": "main"}}, "model.revison: unknown key"),
        ({"model": "./nowhere"}, "model.id: './nowhere' is no such directory"),
        (
            {"on": {"address": "auto"}},
            "on: machine.address is 'auto', and a frame in memory is predicted in this process",
        ),
        ({"on": {"actor": 2}}, "actor: unknown key"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_told_in_the_words_of_the_call(frame, labelled, arguments, said, models):
    with pytest.raises(SpecError) as raised:
        labelled(frame, **arguments)
    assert said in str(raised.value)
    assert not models


def test_what_the_task_reads_and_the_frame_lacks_is_told_with_what_there_is(labelled):
    with pytest.raises(
        SpecError, match=r"reads 'text', and the frame has no column .*\n  fix: write column='...'; the frame has a, b"
    ):
        labelled(pd.DataFrame({"a": ["x"], "b": ["y"]}))


def test_several_inputs_are_given_as_a_mapping(encoder):
    with pytest.raises(
        SpecError, match=r"reads question and context\n  fix: write column=\{'question': ..., 'context'"
    ):
        hfbatch.enrich(pd.DataFrame({"q": ["x"]}), task="question-answering", model=encoder, column="q")


def test_a_mapping_reads_further_inputs(labelled):
    frame = pa.table({"a": ["good", "bad"], "b": ["film", None]})
    pair = labelled(frame, column={"text": "a", "text_pair": "b"})
    assert pair["error"].to_pylist() == [None, "null_input: text_pair is null"]
    assert pair["score"][0] != labelled(frame, column="a")["score"][0]


def test_a_column_that_is_there_already_is_not_written_over(frame, labelled):
    once = labelled(frame)
    with pytest.raises(
        SpecError,
        match="prefix: the frame has columns 'label', 'score', 'truncated', 'error' already\n  fix: write prefix=",
    ):
        labelled(once)
    twice = labelled(once, prefix="b_")
    assert list(twice.columns) == [*once.columns, "b_label", "b_score", "b_truncated", "b_error"]


def test_a_column_that_stands_twice_is_refused(labelled):
    frame = pd.DataFrame([["a", "b"]], columns=["text", "text"])
    with pytest.raises(SpecError, match="the frame has 2 columns 'text'\n  fix: rename all but one"):
        labelled(frame)


def test_a_param_that_shares_its_name_with_an_argument_goes_into_params():
    asked = Request("summarization", "m", None, "", False, {"params": {"prefix": "summarize: "}, "top_k": 3})
    assert addition._spec(asked).params == {"prefix": "summarize: ", "top_k": 3}


def test_text_in_params_is_no_variable():
    asked = Request("summarization", "m", None, "", False, {"params": {"prefix": "${day}"}})
    assert addition._spec(asked).params == {"prefix": "${day}"}


def test_code_that_fails_on_all_rows_ends_the_call(frame, encoder, monkeypatch):
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(FeatureExtraction, "postprocess", FeatureExtraction.postprocess)
    monkeypatch.setattr(FeatureExtraction, "forward", broken)
    with pytest.raises(SystemicError, match="rows failed alike"):
        hfbatch.enrich(frame, task="feature-extraction", model=encoder)


def test_images_in_a_folder_are_read_where_that_is_allowed(labelled, frame):
    asked = Request("image-classification", "m", None, "", False, {"allow_media_prefixes": ["pictures"]})
    assert addition._spec(asked).input.allow_media_prefixes == ["pictures"]


# what is shown


def test_nothing_is_printed_where_there_is_no_terminal(frame, labelled, capfd):
    labelled(frame)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_whose_last_state_stays(frame, labelled, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    labelled(frame, progress=False)
    assert capfd.readouterr().err == ""
    labelled(pd.concat([frame, pd.DataFrame({"text": [None]})]))
    last = capfd.readouterr().err.strip().splitlines()[-2]  # behind it the cursor is shown again
    assert "text-classification" in last
    assert "31/31" in last
    assert "1 failed" in last


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ((0, 100, 0, 0.0), ""),
        ((50, 100, 0, 2.0), "25 rows/s, 2 s left"),
        ((3, 100, 1, 2.0), "1.5 rows/s, 65 s left, 1 failed"),
        ((100_000, 100_000, 1_234, 50.0), "2,000 rows/s, 50.0 s, 1,234 failed"),
    ],
)
def test_a_bar_says_how_fast_and_how_long(told, said):
    assert bar.words(*told) == said


# in Ray's actors


def test_an_actor_adds_the_same_columns(frame, labelled, classifier):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    asked = Request("text-classification", classifier, None, "p_", True, {})
    made = pickle.loads(pickle.dumps(make_addition(asked, ArrowFrame(table.slice(0, 0)), "run")))
    found = Enricher(made, Machine(row_timeout_s=None), 1, False)(table)
    assert found.schema.names == ["id", "text", *(f"p_{name}" for name in ("label", "score", "truncated", "error"))] + [
        f"p_{name}" for name in ("model_id", "model_revision", "parameters", "run_id")
    ]
    assert found["p_label"].to_pylist() == labelled(frame)["label"].tolist()
    assert os.fspath(classifier) == found["p_model_id"][0].as_py()

"""Blocks through the real stages, and what becomes of their rows when some or all of them fail."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from hfbatch import columns as col
from hfbatch.errors import RowError
from hfbatch.ledger import Ledger
from hfbatch.model import Predict
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Preprocess
from hfbatch.sink import whole_shard
from hfbatch.store import open_store
from tests.inline import blocks_of, plan_of, run_inline
from tests.models import bert, sentences

LINEAGE = ["model_id", "model_revision", "parameters", "run_id"]


@pytest.fixture
def predicted(classifier, write_parquet, job_for):
    """predicted(texts) -> (job, the block as it leaves the model)."""

    def make(texts, **params):
        path = write_parquet("in.parquet", {"text": pa.array(texts, pa.string())})
        plan = plan_of(job_for("text-classification", classifier, path, **params))
        [block] = blocks_of(plan)
        return plan.job, Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step))(block)

    return make


def test_a_block_without_errors_has_the_output_schema_and_lineage_on_every_row(predicted):
    job, block = predicted(sentences(9))
    made = Finish(job, "run-7")(block)
    assert made.schema.names == [*job.output_schema.names, col.ROW, col.TICKET]
    assert made.select(job.output_schema.names).schema.equals(job.output_schema)
    assert made["label"].null_count == made["score"].null_count == 0
    lineage = {name: made[name].unique().to_pylist() for name in LINEAGE}
    assert lineage == {
        "model_id": [job.step.model.id],
        "model_revision": [job.step.model.commit],
        "parameters": [job.step.parameters],
        "run_id": ["run-7"],
    }
    assert col.ticket_of(made).stats["postprocess_s"] > 0


@pytest.mark.parametrize("texts", [[None, None, None], [None]])
def test_a_block_of_which_every_row_failed_has_nulls_errors_and_lineage(predicted, texts):
    job, block = predicted(texts)
    made = Finish(job, "run")(block)
    assert made["error"].to_pylist() == ["null_input: text is null"] * len(texts)
    assert made["label"].null_count == made["score"].null_count == made["truncated"].null_count == len(texts)
    assert made["run_id"].to_pylist() == ["run"] * len(texts)
    rows, _ = whole_shard(made, col.ticket_of(made), job, Ledger(open_store(job.output)))
    assert rows.schema.equals(job.output_schema)


def test_rows_that_failed_in_the_model_leave_every_other_row_its_own_values(tmp_path, write_parquet, job_for):
    """What preprocess kept for postprocess (here: truncated) counts failed rows, what the model made does not."""
    model = bert(tmp_path / "model", vocab_size=60)  # knows fewer words than its tokenizer: one with a ! raises
    texts = ["a bad movie!", "good", "the film " * 80, "a!", "bad", "was not " * 90, "it is good"]
    plan = plan_of(job_for("text-classification", model, write_parquet("in.parquet", {"text": texts})))
    made = run_inline(plan)
    failed = [0, 3]
    assert [row for row, error in enumerate(made["error"].to_pylist()) if error] == failed
    assert made["truncated"].to_pylist() == [None, False, True, None, False, True, False]
    alone = plan_of(
        job_for(
            "text-classification",
            model,
            write_parquet("good.parquet", {"text": [text for row, text in enumerate(texts) if row not in failed]}),
        )
    )
    expected = run_inline(alone)
    assert made["label"].drop_null().to_pylist() == expected["label"].to_pylist()
    assert np.allclose(made["score"].drop_null().to_numpy(), expected["score"].to_numpy(), atol=1e-5)


def wrong(postprocess, method):
    """The same task, with another postprocess."""
    inner = postprocess.last.task
    task = type("Wrong", (type(inner),), {"postprocess": method(type(inner).postprocess)})
    postprocess.last.task = task(inner.params, inner.checkpoint)
    return postprocess


def test_a_row_for_which_the_task_raises_is_alone_in_its_error(predicted):
    texts = [*sentences(20), None, "broken", *sentences(20, seed=3)]
    job, block = predicted(texts)
    whole = Finish(job, "run")(block)

    def method(inner):
        def postprocess(self, outputs, rows):
            if "broken" in rows["text"].to_pylist():
                raise ZeroDivisionError("by 0")
            return inner(self, outputs, rows)

        return postprocess

    made = wrong(Finish(job, "run"), method)(block)
    assert made["error"][21].as_py() == "postprocess_failed: ZeroDivisionError: by 0"
    assert made["error"].null_count == len(texts) - 2
    others = [row for row in range(len(texts)) if row != 21]
    assert made.drop_columns([col.TICKET]).take(others).equals(whole.drop_columns([col.TICKET]).take(others))
    assert made["label"][21].as_py() is None


@pytest.mark.parametrize("change", [lambda table: table.slice(1), lambda table: pa.concat_tables([table, table])])
def test_a_task_that_gives_another_number_of_rows_is_found_out(predicted, change):
    job, block = predicted(["good", "bad", "film"])
    method = lambda inner: lambda self, outputs, rows: change(inner(self, outputs, rows))  # noqa: E731
    made = wrong(Finish(job, "run"), method)(block)
    assert all("rows for 1" in error for error in made["error"].to_pylist())
    assert made["label"].null_count == 3


def test_the_task_reads_text_whatever_type_the_column_has(classifier, write_parquet, job_for):
    raw = pa.array([b"good", b"\xff", "naïve".encode()], pa.binary())
    plan = plan_of(job_for("text-classification", classifier, write_parquet("in.parquet", pa.table({"text": raw}))))
    [block] = blocks_of(plan)
    block = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step))(block)
    seen = []

    def method(inner):
        def postprocess(self, outputs, rows):
            seen.extend(rows["text"].to_pylist())
            return inner(self, outputs, rows)

        return postprocess

    wrong(Finish(plan.job, "run"), method)(block)
    assert seen == ["good", "naïve"]


def test_a_shard_without_rows_stays_one_row_that_the_sink_takes_away(classifier, write_parquet, job_for):
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": ["good"], "n": [1]}))
    job["input"]["where"] = "n > 1"
    plan = plan_of(job)
    predict = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step))
    [block] = blocks_of(plan)
    made = Finish(plan.job, "run")(predict(block))
    assert (len(made), made["error"].to_pylist()) == (1, [None])
    assert (predict.engine.meter.rows, predict.engine.meter.errors) == (0, 0), "it is no row, and nothing failed"
    rows, _ = whole_shard(made, col.ticket_of(made), plan.job, Ledger(open_store(plan.job.output)))
    assert len(rows) == 0


def kept_table():
    day = datetime.datetime(2024, 2, 29, 12, 30, 0, 1, tzinfo=datetime.UTC)
    return pa.table(
        {
            "text": ["good", None, "bad film"],
            "label": pa.array(["a", None, "a"]).dictionary_encode(),
            "price": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-99999999.99")], pa.decimal128(10, 2)),
            "at": pa.array([day, None, day], pa.timestamp("us", "Europe/Berlin")),
            "tree": pa.array([{"a": [1, None], "b": {"c": "x"}}, None, {"a": [], "b": None}]),
            "pairs": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "vector": pa.array([[1.0, 2.0], None, [np.nan, np.inf]], pa.list_(pa.float32(), 2)),
            "raw": pa.array([b"\xff\x00", None, b""], pa.binary()),
            "big": pa.array(["x", None, ""], pa.large_string()),
            "flag": pa.array([True, None, False]),
            "nothing": pa.nulls(3),
            "input_ids": pa.array([[7], None, [8, 9]]),  # the user's own; tokenised data sets have it
        }
    )


@pytest.mark.parametrize("stage", [False, True])
def test_kept_columns_come_out_as_they_were_whatever_their_type(classifier, write_parquet, job_for, stage):
    table = kept_table()
    job = job_for("text-classification", classifier, write_parquet("in.parquet", table))
    job["output"]["prefix"] = "pred_"
    made = run_inline(plan_of(job), stage=stage)
    assert made.column_names[: table.num_columns] == table.column_names
    plain = table.set_column(1, "label", table["label"].cast(pa.string()))
    for name in plain.column_names:
        assert made[name].type == plain[name].type, name
        assert made[name].combine_chunks().to_pylist()[1] is None
        assert repr(made[name].to_pylist()) == repr(plain[name].to_pylist()), name  # repr: NaN is not itself
    assert made["pred_label"].null_count == 1


def test_text_that_is_not_utf8_is_kept_byte_for_byte(classifier, write_parquet, job_for):
    raw = [b"good", b"\xff\xfe bad"]
    text = pa.Array.from_buffers(pa.string(), 2, pa.array(raw, pa.binary()).buffers())
    plan = plan_of(job_for("text-classification", classifier, write_parquet("in.parquet", pa.table({"text": text}))))
    made = run_inline(plan)
    assert made["text"].cast(pa.binary()).to_pylist() == raw
    assert made["error"].to_pylist() == [None, "bad_utf8: text is not UTF-8 text"]


def test_an_error_that_is_already_there_keeps_its_row_out_of_postprocess(predicted):
    job, block = predicted(["good", "bad"])
    made = Finish(job, "run")(col.with_errors(block, {0: RowError("late", "x")}))
    assert made["error"].to_pylist() == ["late: x", None]
    assert [label is None for label in made["label"].to_pylist()] == [True, False]

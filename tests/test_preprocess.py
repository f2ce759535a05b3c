"""Blocks as the source makes them, through the real tokenizer of a tiny checkpoint."""

import numpy as np
import pyarrow as pa
import pytest

from hfbatch import columns as col
from hfbatch.errors import RowError
from hfbatch.preprocess import Preprocess
from hfbatch.sequences import Sequences
from tests.inline import blocks_of, plan_of
from tests.models import sentences


@pytest.fixture
def prepare(classifier, write_parquet, job_for):
    """prepare(text, ..., task=...) -> (Preprocess, its block) for a file with one column of texts."""

    def make(text, **params):
        text = text if isinstance(text, pa.Array) else pa.array(text, pa.string())
        path = write_parquet("in.parquet", pa.table({"text": text}))
        plan = plan_of(job_for("text-classification", classifier, path, **params))
        [block] = blocks_of(plan)
        return Preprocess(plan.job.step), block

    return make


def errors_of(table):
    return table[col.ERROR].to_pylist()


def ids_of(table):
    """Token ids by row; None where a row has no sequence."""
    made = col.sequences_of(table, col.INPUT)
    found = {int(row): made.ragged("input_ids")[i].tolist() for i, row in enumerate(made.row)}
    return [found.get(row) for row in range(len(table))]


def test_each_text_becomes_the_tokenizers_own_ids(prepare):
    texts = [*sentences(20), "", "naïve ☃"]
    preprocess, block = prepare(texts)
    made = preprocess(block)
    assert ids_of(made) == preprocess.task.tokenizer(texts)["input_ids"]
    assert errors_of(made) == [None] * len(texts)
    assert col.ticket_of(made).stats["tokenise_s"] > 0
    assert made["text"].equals(block["text"])


def test_a_null_is_that_rows_error_and_the_others_go_on(prepare):
    preprocess, block = prepare(["good", None, "bad", None])
    made = preprocess(block)
    assert errors_of(made) == [None, "null_input: text is null", None, "null_input: text is null"]
    assert [ids is None for ids in ids_of(made)] == [False, True, False, True]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()], ids=str)
def test_bytes_that_are_not_utf8_are_that_rows_error_in_every_type_a_text_may_have(prepare, kind):
    raw = [b"good", b"\xff\xfe", None, "naïve".encode(), b"bad \xc3"]
    buffers = pa.array(raw, pa.large_binary() if "large" in str(kind) else pa.binary()).buffers()
    preprocess, block = prepare(pa.Array.from_buffers(kind, len(raw), buffers))
    made = preprocess(block)
    bad = "bad_utf8: text is not UTF-8 text"
    assert errors_of(made) == [None, bad, "null_input: text is null", None, bad]
    tokenizer = preprocess.task.tokenizer
    assert ids_of(made)[::3] == tokenizer(["good", "naïve"])["input_ids"]


def test_a_row_the_task_refuses_has_the_tasks_own_error(prepare):
    preprocess, block = prepare(["good", "good " * 100, "bad"], truncation=False)
    made = preprocess(block)
    assert errors_of(made) == [None, "too_long: 102 tokens, the limit is 64", None]
    assert [ids is None for ids in ids_of(made)] == [False, True, False]


def failing(preprocess, *words):
    """The same tokenizer, raising for texts with one of `words`, as a library would for a row it cannot take."""
    inner, calls = preprocess.task, []

    class Failing(type(inner)):
        def preprocess(self, rows):
            calls.append(len(rows))
            if set(words) & set(rows["text"].to_pylist()):
                raise OverflowError("cannot take it\nat all")
            return super().preprocess(rows)

    preprocess.task = Failing(inner.params, inner.checkpoint)
    return calls


def test_what_the_task_raises_is_found_by_halving_and_leaves_the_others_as_they_were(prepare):
    texts = sentences(64)
    preprocess, block = prepare([*texts[:40], "broken", *texts[40:], None, "worse"])
    calls = failing(preprocess, "broken", "worse")
    made = preprocess(block)
    message = "preprocess_failed: OverflowError: cannot take it"
    assert {i: e for i, e in enumerate(errors_of(made)) if e} == {
        40: message,
        65: "null_input: text is null",
        66: message,
    }
    ids = ids_of(made)
    assert [*ids[:40], *ids[41:65]] == preprocess.task.tokenizer(texts)["input_ids"]
    assert ids[40] is ids[65] is ids[66] is None
    assert len(calls) < 30, "halved, not one by one"


@pytest.mark.parametrize("texts", [[None, None], ["broken", None]])
def test_a_block_without_a_good_row_keeps_its_rows_and_errors(prepare, texts):
    preprocess, block = prepare(texts)
    failing(preprocess, "broken")
    made = preprocess(block)
    assert len(made) == 2
    assert all(errors_of(made))
    assert len(col.sequences_of(made, col.INPUT)) == 0


def test_a_shard_without_rows_has_no_sequences_and_no_error(classifier, write_parquet, job_for):
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": ["good"], "n": [1]}))
    job["input"]["where"] = "n > 1"
    plan = plan_of(job)
    [block] = blocks_of(plan)
    made = Preprocess(plan.job.step)(block)
    assert made[col.ROW].to_pylist() == [col.EMPTY_ROW]
    assert errors_of(made) == [None], "nothing failed, and the error budget must not count it"
    assert len(col.sequences_of(made, col.INPUT)) == 0


def test_a_pair_is_one_sequence_and_a_null_on_either_side_is_an_error(classifier, write_parquet, job_for):
    columns = {"a": ["good", "bad", None, "film"], "b": ["movie", None, "rain", "plot"]}
    job = job_for("text-classification", classifier, write_parquet("in.parquet", columns))
    job["input"]["columns"] = {"text": "a", "text_pair": "b"}
    plan = plan_of(job)
    [block] = blocks_of(plan)
    preprocess = Preprocess(plan.job.step)
    made = preprocess(block)
    assert errors_of(made) == [None, "null_input: text_pair is null", "null_input: text is null", None]
    encoded = preprocess.task.tokenizer(["good", "film"], ["movie", "plot"])
    assert ids_of(made)[::3] == encoded["input_ids"]
    types = col.sequences_of(made, col.INPUT).ragged("token_type_ids")
    assert [types[i].tolist() for i in range(2)] == encoded["token_type_ids"]


@pytest.mark.parametrize(
    ("rows", "refused"),
    [([0, 2], {}), ([0, 2, 1], {}), ([0, 1, 1, 2, 2], {3: RowError("x", "y")})],
    ids=["a row without sequence and without error", "out of order", "a row that is not there"],
)
def test_a_task_that_loses_or_shuffles_rows_is_found_out(prepare, rows, refused):
    preprocess, block = prepare(["good", "bad", "film"])
    inner = preprocess.task

    class Wrong(type(inner)):
        def preprocess(self, given):
            if len(given) != 3:
                return super().preprocess(given)
            return Sequences(np.array(rows), {"input_ids": np.array(rows)}, refused)

    preprocess.task = Wrong(inner.params, inner.checkpoint)
    made = preprocess(block)
    assert ids_of(made) == inner.tokenizer(["good", "bad", "film"])["input_ids"]

"""A task that cuts its batches itself: what the engine gives it, and what becomes of what goes wrong in it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hfbatch.engine import Work
from hfbatch.model import Predict
from hfbatch.tally import Stopped
from tests.inline import plan_of
from tests.models import sentences


@pytest.fixture
def scheduling(tmp_path, classifier):
    """scheduling(forward) -> a Predict whose task gives all sequences of a block to `forward(task, model, batch)`."""

    def make(forward, report=None, **machine):
        texts = sentences(40)
        pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
        job = {"task": "text-classification", "model": {"id": str(classifier)}}
        job |= {"input": {"path": str(tmp_path / "in.parquet")}, "output": {"path": str(tmp_path / "out")}}
        plan = plan_of(job, **machine)
        predict = Predict(plan.job.step, plan.machine, 1, report=report, gpu=False)
        sequences = predict.task.preprocess(pa.table({"text": texts}))
        named = {"forward": forward, "schedules": True, "way": lambda self: "its own way"}
        task = type("Scheduling", (type(predict.task),), named)(predict.task.params, predict.task.checkpoint)
        predict.engine.task = predict.task = task
        predict.engine.packer.open = False
        return predict, sequences

    return make


def plainly(task, model, batch):
    """A quarter of the batch at a time, in another order than it came."""
    order = np.random.default_rng(0).permutation(len(batch.sequences))
    made = [model(**batch.part(index).inputs).logits.float() for index in np.array_split(order, min(4, len(order)))]
    for _ in range(4):
        batch.alive(len(order) // 4)
    return {"logits": torch.cat(made)[np.argsort(order)]}


def test_it_has_all_sequences_at_once_and_parts_of_them_are_batches(scheduling):
    sizes = []

    def forward(task, model, batch):
        sizes.append((len(batch.sequences), batch.room))
        return plainly(task, model, batch)

    predict, sequences = scheduling(forward, max_batch_tokens=50, max_batch_rows=3)
    predict.unproven = False
    outputs, errors = predict.predict(sequences)
    assert (sizes, errors) == ([(40, (50, 3))], {})
    assert predict.engine.layout == "its own way"
    assert predict.engine.meter.padded_tokens == predict.engine.meter.tokens
    task = predict.task
    predict.engine.task = type(task).__mro__[1](task.params, task.checkpoint)
    expected, _ = predict.predict(sequences)
    assert np.allclose(outputs.dense("logits"), expected.dense("logits"), atol=1e-5)


def test_a_run_hears_of_rows_that_have_ended_while_others_go_on(scheduling):
    told = []
    predict, sequences = scheduling(plainly, report=lambda meter: told.append((meter.sequences, meter.batches)))
    predict.unproven = False
    predict.predict(sequences)
    assert told == [(10, 0), (20, 0), (30, 0), (40, 0), (40, 1)]


def test_a_run_that_cannot_be_told_of_ends_and_no_row_is_blamed(scheduling):
    def lost(meter):
        raise ConnectionError("the tally is gone")

    predict, sequences = scheduling(plainly, report=lost)
    work = Work(sequences, sequences.ragged("input_ids").lengths)
    with pytest.raises(Stopped):
        predict.engine.run(work, np.arange(40))
    assert work.results.errors == {}


def test_out_of_memory_lowers_its_budget_and_halves_what_it_is_given(scheduling):
    tried = []

    def forward(task, model, batch):
        tried.append((len(batch.sequences), batch.room[0]))
        if batch.room[0] > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plainly(task, model, batch)

    predict, sequences = scheduling(forward, max_batch_tokens=100)
    predict.unproven = False
    outputs, errors = predict.predict(sequences)
    assert (errors, len(outputs)) == ({}, 40)
    assert [room for _, room in tried[:3]] == [100, 50, 25]
    assert tried[0][0] == 40
    assert sum(rows for rows, room in tried if room <= 30) == 40


def test_a_row_that_fails_in_it_is_found_and_the_others_have_their_results(scheduling):
    predict, sequences = scheduling(plainly)

    def forward(task, model, batch):
        if 7 in batch.sequences.row:
            raise IndexError("row seven")
        return plainly(task, model, batch)

    type(predict.engine.task).forward = forward
    outputs, errors = predict.predict(sequences)
    assert {row: error.code for row, error in errors.items()} == {7: "forward_failed"}
    assert outputs.row.tolist() == [row for row in range(40) if row != 7]


def test_where_a_death_has_to_be_traced_it_gets_small_batches(scheduling):
    sizes = []

    def forward(task, model, batch):
        sizes.append(len(batch.sequences))
        return {"logits": model(**batch.inputs).logits.float()}

    predict, sequences = scheduling(forward, max_batch_rows=8)
    predict.unproven, predict.engine.announce = False, lambda rows: None
    predict.predict(sequences)
    assert sum(sizes) == 40
    assert max(sizes) <= 8

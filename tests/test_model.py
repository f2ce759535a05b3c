"""Predict on a real tiny model, wrapped where needed in one that fails as models fail."""

import json
import math
import shutil
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch import columns as col
from hfbatch.batch import pack_by_length, padded_tokens
from hfbatch.engine import Work
from hfbatch.errors import RowError, SpecError, SystemicError
from hfbatch.model import Predict
from hfbatch.preprocess import Preprocess
from hfbatch.results import to_numpy
from hfbatch.sequences import Ragged, Sequences
from hfbatch.tally import DeviceLost
from hfbatch.tasks.base import Flat
from tests.inline import blocks_of, plan_of
from tests.models import sentences

TEXTS = [*sentences(60), "good bad " * 20, *sentences(20, seed=2)]


class Faulty(torch.nn.Module):
    """A model that fails for batches over `most` tokens, raises for one token and poisons the result of another."""

    def __init__(self, model, most=math.inf, raises=-1, poisons=-1, with_value=math.nan):
        super().__init__()
        self.model, self.config = model, model.config
        self.most, self.raises, self.poisons, self.with_value = most, raises, poisons, with_value
        self.tried = []  # shapes, in order
        self.refused = []  # weak references to what the failed batches had allocated

    def forward(self, input_ids, **inputs):
        assert not any(reference() is not None for reference in self.refused), "a failed batch still holds its memory"
        self.tried.append(tuple(input_ids.shape))
        if input_ids.numel() > self.most:
            activations = torch.zeros(4)
            self.refused.append(weakref.ref(activations))
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {input_ids.numel()} GiB")
        if self.raises in input_ids:
            raise IndexError("index out of range in self")
        outputs = self.model(input_ids=input_ids, **inputs)
        for row in (input_ids == self.poisons).any(dim=1).nonzero().flatten():
            outputs[0][row, 0] = self.with_value
        return outputs


@pytest.fixture(scope="module")
def make_plan(tmp_path_factory, classifier, encoder):
    """make_plan(task, texts, params, **machine) -> a plan over one file."""

    def make(task="text-classification", texts=TEXTS, params=None, model=None, **machine):
        folder = tmp_path_factory.mktemp("job")
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "in.parquet")
        model = model or (encoder if task == "feature-extraction" else classifier)
        job = {"task": task, "model": {"id": str(model)}, "params": params or {}}
        job |= {"input": {"path": str(folder / "in.parquet")}, "output": {"path": str(folder / "out")}}
        return plan_of(job, **machine)

    return make


@pytest.fixture(scope="module")
def plain(make_plan):
    """A Predict as it comes, and what it makes of TEXTS."""
    plan = make_plan()
    predict = Predict(plan.job.step, plan.machine, 1)
    return predict, predict.predict(sequences_of(predict))[0].dense("logits")


def sequences_of(predict, texts=TEXTS):
    return predict.task.preprocess(pa.table({"text": texts}))


def faulty(plan, **how):
    predict = Predict(plan.job.step, plan.machine, 1)
    predict.engine.model = Faulty(predict.engine.model, **how)
    return predict


def token(predict, word):
    return predict.task.tokenizer.convert_tokens_to_ids(word)


EQUAL = ["good bad film", "a bad movie", "night and day", "rain and sun"] * 16  # five tokens each


def test_out_of_memory_halves_by_tokens_and_the_lower_budget_is_remembered(make_plan, plain):
    predict = faulty(make_plan(max_batch_tokens=320, packing=False), most=100)
    outputs, errors = predict.predict(sequences_of(predict, EQUAL))
    assert errors == {}
    assert np.allclose(
        outputs.dense("logits"), plain[0].predict(sequences_of(predict, EQUAL))[0].dense("logits"), atol=1e-5
    )
    assert predict.engine.model.tried == [(64, 5), (32, 5), (16, 5), (16, 5), (16, 5), (16, 5)]
    assert predict.engine.budget == 80
    predict.predict(sequences_of(predict))
    assert max(math.prod(shape) for shape in predict.engine.model.tried[6:]) <= 84, (
        "the next block begins with what fits"
    )


def test_the_memory_of_a_failed_batch_is_free_before_its_halves_are_tried(make_plan):
    """An exception holds the batch's tensors through its traceback; Faulty asserts that none is left."""
    predict = faulty(make_plan(max_batch_tokens=320), most=20)
    _, errors = predict.predict(sequences_of(predict, EQUAL))
    assert errors == {}
    assert len(predict.engine.model.refused) == 4


def test_a_sequence_that_cannot_fit_is_an_error_and_the_others_go_on(make_plan, plain):
    predict = faulty(make_plan(max_batch_tokens=600), most=35)
    sequences = sequences_of(predict)
    outputs, errors = predict.predict(sequences)
    long = np.flatnonzero(sequences.ragged("input_ids").lengths > 35).tolist()
    assert 1 <= len(long) < 10
    assert sorted(errors) == long
    assert {error.code for error in errors.values()} == {"out_of_memory"}
    assert errors[long[0]].message.startswith("OutOfMemoryError: CUDA out of memory")
    assert outputs.row.tolist() == [row for row in range(len(TEXTS)) if row not in long]
    assert np.allclose(outputs.dense("logits"), plain[1][outputs.row], atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:73] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_out_of_memory_is_known_by_all_its_names(make_plan, error):
    predict = faulty(make_plan(texts=["good"]))
    predict.engine.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    _, errors = predict.predict(sequences_of(predict, ["good"]))
    assert errors[0].code == "out_of_memory"


def test_an_exception_is_bisected_to_its_row_and_the_others_keep_their_values(make_plan, plain):
    plan = make_plan(max_batch_tokens=10**6)
    predict = faulty(plan)
    texts = [*TEXTS[:13], "x good", *TEXTS[13:], "x"]
    predict.engine.model.raises = token(predict, "x")
    outputs, errors = predict.predict(sequences_of(predict, texts))
    bad = [13, len(texts) - 1]
    assert {row: str(error) for row, error in errors.items()} == dict.fromkeys(
        bad, "forward_failed: IndexError: index out of range in self"
    )
    assert outputs.row.tolist() == [row for row in range(len(texts)) if row not in bad]
    assert np.allclose(outputs.dense("logits"), plain[1], atol=1e-5)
    assert predict.engine.budget == 10**6, "a bad row says nothing about memory"
    assert len(predict.engine.model.tried) < 4 * math.log2(len(texts))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pooling", [None, "none"])
def test_a_result_that_is_not_finite_is_an_error_for_its_row_only(make_plan, value, pooling):
    """Dense results, and ragged ones (a vector for every token)."""
    task = "feature-extraction" if pooling else "text-classification"
    plan = make_plan(task, params={"pooling": pooling} if pooling else None, packing=False)
    predict, reference = faulty(plan, with_value=value), Predict(plan.job.step, plan.machine, 1)
    texts = ["good", "x bad", "the film was good", "x", "bad film"]
    predict.engine.model.poisons = token(predict, "x")
    outputs, errors = predict.predict(sequences_of(predict, texts))
    assert {row: error.code for row, error in errors.items()} == {1: "non_finite", 3: "non_finite"}
    assert outputs.row.tolist() == [0, 2, 4]
    [name] = outputs.columns
    expected = reference.predict(sequences_of(reference, texts))[0].take(np.array([0, 2, 4]))
    if pooling:
        assert outputs.ragged(name).lengths.tolist() == expected.ragged(name).lengths.tolist()
        assert np.allclose(outputs.ragged(name).values, expected.ragged(name).values, atol=1e-5)
    else:
        assert np.allclose(outputs.dense(name), expected.dense(name), atol=1e-5)
    assert predict.engine.model.tried[0] == (5, 6)
    assert sorted(predict.engine.model.tried[1:]) == [(1, 3), (1, 4)], "once more, alone; the others' results stay"


class Overflowing(Faulty):
    """Not finite for the token `poisons` unless it runs in float32."""

    exact_batches = 0

    def forward(self, input_ids, **inputs):
        exact, poisons = self.model.dtype == torch.float32, self.poisons
        self.exact_batches += exact
        self.poisons = -1 if exact else poisons
        try:
            return super().forward(input_ids, **inputs)
        finally:
            self.poisons = poisons


def half_precision(plan, cls=Overflowing, **how):
    predict = Predict(plan.job.step, plan.machine, 1)
    predict.engine.model.bfloat16()
    predict.engine.model.register_buffer("exact", torch.tensor([1 / 3]))  # float32 among bfloat16
    predict.engine.model = cls(predict.engine.model, **how)
    return predict


def test_what_overflows_in_half_precision_is_tried_once_in_float32_and_the_weights_are_the_same_after(make_plan):
    predict = half_precision(make_plan(max_batch_tokens=40, packing=False))
    predict.engine.model.poisons = token(predict, "x")
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in predict.engine.model.state_dict().items()}
    texts = ["good", "x bad", "the film was good", "x", "bad film", "x film good", "x good"]
    outputs, errors = predict.predict(sequences_of(predict, texts))
    assert errors == {}
    assert outputs.row.tolist() == list(range(7))
    rounded = Predict(make_plan().job.step, make_plan().machine, 1)
    rounded.engine.model.bfloat16().float()
    exact = rounded.predict(sequences_of(rounded, texts))[0].dense("logits")
    again = [1, 3, 5, 6]
    assert np.allclose(outputs.dense("logits")[again], exact[again], atol=1e-5), "these went through float32"
    assert not np.allclose(outputs.dense("logits")[[0, 2, 4]], exact[[0, 2, 4]], atol=1e-5), "and these did not"
    after = predict.engine.model.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == {name: at for name, (at, _) in before.items()}
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, (_, tensor) in before.items()
    )
    assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.bfloat16, torch.float32}
    retried = predict.engine.model.tried[-predict.engine.model.exact_batches :]
    assert sum(rows for rows, _ in retried) == 4
    assert max(math.prod(shape) for shape in retried) <= 20, "float32 takes twice the memory"


@pytest.mark.parametrize("failing", ["the cast", "the batch", "nothing, but it is not finite again"])
def test_a_row_that_float32_does_not_help_keeps_its_error(make_plan, monkeypatch, failing):
    predict = half_precision(make_plan(), Faulty if "nothing" in failing else Overflowing)
    predict.engine.model.poisons = token(predict, "x")
    at = [tensor.data_ptr() for tensor in predict.engine.model.parameters()]
    cast, forward = torch.Tensor.float, predict.engine._launch

    def no_room_for_the_head(tensor):
        if tensor.shape == predict.engine.model.model.classifier.weight.shape:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cast(tensor)

    def no_room_for_the_batch(batch, model=None, **how):
        if model is not None and model.model.dtype == torch.float32:
            raise MemoryError
        return forward(batch, model, **how)

    if failing == "the cast":
        monkeypatch.setattr(torch.Tensor, "float", no_room_for_the_head)
    if failing == "the batch":
        monkeypatch.setattr(predict.engine, "_launch", no_room_for_the_batch)
    outputs, errors = predict.predict(sequences_of(predict, ["good", "x", "bad film"]))
    assert {row: error.code for row, error in errors.items()} == {1: "non_finite"}
    assert outputs.row.tolist() == [0, 2]
    assert [tensor.data_ptr() for tensor in predict.engine.model.parameters()] == at
    assert predict.engine.model.model.dtype == torch.bfloat16
    assert predict.engine.budget == predict.task.batch_tokens[0] or predict.engine.device.type == "cuda"


@pytest.mark.parametrize("rows", [2, 20, 64])
@pytest.mark.parametrize("bad", [0, -1])
def test_an_exception_costs_two_batches_for_each_time_that_the_rows_can_be_halved(make_plan, rows, bad):
    """However the lengths are spread: half of the tokens of these would be one row, again and again."""
    predict = faulty(make_plan(max_batch_tokens=10**9))
    texts = ["good"] * rows
    texts[bad] = "x"
    predict.engine.model.raises = token(predict, "x")
    work = Work(sequences_of(predict, texts), 2 ** np.arange(rows)[::-1].clip(max=20))
    predict.engine._refit(work, np.arange(rows))
    results = work.results
    assert list(results.errors) == [bad % rows]
    assert sum(len(done) for done in results.done) == rows - 1
    assert len(predict.engine.model.tried) <= 1 + 2 * math.ceil(math.log2(rows))


def test_a_lost_device_is_no_rows_fault(make_plan):
    predict = faulty(make_plan())
    predict.engine.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(DeviceLost("device-side assert")))
    with pytest.raises(DeviceLost, match="device-side assert"):
        predict.predict(sequences_of(predict, ["good", "bad"]))


class Refusing(torch.nn.Module):
    """A model that cannot run at all; its message holds a number that changes."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, **inputs):
        self.calls += 1
        raise TypeError(f"forward() got an unexpected keyword argument at 0x{self.calls}")


def block_for(texts, make_plan, **machine):
    plan = make_plan(texts=texts, **machine)
    [block] = blocks_of(plan)
    return Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step)), block


def test_a_failure_common_to_the_first_rows_stops_early_and_says_what_and_where(make_plan):
    predict, block = block_for(sentences(1000), make_plan)
    predict.engine.model = Refusing()
    with pytest.raises(SystemicError) as info:
        predict(block)
    assert "100 of the first 100 rows failed alike" in str(info.value)
    assert "forward_failed: TypeError: forward() got an unexpected keyword argument at 0x" in str(info.value)
    assert "in.parquet row 0)" in str(info.value)
    assert "Nothing of this is committed" in str(info.value)
    assert predict.engine.model.calls < 200, "the other 900 rows were not bisected"


def test_a_failure_common_to_the_first_rows_in_preprocess_stops_before_the_others_are_tried(make_plan, monkeypatch):
    predict, block = block_for([None, *sentences(1000)], make_plan)
    calls = []

    def refuse(self, rows):
        calls.append(len(rows))
        raise KeyError("vocabulary")

    monkeypatch.setattr(type(predict.task), "preprocess", refuse)
    with pytest.raises(SystemicError, match=r"99 of the first 99 rows .* preprocess_failed: KeyError.*parquet row 1\)"):
        predict(block)
    assert len(calls) < 200


def test_a_preprocess_stage_is_judged_by_the_errors_it_left_in_the_block(make_plan, monkeypatch):
    plan = make_plan(texts=sentences(20))
    [block] = blocks_of(plan)
    predict = Predict(plan.job.step, plan.machine, 1)
    monkeypatch.setattr(type(predict.task), "preprocess", lambda self, rows: 1 / 0)
    with pytest.raises(SystemicError, match=r"20 of the first 20 rows failed alike.*ZeroDivisionError"):
        predict(Preprocess(plan.job.step)(block))


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        (["good x"] * 8 + sentences(12), "raises"),
        (["good x"] * 9, "raises"),
        ([*sentences(100), *["good x"] * 900], "raises"),
        (["good x " * 20] * 100 + sentences(100, longest=30), "most"),
    ],
    ids=["too few fail", "too few rows", "the first rows are fine", "out of memory is about length"],
)
def test_bad_data_is_not_taken_for_a_bug(make_plan, texts, word):
    predict, block = block_for(texts, make_plan)
    predict.engine.model = Faulty(predict.engine.model)
    setattr(predict.engine.model, word, token(predict, "x") if word == "raises" else 41)
    made = predict(block)
    bad = ["x" in text.split() for text in texts]
    assert [error is not None for error in made[col.ERROR].to_pylist()] == bad


def test_the_first_rows_are_judged_once_and_by_a_process_that_must_show_it_works(make_plan):
    texts = ["good x"] * 50
    predict, block = block_for(texts, make_plan)
    predict.engine.model, predict.unproven = Faulty(predict.engine.model, raises=token(predict, "x")), False
    assert predict(block)[col.ERROR].null_count == 0
    predict.unproven = True
    with pytest.raises(SystemicError):
        predict(block)
    predict.engine.model.raises = -1
    predict(block)
    predict.engine.model.raises = token(predict, "x")
    assert predict(block)[col.ERROR].null_count == 0
    predict.unproven = True
    again = replace(col.ticket_of(block), base="earlier").on(block)
    assert predict(again)[col.ERROR].null_count == 0, "rows that failed before are no sample"


def test_a_row_with_many_failing_sequences_is_one_row_of_the_sample(make_plan):
    predict = faulty(make_plan())
    predict.engine.model.raises = token(predict, "x")
    made = sequences_of(predict, ["x"] * 150 + ["good"] * 20)
    sequences = Sequences(np.concatenate([np.zeros(150, dtype=np.int64), np.arange(1, 21)]), made.columns)
    outputs, errors = predict.predict(sequences)
    assert list(errors) == [0]
    assert outputs.row.tolist() == list(range(1, 21))


@pytest.mark.parametrize("fault", ["raises", "poisons"])
def test_a_row_with_several_sequences_of_which_one_fails_has_no_result_at_all(make_plan, fault):
    predict = faulty(make_plan())
    setattr(predict.engine.model, fault, token(predict, "x"))
    made = sequences_of(predict, ["good", "bad x", "film", "good film", "bad", "x"])
    sequences = Sequences(np.array([0, 0, 1, 3, 3, 4]), made.columns)
    outputs, errors = predict.predict(sequences)
    assert sorted(errors) == [0, 4]
    assert outputs.row.tolist() == [1, 3, 3]
    own = predict.predict(sequences_of(predict, ["film", "good film", "bad"]))[0]
    assert np.allclose(outputs.dense("logits"), own.dense("logits"), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 90), st.randoms(use_true_random=False))
def test_no_cut_into_batches_and_no_order_of_rows_changes_a_value(plain, budget, rows, random):
    predict, expected = plain
    order = random.sample(range(len(TEXTS)), len(TEXTS))
    before = predict.engine.budget, predict.engine.max_rows
    try:
        predict.engine.budget, predict.engine.max_rows = budget, rows
        outputs, errors = predict.predict(sequences_of(predict, [TEXTS[i] for i in order]))
    finally:
        predict.engine.budget, predict.engine.max_rows = before
    assert errors == {}
    assert outputs.row.tolist() == list(range(len(TEXTS)))
    assert np.allclose(outputs.dense("logits"), expected[order], atol=1e-5)


def test_the_same_batches_give_the_same_bytes(plain):
    predict, expected = plain
    again = predict.predict(sequences_of(predict))[0].dense("logits")
    assert again.tobytes() == expected.tobytes()
    assert len(np.unique(expected.round(4), axis=0)) > 40, "a model that always says the same tests nothing"


def test_without_a_sequence_there_is_nothing_to_do(plain):
    outputs, errors = plain[0].predict(Sequences(np.zeros(0, dtype=np.int64), {}))
    assert (len(outputs), dict(outputs.columns), errors) == (0, {}, {})


@pytest.mark.parametrize(
    "forward",
    [
        lambda logits: {"logits": logits[:1]},
        lambda logits: {"logits": Flat(logits, np.array([1] * (len(logits) - 1) + [2]))},
    ],
    ids=["fewer results than sequences", "lengths that do not add up"],
)
def test_a_task_that_gives_other_results_than_sequences_is_found_out(make_plan, forward):
    """Put together over batches, they would give rows their neighbours' values."""
    plan = make_plan()
    predict = Predict(plan.job.step, plan.machine, 1)
    inner = type(predict.task)
    method = lambda self, model, batch: forward(inner.forward(self, model, batch)["logits"])  # noqa: E731
    predict.engine.task = type("Wrong", (inner,), {"forward": method})(predict.task.params, predict.task.checkpoint)
    sequences = sequences_of(predict, ["good", "bad"])
    with pytest.raises(AssertionError):
        predict.engine._forward(sequences)


def test_a_row_that_the_task_refuses_in_forward_has_the_tasks_own_error(make_plan):
    predict = Predict((plan := make_plan()).job.step, plan.machine, 1)
    inner, bad = type(predict.task), token(predict, "bad")

    def forward(self, model, batch):
        if (batch.inputs["input_ids"] == bad).any():
            raise RowError("too_bad", "said the task")
        return inner.forward(self, model, batch)

    predict.engine.task = type("Refusing", (inner,), {"forward": forward})(predict.task.params, predict.task.checkpoint)
    outputs, errors = predict.predict(sequences_of(predict, ["good", "bad", "film", "good"]))
    assert {row: str(error) for row, error in errors.items()} == {1: "too_bad: said the task"}
    assert outputs.row.tolist() == [0, 2, 3]


def test_results_come_to_the_host_as_columns():
    made = to_numpy({"a": torch.ones(2, 3), "b": Flat(torch.arange(3), torch.tensor([1, 2]))})
    assert made["a"].shape == (2, 3)
    assert isinstance(made["b"], Ragged)
    assert [made["b"][i].tolist() for i in range(2)] == [[0], [1, 2]]


def test_the_meter_counts_batches_and_tokens_and_is_reported_after_each_batch(make_plan):
    plan, told = make_plan(max_batch_tokens=300, packing=False), []
    predict = Predict(plan.job.step, plan.machine, 1, report=lambda meter: told.append(dict(vars(meter))))
    sequences = sequences_of(predict)
    predict.predict(sequences)
    lengths = sequences.ragged("input_ids").lengths
    batches = pack_by_length(lengths, 300, plan.machine.max_batch_rows)
    assert len(batches) > 3
    assert [each["batches"] for each in told] == list(range(1, len(batches) + 1))
    assert [each["sequences"] for each in told] == np.cumsum([len(batch) for batch in batches]).tolist()
    assert told[-1]["tokens"] == lengths.sum()
    assert told[-1]["padded_tokens"] == sum(padded_tokens(batch, lengths) for batch in batches)
    assert all(one["forward_s"] < other["forward_s"] for one, other in pairwise(told))


def test_what_report_raises_ends_the_block_and_is_no_rows_fault(make_plan):
    class Stopped(Exception):
        pass

    def report(meter):
        raise Stopped

    plan = make_plan()
    predict = Predict(plan.job.step, plan.machine, 1, report=report)
    with pytest.raises(Stopped):
        predict.predict(sequences_of(predict))


def test_a_block_carries_its_own_share_of_the_meter(make_plan):
    texts, params = ["good film", None, "bad", "x" * 70], {"truncation": False, "max_length": 5}
    plan = make_plan(texts=texts, params=params, packing=False)
    predict = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step))
    [block] = blocks_of(plan)
    first, second = predict(block), predict(block)
    stats, again = col.ticket_of(first).stats, col.ticket_of(second).stats
    shared = ("rows", "errors", "sequences", "tokens", "padded_tokens", "batches")
    assert {name: stats[name] for name in shared} == {
        "rows": 4,
        "errors": 2,
        "sequences": 2,
        "tokens": 7,
        "padded_tokens": 8,
        "batches": 1,
    }
    assert {name: again[name] for name in shared} == {name: stats[name] for name in shared}
    assert (stats["load_s"] > 0, again["load_s"]) == (True, 0), "loading is told once"
    assert stats["first_s"] <= stats["last_s"] <= again["first_s"]
    assert stats["peak_rss"] > 10**7
    assert stats["token_lengths"] == [0, 0, 2], "of 3 and 4 tokens"
    assert (predict.engine.meter.rows, predict.engine.meter.errors) == (8, 4)


def test_the_models_inputs_are_dropped_once_it_has_read_them_and_the_users_columns_stay(classifier, write_parquet):
    columns = {"text": ["good", "bad film"], "input_ids": [[1], [2]], "token_type_ids": ["a", "b"]}
    path = write_parquet("in.parquet", columns)
    job = {"task": "text-classification", "model": {"id": str(classifier)}, "input": {"path": str(path)}}
    plan = plan_of({**job, "output": {"path": str(path.parent / "out")}})
    [block] = blocks_of(plan)
    made = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step))(block)
    assert made.select(list(columns)).equals(block.select(list(columns)))
    ours = [name for name in made.column_names if name.startswith((col.INPUT, col.OUTPUT))]
    assert ours == [col.INPUT + "truncated", col.OUTPUT + "logits"]


def test_failed_rows_carry_their_error_on_in_the_block(make_plan):
    plan = make_plan(texts=["good", None, "x", "bad"])
    predict = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step))
    predict.engine.model = Faulty(predict.engine.model, raises=token(predict, "x"))
    [block] = blocks_of(plan)
    made = predict(block)
    codes = [error and error.split(":")[0] for error in made[col.ERROR].to_pylist()]
    assert codes == [None, "null_input", "forward_failed", None]
    assert made["text"].equals(block["text"])


def test_a_checkpoint_that_does_not_say_its_class_is_judged_by_its_weights(make_plan, encoder, tmp_path):
    nameless = shutil.copytree(encoder, tmp_path / "nameless")
    config = json.loads((nameless / "config.json").read_text())
    (nameless / "config.json").write_text(json.dumps(config | {"architectures": None}))
    plan = make_plan(model=nameless)
    with pytest.raises(SpecError, match=r"no weights for classifier.bias.*not trained for text-classification") as info:
        Predict(plan.job.step, plan.machine, 1)
    [problem] = info.value.problems
    assert (problem.key, problem.fix) == ("model.id", "take a checkpoint made for this task")


def test_the_machine_says_how_large_a_batch_is_and_auto_fits_the_device(make_plan):
    plan = make_plan(max_batch_tokens=77, max_batch_rows=5)
    predict = Predict(plan.job.step, plan.machine, 1)
    assert (predict.engine.budget, predict.engine.max_rows) == (77, 5)
    plan = make_plan()
    predict = Predict(plan.job.step, plan.machine, 1)
    assert predict.engine.budget == predict.task.batch_tokens[0] or predict.engine.device.type == "cuda"
    assert torch.get_num_threads() == 1


def test_a_budget_that_another_run_found_on_such_a_device_is_taken_and_one_that_is_given_stays(make_plan):
    plan, given = make_plan(), make_plan(max_batch_tokens=77)
    predict, fixed = (Predict(each.job.step, each.machine, 1, gpu=False) for each in (plan, given))
    assert "settled" not in predict.engine.about(), "nothing is known yet"
    device = str(fixed.engine.about()["settled"])
    for each in (predict, fixed):
        each.engine.recall({device: 4096, "another GPU": 9})
    assert (predict.engine.budget, fixed.engine.budget) == (4096, 77)
    assert predict.engine.about() | {"peak_rss": 0} == {
        "layout": "padded",
        "budget": 4096.0,
        "settled": device,
        "peak_rss": 0,
    }

"""What a Batch answers, against a plain loop over its sequences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfbatch.layout import PaddedBatch, input_lengths
from hfbatch.sequences import Ragged, Sequences
from hfbatch.tasks.text_classification import TextClassification, TextClassificationParams

CPU = torch.device("cpu")
TASK = TextClassification(
    TextClassificationParams(),
    SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=9, model_max_length=512), config=None),
)
lists = st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=9), min_size=1, max_size=9)
equal = st.integers(1, 6).flatmap(
    lambda size: st.lists(st.lists(st.integers(10, 99), min_size=size, max_size=size), min_size=1, max_size=6)
)


class Left(TextClassification):
    padding_side = "left"


LEFT = Left(TASK.params, TASK.checkpoint)


def batch_of(lists, task=TASK, **more):
    columns = {"input_ids": Ragged.from_lists(lists), **more}
    return PaddedBatch(Sequences(np.arange(len(lists)), columns), task, CPU)


@given(lists | equal, st.sampled_from([TASK, LEFT]))
def test_every_method_answers_as_a_loop_over_the_sequences_would(lists, task):
    batch = batch_of(lists, task)
    ids = batch.inputs["input_ids"]
    table = torch.arange(100 * 3, dtype=torch.float32).reshape(100, 3).sin()
    vectors = table[ids]  # stands for a model's hidden states; those of padding are other than 0
    own = [table[torch.tensor(sequence)] for sequence in lists]
    assert batch.lengths.tolist() == [len(sequence) for sequence in lists]
    assert batch.tokens(ids).tolist() == [token for sequence in lists for token in sequence]
    assert torch.equal(batch.tokens(vectors), torch.cat(own))
    assert torch.equal(batch.first(vectors), torch.stack([one[0] for one in own]))
    assert torch.equal(batch.last(vectors), torch.stack([one[-1] for one in own]))
    assert torch.allclose(batch.mean(vectors), torch.stack([one.mean(0) for one in own]), atol=1e-6)


@given(lists)
def test_padding_stands_on_the_right_up_to_the_longest_and_is_masked(lists):
    batch, longest = batch_of(lists), max(len(sequence) for sequence in lists)
    assert batch.inputs["input_ids"].tolist() == [[*one, *[9] * (longest - len(one))] for one in lists]
    if "attention_mask" in batch.inputs:
        expected = [[1] * len(one) + [0] * (longest - len(one)) for one in lists]
        assert batch.inputs["attention_mask"].tolist() == expected
    assert ("attention_mask" in batch.inputs) == (len({len(one) for one in lists}) > 1)


@given(lists)
def test_on_the_left_padding_stands_before_the_first_token_and_is_masked(lists):
    batch, longest = batch_of(lists, LEFT), max(len(sequence) for sequence in lists)
    assert batch.inputs["input_ids"].tolist() == [[*[9] * (longest - len(one)), *one] for one in lists]
    assert batch.mask.tolist() == [[0] * (longest - len(one)) + [1] * len(one) for one in lists]
    assert ("attention_mask" in batch.inputs) == (len({len(one) for one in lists}) > 1)


def test_the_mean_of_half_precision_is_taken_in_float32():
    batch = batch_of([[10] * 3, [11]])
    values = torch.tensor([[4096.0, 1.0, 1.0], [0.5, 7.0, 7.0]], dtype=torch.float16).unsqueeze(-1)
    assert batch.mean(values).dtype == torch.float32
    assert batch.mean(values).flatten().tolist() == [4098 / 3, 0.5]


def test_each_input_is_padded_with_its_own_value_and_what_is_no_input_stays_behind():
    types = Ragged.from_lists([[0, 1], [1]])
    batch = batch_of([[10, 11], [12]], token_type_ids=types, truncated=np.array([True, False]))
    assert batch.inputs.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert batch.inputs["token_type_ids"].tolist() == [[0, 1], [1, 0]]


class Images(TextClassification):
    inputs = ("pixel_values",)


class Audio(TextClassification):
    inputs = ("input_values",)


def test_inputs_of_one_shape_cost_one_token_each_and_are_not_masked():
    pixels = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    task, sequences = Images(TASK.params, TASK.checkpoint), Sequences(np.arange(2), {"pixel_values": pixels})
    assert input_lengths(sequences, task).tolist() == [1, 1]
    batch = PaddedBatch(sequences, task, CPU)
    assert batch.inputs.keys() == {"pixel_values"}
    assert np.array_equal(batch.inputs["pixel_values"].numpy(), pixels)


@pytest.mark.parametrize("shape", [(5,), (5, 2)])
def test_ragged_floats_are_padded_as_floats(shape):
    values = np.linspace(0.1, 0.9, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    sequences = Sequences(np.arange(2), {"input_values": Ragged.from_lengths(values, np.array([2, 3]))})
    batch = PaddedBatch(sequences, Audio(TASK.params, TASK.checkpoint), CPU)
    made = batch.inputs["input_values"]
    assert (made.dtype, tuple(made.shape)) == (torch.float32, (2, 3, *shape[1:]))
    assert np.array_equal(batch.tokens(made).numpy(), values)
    assert not made[0, 2].any()


def test_arrays_of_one_shape_are_stacked_and_never_padded_or_masked():
    arrays = [np.arange(12, dtype=np.float32).reshape(3, 2, 2) + number for number in range(2)]
    columns = {
        "pixel_values": Ragged.from_arrays(arrays),
        "pixel_values.shape": np.array([array.shape for array in arrays]),
        "length": np.array([7, 7]),
    }
    task, sequences = Images(TASK.params, TASK.checkpoint), Sequences(np.arange(2), columns)
    batch = PaddedBatch(sequences, task, CPU)
    assert batch.inputs.keys() == {"pixel_values"}
    assert np.array_equal(batch.inputs["pixel_values"].numpy(), np.stack(arrays))
    assert input_lengths(sequences, task).tolist() == [7, 7]  # what they cost, not how long they are
    assert batch.lengths.tolist() == [1, 1]


def test_what_a_sequence_costs_does_not_change_how_it_is_padded():
    batch = batch_of([[10, 11], [12]], length=np.array([50, 40]))
    assert input_lengths(batch.sequences, TASK).tolist() == [50, 40]
    assert batch.lengths.tolist() == [2, 1]
    assert batch.inputs["input_ids"].shape == (2, 2)


def test_floats_become_the_models_type_and_ids_stay_whole():
    task = Audio(TASK.params, TASK.checkpoint)
    sounds = {"input_values": Ragged.from_arrays([np.ones(3)])}
    assert PaddedBatch(Sequences(np.arange(1), sounds), task, CPU, torch.bfloat16).inputs["input_values"].dtype == (
        torch.bfloat16
    )
    ids = Sequences(np.arange(1), {"input_ids": Ragged.from_lists([[10]])})
    assert PaddedBatch(ids, TASK, CPU, torch.bfloat16).inputs["input_ids"].dtype == torch.int64

"""Forwards side by side on one CPU."""

import threading
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hfbatch.lanes import MOST, MOST_DECODING, Lanes, lanes_for
from hfbatch.model import Predict
from hfbatch.tasks.base import KEY
from tests.inline import plan_of
from tests.models import sentences
from tests.zoo import text as zoo

TEXTS = sentences(60)
WAIT_S = 60.0  # for a thread that has to come


def predict_of(folder, threads, model, task, params=None, **machine):
    pq.write_table(pa.table({"text": TEXTS, "prompt": TEXTS}), folder / "in.parquet")
    job = {"task": task, "model": {"id": str(model)}, "params": params or {}}
    job |= {"input": {"path": str(folder / "in.parquet")}, "output": {"path": str(folder / "out")}}
    plan = plan_of(job, **machine)
    return Predict(plan.job.step, plan.machine, threads, gpu=False)


@pytest.fixture
def make(tmp_path, classifier):
    """make(threads, forward=None, **machine) -> a Predict and its sequences; `forward` wraps the task's own."""

    def made(threads, forward=None, **machine):
        predict = predict_of(tmp_path, threads, classifier, "text-classification", **machine)
        predict.unproven = False
        sequences = predict.task.preprocess(pa.table({"text": TEXTS}))
        if forward is not None:
            predict.engine.settle_layout(sequences)
            inner = type(predict.engine.task)
            whole = {"forward": lambda self, model, batch: forward(lambda: inner.forward(self, model, batch), batch)}
            predict.engine.task = type("Wrapped", (inner,), whole)(predict.task.params, predict.task.checkpoint)
        return predict, sequences

    return made


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("machine", [{}, {"packing": False}], ids=["packed", "padded"])
@pytest.mark.parametrize("lanes", [2, 3])
def test_values_are_those_of_one_lane(make, lanes, machine):
    alone, sequences = make(1, max_batch_tokens=40, **machine)
    beside, _ = make(lanes, max_batch_tokens=40, **machine)
    assert (alone.engine.lanes.count, beside.engine.lanes.count) == (1, lanes)
    expected, _ = alone.predict(sequences)
    found, errors = beside.predict(sequences)
    assert errors == {}
    assert found.row.tolist() == expected.row.tolist()
    np.testing.assert_allclose(found.dense("logits"), expected.dense("logits"), atol=1e-5)
    assert beside.engine.meter.tokens == alone.engine.meter.tokens
    assert beside.engine.meter.batches == alone.engine.meter.batches > lanes
    assert beside.engine.layout == alone.engine.layout


def test_two_forwards_are_under_way_at_once_each_with_its_share_of_the_threads(make):
    meeting, threads = threading.Barrier(2), set()

    def forward(own, batch):
        meeting.wait(WAIT_S)
        threads.add((threading.current_thread().name, torch.get_num_threads()))
        return own()

    predict, sequences = make(2, forward, max_batch_rows=15)
    _, errors = predict.predict(sequences)
    assert errors == {}
    assert {count for _, count in threads} == {1}
    assert len(threads) == 2


def test_a_forward_that_does_not_end_holds_up_what_is_behind_it(make):
    """As the watchdog is renewed where batches begin and end, it comes to its end then."""
    begun, held, renewals = [], threading.Event(), []

    def forward(own, batch):
        begun.append(batch)
        if begun[0] is batch:
            assert held.wait(WAIT_S)
        elif len(begun) == 2 + predict.engine._ahead - 1:  # all that may be begun before the first has ended
            renewals.append(len(renewed))
            threading.Timer(0.3, held.set).start()
        return own()

    predict, sequences = make(2, forward, max_batch_rows=5)
    renewed = []
    predict.engine.renew = lambda: renewed.append(held.is_set())
    _, errors = predict.predict(sequences)
    assert errors == {}
    assert len(begun) == 12
    assert renewals, "the others never got so far"
    assert renewed.count(False) == renewals[0], "something was renewed while the first forward hung"


def test_errors_are_found_and_batches_halved_as_in_one_lane(make):
    def forward(own, batch):
        if 7 in batch.sequences.row:
            raise ValueError("row 7 is bad")
        if len(batch.sequences) > 8:
            raise MemoryError
        return own()

    found = []
    for threads in (1, 2):
        predict, sequences = make(threads, forward, max_batch_rows=20)
        outputs, errors = predict.predict(sequences)
        found.append((outputs.row.tolist(), {row: (error.code, error.message) for row, error in errors.items()}))
    assert found[0] == found[1]
    assert list(found[1][1]) == [7]
    assert len(found[1][0]) == 59


def test_where_a_row_may_end_the_process_only_that_row_is_under_way(make):
    under_way, most = set(), []

    def forward(own, batch):
        under_way.add(id(batch))
        most.append(len(under_way))
        made = own()
        under_way.remove(id(batch))
        return made

    predict, sequences = make(2, forward, max_batch_rows=4)
    told = []
    predict.engine.announce = lambda rows: told.append(len(most))
    predict.predict(sequences)
    assert set(most) == {1}
    assert told == list(range(15)), "a row was announced before the last one's forward had ended"


def test_an_error_lets_go_of_what_its_batch_held():
    class Big:
        pass

    lanes, alive = Lanes(2, 2), []

    def work():
        held = Big()
        alive.append(weakref.ref(held))
        raise MemoryError

    landed = lanes.start(work)
    with pytest.raises(MemoryError) as raised:
        landed()
    del raised
    assert alive[0]() is None


def test_there_are_at_most_as_many_as_threads_and_none_beside_a_model_that_remembers(tmp_path):
    plain = torch.nn.Linear(1, 1)
    assert [lanes_for(plain, threads) for threads in (1, 2, 7, 64)] == [1, 2, 7, MOST]
    assert [lanes_for(plain, threads, decodes=True) for threads in (1, 2, 64)] == [1, 2, MOST_DECODING]
    with torch.device("meta"):
        large = torch.nn.Linear(2**15, 2**14)
    assert lanes_for(large, 64) == MOST
    assert lanes_for(large, 64, decodes=True) == 1
    from transformers import AutoModelForCausalLM

    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 64}
    for number, (parameters, expected) in enumerate([(None, 4), (scaled, 1)]):
        kept = {} if parameters is None else {"rope_parameters": parameters}
        folder = zoo.llama(tmp_path / str(number), **kept)
        assert lanes_for(AutoModelForCausalLM.from_pretrained(folder), 4) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, of torch itself
def test_none_beside_a_model_that_is_compiled_and_none_beside_a_search_of_transformers(tmp_path, classifier):
    compiled = predict_of(tmp_path, 2, classifier, "text-classification", compile=True)
    assert compiled.engine.lanes.count == 1
    searching = predict_of(tmp_path, 2, zoo.t5(tmp_path / "t5"), "summarization", {"num_beams": 2})
    assert searching.engine.lanes.count == 1


@pytest.mark.parametrize(
    ("model", "task", "params"),
    [
        ("llama", "text-generation", {"do_sample": False, "max_new_tokens": 12}),
        ("llama", "text-generation", {"do_sample": True, "seed": 3, "max_new_tokens": 12}),
        ("t5", "summarization", {"max_new_tokens": 12, "min_new_tokens": 0, "num_beams": 1}),
    ],
)
def test_texts_of_two_lanes_are_those_of_one_and_are_counted_as_they_end(tmp_path, model, task, params):
    folder, found, counts = getattr(zoo, model)(tmp_path / model), [], []
    for threads in (1, 4):
        predict = predict_of(tmp_path, threads, folder, task, params)
        predict.unproven = False
        rows = pa.table({name: TEXTS if name != KEY else range(len(TEXTS)) for name in ("text", "prompt", KEY)})
        sequences = predict.task.preprocess(rows)
        engine = predict.engine
        engine.report = lambda meter: counts.append(meter.sequences)
        outputs, errors = predict.predict(sequences)
        assert errors == {}
        assert engine.task.schedules
        found.append((outputs.ragged("tokens").values.tolist(), outputs.dense("token_counts").tolist()))
        assert engine.lanes.count == min(threads, 2)
        assert engine.meter.sequences == len(TEXTS)
        assert engine._finished == {}
    assert found[0] == found[1]
    assert max(counts) == len(TEXTS), "more rows have ended than there are"
    assert len({count for count in counts if 0 < count < len(TEXTS)}) > 3, "nothing was told on the way"

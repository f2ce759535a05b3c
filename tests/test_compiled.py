"""A compiled model sees a handful of shapes, and gives what the model itself gives.

Most tests let torch trace the model and do without the C++ compiler behind it, which takes ten seconds a shape.
"""

import logging
import multiprocessing
import threading
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_map_only

import hfbatch.engine
from hfbatch import isolation
from hfbatch.compiled import PATIENCE_S, Compiled, mode_of
from hfbatch.layout import PaddedBatch
from hfbatch.model import Predict
from hfbatch.sequences import Sequences
from hfbatch.shapes import FULL, Shapes, widths_up_to
from hfbatch.spec import Machine
from tests import models
from tests.inline import plan_of
from tests.test_lanes import predict_of
from tests.zoo import text as zoo

# torch.compile itself warns of what it uses of torch
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TEXTS = models.sentences(220, longest=28)  # up to 30 tokens: two widths
LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=200)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three labels, at most 32 tokens."""
    return zoo.distilbert(tmp_path_factory.mktemp("small"), max_length=32, n_layers=1, num_labels=3)


class Compiler:
    """In torch.compile's place: what it was asked for, the shapes that came, and results that a test may change."""

    def __init__(self, monkeypatch):
        self.shapes, self.modes, self.change, self.before = [], [], lambda made: made, lambda: None
        self.real = torch.compile
        monkeypatch.setattr(torch, "compile", self.compile)

    def compile(self, model, *, mode, fullgraph, dynamic):
        """Nothing is: every new shape counts as compiled."""
        self.modes.append(mode)
        assert (fullgraph, dynamic) == (True, False)

        def run(**inputs):
            if (shape := tuple(inputs["input_ids"].shape)) not in self.shapes:
                self.before()
                self.shapes.append(shape)
            return tree_map_only(torch.Tensor, self.change, model(**inputs))

        return run


class Tracer(Compiler):
    """torch traces the model, and runs the graphs as they are."""

    def compile(self, model, *, mode, **options):
        self.modes.append(mode)
        return self.real(model, backend=self.backend, **options)

    def backend(self, graph, inputs):
        self.before()
        self.shapes += {tuple(each.shape) for each in inputs if each.dtype == torch.int64 and len(each) > 1}
        return lambda *given: tuple(self.change(each) for each in graph(*given))


@pytest.fixture
def compiler(monkeypatch):
    return Compiler(monkeypatch)


@pytest.fixture
def tracer(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep all of it
    yield Tracer(monkeypatch)
    torch.compiler.reset()


@pytest.fixture
def inductor():
    """torch._inductor, which remembers nothing."""
    import torch._inductor.config
    from torch._inductor.utils import fresh_cache

    torch.compiler.reset()
    with fresh_cache():
        yield torch._inductor
    torch.compiler.reset()


@pytest.fixture
def make(tmp_path, small):
    """make(forward=None, texts=TEXTS, **machine) -> a Predict and its sequences; `forward` wraps the task's own."""

    def made(forward=None, texts=TEXTS, **machine):
        predict = predict_of(tmp_path, 1, small, "text-classification", **{"compile": True, **machine})
        predict.unproven = False
        if forward is not None:
            inner = type(predict.engine.task)
            whole = {"forward": lambda self, model, batch: forward(lambda: inner.forward(self, model, batch), batch)}
            task = type("Wrapped", (inner,), whole)(predict.task.params, predict.task.checkpoint)
            predict.engine.task = task
            if predict.engine.compiled is not None:
                predict.engine.compiled._task = task
        return predict, predict.task.preprocess(pa.table({"text": texts}))

    return made


def assert_alike(one, other):
    """Of Python's own values: floats nearly, all else exactly."""
    assert type(one) is type(other)
    if isinstance(one, float):
        assert one == pytest.approx(other, abs=5e-5)
    elif isinstance(one, dict):
        assert_alike([*one.items()], [*other.items()])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_alike(each, its)
    else:
        assert one == other


@given(st.integers(1, 40_000))
def test_widths_are_few_rise_and_leave_little_to_padding(longest):
    widths = widths_up_to(longest)
    assert widths[-2:-1] < (longest,) <= widths[-1:]
    assert all(width % 8 == 0 for width in widths)
    assert all(one < other <= max(32, one * 1.5) for one, other in pairwise(widths))
    assert len(widths) <= 2 * max(2, longest.bit_length() - 3)


@given(LENGTHS, st.integers(8, 2000), st.integers(1, 100))
def test_each_sequence_is_in_one_batch_and_all_batches_have_few_shapes(lengths, tokens, max_rows):
    lengths, shapes = np.array(lengths), Shapes(widths_up_to(512), tokens, max_rows)
    batches = list(shapes.cut(lengths, lambda: tokens))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    found = [shapes.of(width, len(batch), tokens) for width, batch in zip(longest, batches, strict=True)]
    assert len(set(found) - {None}) <= len(shapes.widths)
    for shape, width, batch in zip(found, longest, batches, strict=True):
        if shape is not None:
            assert shape[0] * shape[1] <= tokens
            assert shape[0] <= max_rows
            assert shape[1] >= width
            assert FULL * shape[0] <= len(batch) <= shape[0]
            assert shapes.cost(width, len(batch), tokens) == shape[0] * shape[1]
    short = [
        batch for shape, width, batch in zip(found, longest, batches, strict=True) if shape is None and width <= 512
    ]
    assert len(short) <= 1 or tokens < 512, "only the last batch may lack rows"


def test_a_smaller_budget_halves_the_rows_of_a_shape_and_a_longer_text_has_a_shape_of_its_own():
    shapes = Shapes((16, 32, 64), 640, 1000)
    assert [shapes.of(60, rows, 640) for rows in (10, 5, 4, 11)] == [(10, 64), (10, 64), None, None]
    assert [shapes.of(60, 2, budget) for budget in (639, 320, 319, 64, 63)] == [None, None, (2, 64), None, None]
    assert shapes.of(65, 1, 640) is None
    assert shapes.cost(65, 3, 640) == 195
    assert [len(batch) for batch in shapes.cut(np.full(20, 60), lambda: 320)] == [5, 5, 5, 5]


def test_values_are_those_of_the_model_and_each_shape_is_compiled_once(make, tracer):
    plain, sequences = make(compile=False, packing=False)
    expected, _ = plain.predict(sequences)
    predict, _ = make(max_batch_tokens=512)
    for _ in range(2):
        found, errors = predict.predict(sequences)
        assert errors == {}
        assert found.row.tolist() == expected.row.tolist(), "rows that fill a shape up were kept, or some are missing"
        np.testing.assert_allclose(found.dense("logits"), expected.dense("logits"), atol=1e-5)
    assert sorted(tracer.shapes) == [(16, 32), (32, 16)]
    assert predict.engine.layout == "padded to 2 widths, compiled"
    meter = predict.engine.meter
    assert meter.sequences == 2 * len(TEXTS)
    assert meter.padded_tokens % 512 == 0, "a batch costs its shape"
    assert meter.padded_tokens == 512 * meter.batches


@pytest.mark.parametrize(
    ("model", "head", "task", "params"),
    [
        ("bert", "BertForTokenClassification", "token-classification", {}),
        ("bert", "BertForTokenClassification", "token-classification", {"aggregation_strategy": "average"}),
        ("bert", "BertForMaskedLM", "fill-mask", {}),
        ("bert", "BertForQuestionAnswering", "question-answering", {"top_k": 3}),
        ("bert", "BertForSequenceClassification", "text-ranking", {}),
        ("bert", "BertModel", "feature-extraction", {"pooling": "none"}),
        ("roberta", "RobertaModel", "feature-extraction", {"pooling": "weighted_mean"}),
        ("roberta", "RobertaModel", "feature-extraction", {"pooling": "last_token"}),
        ("llama", "LlamaForSequenceClassification", "text-classification", {}),
    ],
)
def test_every_task_over_text_gives_what_it_gives_without(tmp_path, compiler, model, head, task, params):
    more = {"num_labels": 1} if task == "text-ranking" else {}
    folder, found = getattr(zoo, model)(tmp_path / "model", head, **more), []
    masked = [f"{text} [MASK]" for text in TEXTS] if task == "fill-mask" else TEXTS
    names = {"text": masked, "query": TEXTS, "question": TEXTS, "context": TEXTS[::-1]}
    pq.write_table(pa.table(names), tmp_path / "in.parquet")
    job = {"task": task, "model": {"id": str(folder)}, "params": params, "output": {"path": str(tmp_path / "out")}}
    job["input"] = {"path": str(tmp_path / "in.parquet")}
    for machine in ({"packing": False}, {"compile": True, "max_batch_tokens": 512}):
        plan = plan_of(job, **machine)
        predict = Predict(plan.job.step, plan.machine, 1, gpu=False)
        predict.unproven = False
        sequences = predict.task.preprocess(pa.table(names))
        outputs = predict.predict(sequences)[0]
        columns = {name: column for name, column in sequences.columns.items() if name not in outputs.columns}
        whole = Sequences(outputs.row, {**columns, **outputs.columns})
        found.append(predict.task.postprocess(whole, pa.table(names)))
    assert predict.engine.compiled.reason is None
    assert 2 <= len(compiler.shapes) <= 5
    for name in found[0].column_names:
        one, other = (each[name].to_pylist() for each in found)
        assert len(one) == len(TEXTS)
        assert_alike(one, other)


def test_a_shape_is_filled_up_by_half_at_most_and_a_few_rows_compile_nothing(make, compiler):
    predict, sequences = make(texts=TEXTS[:3], max_batch_tokens=512)
    few, errors = predict.predict(sequences)
    assert (compiler.shapes, errors, len(few)) == ([], {}, 3)
    half, sequences = make(texts=["good day"] * 17, max_batch_tokens=512)
    found, _ = half.predict(sequences)
    assert compiler.shapes == [(32, 16)]
    assert len(found) == 17
    assert len(np.unique(found.dense("logits").round(4), axis=0)) == 1


def test_a_bad_row_is_found_and_the_others_stay_compiled(make, compiler):
    def forward(own, batch):
        if 7 in batch.sequences.row:
            raise ValueError("row 7 is bad")
        return own()

    predict, sequences = make(forward, max_batch_tokens=512)
    found, errors = predict.predict(sequences)
    assert {row: error.message for row, error in errors.items()} == {7: "ValueError: row 7 is bad"}
    assert found.row.tolist() == [row for row in range(len(TEXTS)) if row != 7]
    assert predict.engine.compiled.reason is None
    assert sorted(compiler.shapes) == [(16, 32), (32, 16)]


def test_what_fails_in_the_compiled_model_alone_is_asked_of_the_model(make):
    plain, sequences = make(compile=False)
    expected, _ = plain.predict(sequences)
    predict, _ = make(max_batch_tokens=512)
    ran = []

    def broken(*given, **inputs):
        ran.append(1)
        raise RuntimeError("an illegal instruction")

    predict.engine.compiled._graph, predict.engine.compiled._ready = broken, {(16, 32), (32, 16)}
    found, errors = predict.predict(sequences)
    assert errors == {}
    assert ran
    np.testing.assert_allclose(found.dense("logits"), expected.dense("logits"), atol=1e-5)


def test_out_of_memory_halves_the_shapes(make, compiler):
    def forward(own, batch):
        if batch.real.size > 300:
            raise MemoryError
        return own()

    predict, sequences = make(forward, max_batch_tokens=512)
    found, errors = predict.predict(sequences)
    assert errors == {}
    assert len(found) == len(TEXTS)
    assert (8, 32) in compiler.shapes
    assert {rows * width for rows, width in compiler.shapes} <= {256, 512}
    assert predict.engine.compiled.reason is None


@pytest.mark.parametrize("trouble", ["a backend that raises", "a backend that gives other values"])
def test_where_the_compiler_fails_the_run_goes_on_without_it_and_says_why(make, tracer, trouble):
    def fail():
        raise NotImplementedError("no such operator")

    if trouble == "a backend that raises":
        tracer.before, reason = fail, "no such operator"
    else:
        tracer.change, reason = lambda made: made + 0.01, "compiled, its logits are others"
    plain, sequences = make(compile=False, packing=False)
    expected, _ = plain.predict(sequences)
    predict, _ = make(max_batch_tokens=512)
    found, errors = predict.predict(sequences)
    assert errors == {}
    np.testing.assert_allclose(found.dense("logits"), expected.dense("logits"), atol=1e-5)
    assert predict.engine.layout.startswith("padded (compile: ")
    assert reason in predict.engine.layout
    assert "\n" not in predict.engine.layout
    assert predict.engine._cost(np.arange(3), np.array([5, 9, 3])) == 27


def test_compiling_counts_as_no_batchs_time_and_has_patience(make, compiler, monkeypatch):
    told, watch = [], hfbatch.engine.stopwatch

    def stopwatch(device):
        told.append("begin")
        queued = watch(device)
        return lambda: told.append("end") or queued()

    monkeypatch.setattr(hfbatch.engine, "stopwatch", stopwatch)
    compiler.before = lambda: told.append("compile")
    predict, sequences = make(max_batch_tokens=512)
    predict.engine.renew = lambda least=0.0: told.append(least)
    predict.predict(sequences)
    first = told.index("compile")
    assert told[first - 2 : first + 4] == [0.0, PATIENCE_S, "compile", 0.0, "begin", "end"]
    assert told.count("compile") == told.count(PATIENCE_S) == 2
    assert all(told[place - 1] == PATIENCE_S for place, what in enumerate(told) if what == "compile")


def test_the_size_of_a_batch_stays_as_it_is(make):
    tuned, _ = make(compile=False)
    assert not tuned.engine.tuner.settled
    predict, _ = make()
    assert predict.engine.tuner.settled
    assert predict.engine.budget == predict.task.batch_tokens[0]


def test_on_a_gpu_it_is_cuda_graphs_and_what_they_write_is_copied(make, compiler):
    """As CUDA graphs do, this one writes every result to the same place; a GPU itself is not to be had here."""
    assert [mode_of(torch.device(kind)) for kind in ("cpu", "cuda")] == ["default", "reduce-overhead"]
    predict, sequences = make(packing=False, compile=False)
    place, threads = {}, set()

    def overwrite(made):
        threads.add(threading.current_thread().name)
        return place.setdefault(tuple(made.shape), torch.empty_like(made)).copy_(made)

    compiler.change = overwrite
    compiled = Compiled(predict.engine.model, predict.task, torch.device("cuda"), 512, 1024)
    batches = [sequences.take(np.arange(start, start + 16)) for start in (0, 16)]
    laid = [PaddedBatch(batch, predict.task, torch.device("cpu")) for batch in batches]
    with torch.inference_mode():
        expected = [predict.task.forward(predict.engine.model, batch)["logits"] for batch in laid]
        ready = [compiled.ready(batch, 512, lambda least=0.0: None) for batch in laid]
        found = [predict.task.forward(model, batch)["logits"] for batch, model in ready]
    assert compiler.modes == ["reduce-overhead"]
    assert compiled.layout == "padded to 2 widths, compiled to CUDA graphs"
    assert [batch.real.shape for batch, _ in ready] == [(16, 32), (16, 32)]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert threads == {"compiled_0"}


def test_what_is_no_rectangle_of_text_keeps_the_compiler_it_had(tmp_path):
    searching = predict_of(tmp_path, 1, zoo.t5(tmp_path / "t5"), "summarization", {"num_beams": 2}, compile=True)
    assert searching.engine.compiled is None
    assert hasattr(searching.engine.model, "_orig_mod")


def test_the_child_that_looks_for_a_row_that_kills_compiles_nothing(make, monkeypatch):
    asked = []

    class Context:
        Pipe = staticmethod(multiprocessing.Pipe)

        def Process(self, target, args, **_):
            asked.append(args)
            raise InterruptedError

    monkeypatch.setattr(multiprocessing, "get_context", lambda method: Context())
    predict, _ = make()
    with pytest.raises(InterruptedError):
        isolation.Child(predict)
    machine = next(each for each in asked[0] if isinstance(each, Machine))
    assert (predict.machine.compile, machine.compile) == (True, False)


@pytest.mark.slow
def test_inductor_gives_the_values_of_the_model(make, inductor):
    plain, sequences = make(compile=False)
    expected, _ = plain.predict(sequences)
    predict, _ = make(max_batch_tokens=512)
    found, errors = predict.predict(sequences)
    assert errors == {}
    assert predict.engine.layout == "padded to 2 widths, compiled"
    assert len(predict.engine.compiled._ready) == 2
    np.testing.assert_allclose(found.dense("logits"), expected.dense("logits"), atol=1e-5)


@pytest.mark.slow
def test_without_a_cpp_compiler_the_run_goes_on_without_it(make, inductor, tmp_path, monkeypatch):
    monkeypatch.setattr(inductor.config.cpp, "cxx", (None, str(tmp_path / "g++")))
    plain, sequences = make(compile=False)
    expected, _ = plain.predict(sequences)
    predict, _ = make(max_batch_tokens=512)
    found, errors = predict.predict(sequences)
    assert errors == {}
    assert "No working C++ compiler found" in predict.engine.layout
    np.testing.assert_allclose(found.dense("logits"), expected.dense("logits"), atol=1e-5)

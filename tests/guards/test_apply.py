"""Rules over real rows, through real models: what breaks one, and what becomes of it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import columns as col
from hfbatch import passes, pipeline
from hfbatch.again import spec_of
from hfbatch.chain import Chain
from hfbatch.guards.apply import NOTE
from hfbatch.ledger import Ledger
from hfbatch.load import load_job, load_machine
from hfbatch.planner import make_plan
from hfbatch.postprocess import Finish
from hfbatch.recheck import recheck_output
from hfbatch.records import pinned
from hfbatch.sample import draw, look_at
from hfbatch.store import open_store
from hfbatch.tasks.text_classification import TextClassification
from tests.inline import blocks_of, inline_passes, plan_of, run_inline
from tests.models import sentences
from tests.zoo import text

LONG = "good " * 30
PLANTED = [
    "the good movie",
    "write to ann.b@x.org today",
    "card 4111 1111 1111 1111",
    None,
    "ignore previous rain",
    LONG,
]
LINEAGE = {"model_id", "model_revision", "parameters", "run_id"}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return text.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def planned(classifier, write_parquet, job_for):
    """planned(texts, machine={...}, input={...}, output={...}) -> the plan of a classifier with these rules."""

    def planned(texts, machine=None, job=None, **guardrails):
        path = write_parquet("in.parquet", {"text": pa.array(texts, pa.string())})
        whole = job_for("text-classification", classifier, path) | {"guardrails": guardrails} | (job or {})
        return plan_of(whole, **(machine or {}))

    return planned


@pytest.fixture
def rows(planned):
    """The rows as they would be committed, without lineage."""

    def rows(texts, **rules):
        return bare(run_inline(planned(texts, **rules)))

    return rows


def bare(table):
    return [{name: value for name, value in row.items() if name not in LINEAGE} for row in table.to_pylist()]


def notes(name, action, detail):
    return [{"name": name, "action": action, "detail": detail}]


def test_a_row_that_breaks_no_rule_is_as_it_would_be_without(rows):
    plain, guarded = rows(PLANTED), rows(PLANTED, input={"max_chars": {"limit": 1000, "action": "fail"}})
    assert guarded == [{**row, "guardrails": None} for row in plain]


def test_flag_notes_null_takes_the_prediction_and_fail_is_an_error(rows):
    plain, done = rows(PLANTED), {}
    for action in ("flag", "null", "fail"):
        done[action] = rows(PLANTED, input={"max_chars": {"limit": 100, "action": action}})
        assert [row["guardrails"] for row in done[action][:5]] == [None] * 5
        assert done[action][5]["guardrails"] == notes("input.max_chars", action, "150 characters, the limit is 100")
    without = {"label": None, "score": None, "truncated": None}
    assert {**done["flag"][5], "guardrails": None} == {**plain[5], "guardrails": None}
    assert {**done["null"][5], "guardrails": None} == {**plain[5], **without, "error": None, "guardrails": None}
    assert done["fail"][5]["error"] == "guardrail: input.max_chars: 150 characters, the limit is 100"
    assert done["fail"][5]["label"] is None


def test_the_model_never_sees_what_a_rule_for_the_input_withholds(planned, monkeypatch):
    seen, own = [], TextClassification.preprocess

    def spy(task, rows):
        seen.extend(rows["text"].to_pylist())
        return own(task, rows)

    monkeypatch.setattr(TextClassification, "preprocess", spy)
    rule = {"patterns": ["ignore", "movie"], "action": "null"}
    run_inline(planned(PLANTED, input={"deny_patterns": rule, "max_chars": {"limit": 100, "action": "fail"}}))
    assert set(seen) == {PLANTED[1], PLANTED[2]}


def test_a_row_that_is_withheld_is_held_against_no_further_rule(rows):
    rules = {"max_chars": {"limit": 100, "action": "null"}, "deny_patterns": {"patterns": ["good"], "action": "fail"}}
    done = rows(PLANTED, input=rules)
    assert done[5]["guardrails"] == notes("input.max_chars", "null", "150 characters, the limit is 100")
    assert done[5]["error"] is None
    assert done[0]["error"].startswith("guardrail: input.deny_patterns: ")


def test_redact_changes_what_the_model_sees_and_not_what_is_kept(rows):
    shown = [*PLANTED[:1], "write to [EMAIL] today", "card [CREDIT_CARD]", *PLANTED[3:]]
    redacted = rows(PLANTED, input={"pii": {"action": "redact"}})
    assert [row["text"] for row in redacted] == PLANTED
    assert [(row["label"], row["score"]) for row in redacted] == [(row["label"], row["score"]) for row in rows(shown)]
    assert [row["guardrails"] for row in redacted[:3]] == [
        None,
        notes("input.pii", "redact", "1 email"),
        notes("input.pii", "redact", "1 credit_card"),
    ]
    assert redacted[3]["error"] == "null_input: text is null"


def test_no_detail_and_no_error_shows_what_was_found(rows):
    secrets = ["ann.b@x.org", "4111 1111 1111 1111", "ignore previous"]
    rules = {"pii": {"action": "flag"}, "deny_patterns": {"patterns": ["ignore \\w+"], "action": "fail"}}
    for row in rows(PLANTED, input=rules):
        told = json.dumps([row["guardrails"], row["error"]])
        assert not [secret for secret in secrets if secret in told]


def test_a_model_is_asked_about_the_input_and_its_labels_decide(rows, classifier):
    texts = sentences(40, seed=5)
    judge = {"model": {"id": str(classifier)}, "labels": ["negative"], "threshold": 0.9, "action": "fail"}
    plain, guarded = rows(texts), rows(texts, input={"prompt_injection": judge})
    refused = [row["label"] == "negative" and row["score"] >= 0.9 for row in plain]
    assert 0 < sum(refused) < len(texts)
    for before, after, no in zip(plain, guarded, refused, strict=True):
        assert (after["error"] is None) is not no
        assert after["label"] == (None if no else before["label"])
        if no:
            assert (
                after["error"]
                == f"guardrail: input.prompt_injection: negative {before['score']:.2f}, the threshold is 0.9"
            )


def test_a_model_finds_persons_beside_the_patterns(rows, tagger, classifier):
    texts = [*sentences(30, seed=6), "rain ann.b@x.org sun"]
    both = rows(texts, input={"pii": {"model": {"id": str(tagger)}, "labels": ["PER", "LOC"], "threshold": 0.6}})
    details = [row["guardrails"][0]["detail"] for row in both if row["guardrails"]]
    assert any("PER" in detail for detail in details)
    assert not any("O" in detail.split(" ") for detail in details)
    assert "1 email" in both[-1]["guardrails"][0]["detail"]


@pytest.mark.parametrize("stage", [False, True])
def test_batches_and_stages_change_nothing(planned, classifier, tagger, stage):
    texts = [*sentences(25, seed=7), *PLANTED, "x" * 90]
    rules = {
        "input": {
            "max_chars": {"limit": 80, "action": "null"},
            "deny_patterns": {"patterns": ["ignore", "night"], "action": "fail"},
            "prompt_injection": {
                "model": {"id": str(classifier)},
                "labels": ["negative"],
                "threshold": 0.97,
                "action": "null",
            },
            "pii": {"model": {"id": str(tagger)}, "threshold": 0.5, "action": "redact"},
        },
        "output": {"min_score": {"limit": 0.8}},
    }
    one = planned(texts, {"max_batch_rows": 1, "max_batch_tokens": 64, "packing": False}, **rules)
    alone = run_inline(one)
    together = run_inline(planned(texts, {"shard_rows": 7}, **rules), stage=stage)
    assert len(alone) == len(together) == len(texts)
    for before, after in zip(bare(alone), bare(together), strict=True):
        assert after == {**before, "score": pytest.approx(before["score"], abs=1e-5) if before["score"] else None}
    assert {note["name"] for row in alone["guardrails"].to_pylist() for note in row or ()} == {
        "input.max_chars",
        "input.deny_patterns",
        "input.prompt_injection",
        "input.pii",
        "output.min_score",
    }


def test_a_prediction_that_is_not_sure_is_for_review_or_loses_its_label(rows):
    texts = [*sentences(30, seed=8), None]
    reviewed = rows(texts, output={"min_score": {"limit": 0.6, "action": "review"}})
    nulled = rows(texts, output={"min_score": {"limit": 0.6, "action": None}})
    low = [row["score"] is not None and row["score"] < 0.6 for row in reviewed]
    assert 0 < sum(low) < len(texts)
    for review, null, is_low in zip(reviewed, nulled, low, strict=True):
        assert review["review"] is (None if review["score"] is None else is_low)
        assert (null["score"], null["truncated"], null["error"]) == (
            review["score"],
            review["truncated"],
            review["error"],
        )
        assert null["label"] == (None if is_low else review["label"])
        assert bool(review["guardrails"]) is bool(null["guardrails"]) is is_low
    assert "review" not in nulled[0]


@pytest.fixture
def generated(decoder, write_parquet, job_for):
    def generated(prompts, **guardrails):
        path = write_parquet("in.parquet", prompts)
        job = job_for("text-generation", decoder, path, do_sample=False, max_new_tokens=12)
        return bare(run_inline(plan_of(job | ({"guardrails": guardrails} if guardrails else {}))))

    return generated


def test_text_that_a_model_wrote_is_held_against_patterns_repetition_and_a_classifier(generated, classifier):
    prompts = {"prompt": sentences(12, seed=9, longest=6)}
    plain = generated(prompts)
    word = next(word for row in plain for word in row["generated_text"].split() if word.isalpha())
    denied = generated(prompts, output={"deny_patterns": {"patterns": [f"(?i)\\b{word}\\b"], "action": None}})
    for before, after in zip(plain, denied, strict=True):
        hit = word in before["generated_text"].split()
        assert after["generated_text"] == (None if hit else before["generated_text"])
        assert after["finish_reason"] == (None if hit else before["finish_reason"])
        assert after["error"] is None
    assert 0 < sum(row["generated_text"] is None for row in denied) < len(denied)
    filtered = generated(
        prompts,
        output={
            "max_repetition": {"limit": 0.2, "n": 1, "action": "flag"},
            "content_filter": {
                "model": {"id": str(classifier)},
                "labels": ["negative"],
                "threshold": 0.5,
                "action": "fail",
            },
        },
    )
    names = [note["name"] for row in filtered for note in row["guardrails"] or ()]
    assert {"output.max_repetition", "output.content_filter"} == set(names)
    for before, after in zip(plain, filtered, strict=True):
        failed = after["error"] is not None
        assert after["generated_text"] == (None if failed else before["generated_text"])
        assert not failed or after["error"].startswith("guardrail: output.content_filter: negative ")


def test_messages_of_a_chat_are_redacted_one_by_one(generated):
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

    def chats(secret):
        asked = [{"role": "user", "content": "where is the river?"}, {"role": "user", "content": f"ask {secret} now"}]
        return {"messages": pa.array([asked, asked[:1]], kind)}

    redacted = generated(chats("ann.b@x.org"), input={"pii": {"action": "redact"}})
    shown = generated(chats("[EMAIL]"))
    assert [row["generated_text"] for row in redacted] == [row["generated_text"] for row in shown]
    assert [bool(row["guardrails"]) for row in redacted] == [True, False]
    assert redacted[0]["messages"] == chats("ann.b@x.org")["messages"][0].as_py()


def test_a_rule_whose_model_fails_at_a_row_fails_the_row(rows, classifier, monkeypatch):
    own = TextClassification.postprocess

    def postprocess(task, outputs, table):
        if task.params.top_k is None and "movie" in "".join(table["text"].to_pylist()):  # as rules ask
            raise RuntimeError("no")
        return own(task, outputs, table)

    monkeypatch.setattr(TextClassification, "postprocess", postprocess)
    judge = {"model": {"id": str(classifier)}, "labels": ["positive"], "threshold": 1}
    done = rows(PLANTED, input={"prompt_injection": judge})
    assert done[0]["error"] == "postprocess_failed: RuntimeError: no (step guardrails.input.prompt_injection.text)"
    assert done[0]["label"] is None
    assert done[1]["label"] is not None


def test_rules_hold_for_all_steps_of_a_job(classifier, write_parquet, tmp_path):
    path = write_parquet("in.parquet", {"text": PLANTED, "title": ["x", "y", "z", "a", "b", "c"]})
    model = {"id": str(classifier)}
    steps = [
        {"name": "one", "task": "text-classification", "model": model},
        {"name": "two", "task": "text-classification", "model": model, "columns": {"text": "title"}},
    ]
    job = {"steps": steps, "input": {"path": str(path)}, "output": {"path": str(tmp_path / "out")}}
    rules = {"deny_patterns": {"patterns": ["^z$"], "action": "null"}, "max_chars": {"limit": 100, "action": "fail"}}
    done = bare(run_inline(plan_of(job | {"guardrails": {"input": rules}})))
    assert done[2]["guardrails"] == notes("input.deny_patterns", "null", "title: patterns.0 once, first at character 0")
    assert [(row["one_label"] is None, row["two_label"] is None) for row in done] == [
        (False, False),
        (False, False),
        (True, True),
        (True, False),
        (False, False),
        (True, True),
    ]
    assert done[5]["error"].startswith("guardrail: input.max_chars: text: ")


def test_a_shard_of_which_no_row_is_wanted_is_empty(planned, tagger):
    job = {"input": {"path": None, "where": "text == 'nothing'"}}
    plan = planned(PLANTED, input={"pii": {"action": "redact"}})
    job["input"]["path"] = plan.spec.input.path
    rules = {"pii": {"action": "redact", "model": {"id": str(tagger)}}}
    made = run_inline(planned(PLANTED, job=job, input=rules, output={"min_score": {"limit": 0.9}}))
    assert len(made) == 0
    assert made.schema.field("guardrails").type == pa.list_(NOTE)


def test_of_a_row_whose_prediction_was_taken_back_nothing_is_known_to_later_runs(planned):
    """For what stands in the object is not what the model said."""
    rules = {"min_score": {"limit": 0.6, "action": None}}
    texts = sentences(30, seed=8)
    plan = planned(texts, job={"dedupe": True}, output=rules)
    [block] = blocks_of(plan)
    made = Finish(plan.job, "run")(Chain(plan.job, plan.machine, 1)(block))
    [known] = [made[name] for name in made.column_names if name.startswith(col.KNOWS)]
    taken = [row is not None for row in made["guardrails"].to_pylist()]
    assert 0 < sum(taken) < len(texts)
    assert known.is_null().to_pylist() == taken


@pytest.fixture
def run(planned, monkeypatch):
    monkeypatch.setattr(passes, "run_passes", inline_passes)
    return lambda *args, **rules: pipeline.run(planned(*args, **rules))


def test_the_report_counts_what_rules_did_and_names_their_models(run, classifier):
    judge = {"model": {"id": str(classifier)}, "labels": ["positive"], "threshold": 1}
    rules = {"max_chars": {"limit": 100, "action": "fail"}, "pii": {"action": "redact"}, "prompt_injection": judge}
    report = run(PLANTED, job={"errors": {"max_failed_fraction": 0.5}}, input=rules)
    assert report.guardrails == {"input.pii: redact": 2, "input.max_chars: fail": 1}
    assert report.guarded == "input.pii: redact 2, input.max_chars: fail 1"
    assert report.errors == {"guardrail": 1, "null_input": 1}
    assert [step.name for step in report.steps] == ["guardrails.input.prompt_injection.text", ""]


def test_rows_that_rules_fail_count_against_the_error_budget(run):
    with pytest.raises(Exception, match="1 of 5 rows failed"):
        run([*PLANTED[:3], *PLANTED[4:]], input={"max_chars": {"limit": 100, "action": "fail"}})


def test_a_run_with_rules_for_which_nothing_changed_has_nothing_to_do(planned, monkeypatch):
    monkeypatch.setattr(passes, "run_passes", inline_passes)
    rules = {"input": {"max_chars": {"limit": 100}}}
    plan = planned(PLANTED[:3], **rules)
    pipeline.run(plan)
    again = make_plan(plan.spec, plan.machine)
    assert again.complete
    changed = load_job(plan.spec, overrides={"guardrails.input.max_chars.limit": "99"})
    assert "guardrails: there" in make_plan(changed, plan.machine).conflict


def test_the_models_of_rules_are_written_down_with_their_commit(run, planned, classifier):
    judge = {"model": {"id": str(classifier)}, "labels": ["positive"], "threshold": 1}
    report = run(PLANTED[:3], input={"prompt_injection": judge})
    ledger = Ledger(open_store(report.output))
    started = ledger.run_file(report.run_id, "started.json")
    assert started["guard_commits"] == {"input.prompt_injection": planned(PLANTED).job.step.model.commit}
    files = [file for file in (open_store(report.output).list("data")) if file.endswith(".parquet")]
    assert "guardrails" in pq.read_schema(open_store(report.output).url(files[0])).names


def test_a_job_that_is_read_back_from_its_output_is_the_same_one(run, classifier):
    judge = {"model": {"id": str(classifier)}, "labels": ["positive"], "threshold": 1, "action": None}
    rules = {"input": {"prompt_injection": judge, "pii": {"action": "redact"}}, "output": {"min_score": {"limit": 0.5}}}
    report = run(PLANTED[:3], **rules)
    assert make_plan(spec_of(report.output), load_machine({})).job.generation == report.generation


def test_the_model_of_a_rule_is_pinned_as_that_of_a_step_is():
    written = {"model": {"id": "a/b"}, "guardrails": {"input": {"prompt_injection": {"model": {"id": "a/c"}}}}}
    made = pinned(written, ["1" * 40], {"input.prompt_injection": "2" * 40})
    assert made["guardrails"]["input"]["prompt_injection"]["model"] == {"id": "a/c", "revision": "2" * 40}
    assert "revision" not in written["guardrails"]["input"]["prompt_injection"]["model"]
    assert pinned(written, ["1" * 40], {"input.prompt_injection": "sha256:2"})["guardrails"] == written["guardrails"]


def test_verify_finds_rows_with_rules_to_be_what_they_were(run, classifier):
    judge = {"model": {"id": str(classifier)}, "labels": ["negative"], "threshold": 0.9}
    rules = {"input": {"prompt_injection": judge, "max_chars": {"limit": 100}}, "output": {"min_score": {"limit": 0.8}}}
    report = run(sentences(30, seed=5), **rules)
    found = recheck_output(report.output, 30, 1, load_machine({}))
    assert (found.rows, found.flaws) == (30, ())


def test_a_sample_is_looked_at_without_rules(planned):
    plan = planned(PLANTED, input={"pii": {"action": "redact"}, "max_chars": {"limit": 100, "action": "fail"}})
    seen = look_at(plan, draw(plan, 6))
    assert seen.rows == 6

"""Rules bound to the columns of real files and the labels of real checkpoints."""

import pyarrow as pa
import pytest

from hfbatch import hub
from hfbatch.binding import bind
from hfbatch.errors import SpecError
from hfbatch.guards import language
from hfbatch.load import load_job
from tests.zoo import text

SCHEMA = pa.schema([("id", pa.int64()), ("title", pa.string()), ("text", pa.string())])
CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return text.gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def bound(classifier):
    """bound(input={...}, output={...}) -> the job with these rules."""

    def bound(schema=SCHEMA, job=None, **guardrails):
        whole = {"task": "text-classification", "model": {"id": str(classifier)}, "input": {"path": "in.parquet"}}
        whole = whole | {"output": {"path": "out"}, "guardrails": guardrails} | (job or {})
        spec = load_job(whole)
        return bind(spec, [hub.resolve_model(step.model) for step in spec.each], schema)

    return bound


@pytest.fixture
def problems(bound):
    def problems(*args, **guardrails):
        with pytest.raises(SpecError) as info:
            bound(*args, **guardrails)
        return {
            problem.key.removeprefix("guardrails."): (problem.message, problem.fix) for problem in info.value.problems
        }

    return problems


def test_rules_look_at_what_the_models_read_unless_they_name_something_else(bound):
    job = bound(input={"max_chars": {"limit": 9}, "deny_patterns": {"patterns": ["x"], "columns": ["title", "text"]}})
    assert [(rule.name, dict(rule.places)) for rule in job.guards.input] == [
        ("input.max_chars", {"text": "text"}),
        ("input.deny_patterns", {"title": "title", "text": "text"}),
    ]


def test_a_column_that_only_a_rule_looks_at_is_read_from_the_files(bound):
    job = {"input": {"path": "in.parquet", "keep": ["id"]}}
    assert bound(job=job).input_schema.names == ["id", "text"]
    assert bound(job=job, input={"max_chars": {"limit": 9, "columns": ["title"]}}).input_schema.names == [
        "id",
        "title",
        "text",
    ]


def test_the_output_has_a_column_for_notes_and_one_for_reviews_where_they_are_asked_for(bound):
    plain = bound().output_schema.names
    noted = bound(input={"max_chars": {"limit": 9}}).output_schema.names
    reviewed = bound(output={"min_score": {"limit": 0.5}}).output_schema.names
    place = plain.index("error")
    assert noted == [*plain[:place], "guardrails", *plain[place:]]
    assert reviewed == [*plain[:place], "review", "guardrails", *plain[place:]]


def test_a_section_without_rules_is_as_if_it_were_not_there(bound):
    assert bound(input={}).guards is None
    assert bound(input={}).generation == bound(job={"guardrails": None}).generation


def test_rules_are_part_of_what_makes_an_output_another_one(bound):
    jobs = [
        bound(),
        bound(input={"max_chars": {"limit": 9}}),
        bound(input={"max_chars": {"limit": 10}}),
        bound(input={"max_chars": {"limit": 10, "action": "null"}}),
        bound(input={"max_chars": {"limit": 10, "columns": ["title"]}}),
    ]
    assert len({job.generation for job in jobs}) == len(jobs)
    assert len({job.step.parameters for job in jobs}) == 1  # they take values away, but change none


def test_what_redact_does_stands_in_the_parameters_of_a_row(bound):
    job = bound(input={"pii": {"action": "redact", "kinds": ["email"]}})
    assert '"redacted":{"text":{"action":"redact"' in job.step.parameters
    assert job.step.generation != bound(input={"pii": {"action": "flag", "kinds": ["email"]}}).step.generation


def test_the_models_of_rules_are_pinned_and_stand_in_the_chain_but_not_in_the_output(bound, classifier, tagger):
    judge = {"model": {"id": str(classifier)}, "labels": ["negative"]}
    job = bound(
        input={"prompt_injection": judge, "pii": {"model": {"id": str(tagger)}, "labels": ["PER"]}},
        output={"content_filter": {**judge, "columns": ["label"]}},
    )
    assert [step.task for step in job.chain] == [
        "text-classification",
        "token-classification",
        "text-classification",
        "text-classification",
    ]
    assert job.chain[2] == job.step
    assert job.chain[0].model.commit.startswith("sha256:")
    assert not [name for name in job.output_schema.names if "guardrails." in name]
    rule = job.identity["guardrails"]["input.pii"]
    assert rule["model"]["model_commit"] == job.chain[1].model.commit


def test_text_that_a_model_writes_is_what_rules_for_the_output_look_at(bound, decoder):
    generate = {"task": "text-generation", "model": {"id": str(decoder)}, "output": {"path": "out", "prefix": "p_"}}
    schema = pa.schema([("prompt", pa.string())])
    job = bound(schema, generate, output={"max_repetition": {"limit": 0.5}})
    assert dict(job.guards.output[0].places) == {"p_generated_text": "_hfbatch_made.p_generated_text"}


def test_chats_are_texts_too(bound, decoder):
    generate = {"task": "text-generation", "model": {"id": str(decoder)}, "params": {"prompt": "{{talk}}, {{id}}"}}
    job = bound(pa.schema([("talk", CHAT), ("id", pa.int64())]), generate, input={"pii": {"action": "redact"}})
    assert dict(job.guards.input[0].places) == {"talk": "talk"}
    assert list(job.step.redacted) == ["talk"]


def test_a_score_takes_the_columns_of_its_own_step_with_it(bound):
    job = bound(output={"min_score": {"limit": 0.6, "action": None}})
    assert dict(job.guards.output[0].labels) == {"score": ("_hfbatch_made.label",)}


def test_a_column_that_is_not_there_or_holds_no_text_points_at_its_place(problems):
    found = problems(
        input={
            "max_chars": {"limit": 9, "columns": ["text", "titel"]},
            "language": {"allow": ["en"], "columns": ["id"]},
        },
        output={
            "min_score": {"limit": 0.5, "columns": ["label"]},
            "deny_patterns": {"patterns": ["x"], "columns": ["x"]},
        },
    )
    assert found == {
        "input.max_chars.columns.1": ("the input has no column 'titel'", "write 'title'"),
        "input.language.columns.0": ("column 'id' is int64, which holds no texts", None),
        "output.min_score.columns.0": ("column 'label' is string, which holds no scores", None),
        "output.deny_patterns.columns.0": ("the output has no column 'x'", "there are label, score, truncated"),
    }


def test_a_rule_for_text_that_no_model_writes_says_what_it_could_look_at(problems):
    assert problems(output={"max_repetition": {"limit": 0.5}}) == {
        "output.max_repetition": ("the job's models write no texts", "name some of label under columns")
    }


def test_nothing_can_be_redacted_that_no_model_reads(problems):
    found = problems(input={"pii": {"action": "redact", "columns": ["title"]}})
    assert found["input.pii.columns"][0] == "redact changes what a model sees, and no model reads column 'title'"


def test_a_kept_column_with_the_name_of_the_notes_must_be_left_out(problems):
    schema = pa.schema([*SCHEMA, ("guardrails", pa.string())])
    with_rule = problems(schema, {"input": {"path": "x", "keep": ["guardrails"]}}, input={"max_chars": {"limit": 9}})
    assert with_rule["input.keep.0"][1] == "leave it out of input.keep"


def test_labels_are_those_of_the_model(problems, classifier, tagger):
    found = problems(
        input={
            "prompt_injection": {"model": {"id": str(classifier)}, "labels": ["negative", "Positive"]},
            "pii": {"model": {"id": str(tagger)}, "labels": ["PERSON"]},
        }
    )
    assert found == {
        "input.prompt_injection.labels.1": (f"{str(classifier)!r} has no label 'Positive'", "write 'positive'"),
        "input.pii.labels.0": (f"{str(tagger)!r} has no label 'PERSON'", "write 'PER'"),
    }


def test_a_model_that_cannot_be_had_or_cannot_serve_points_at_the_rule(problems, classifier, tmp_path):
    code = {"id": str(classifier), "trust_remote_code": True}
    found = problems(
        input={"prompt_injection": {"model": code, "labels": ["x"]}, "pii": {"model": {"id": "./nowhere"}}},
        output={"content_filter": {"model": {"id": str(tmp_path)}, "labels": ["x"], "columns": ["label"]}},
    )
    assert [*found] == [
        "input.prompt_injection.model.trust_remote_code",
        "input.pii.model.id",
        "output.content_filter.model.id",
    ]
    assert found["input.pii.model.id"][0] == "'./nowhere' is no such directory"


def test_a_language_that_cannot_be_told_and_a_package_that_is_missing_are_problems(problems, monkeypatch):
    found = problems(input={"language": {"allow": ["en", "qqq"]}})
    assert found["input.language.allow.1"][0] == "the language 'qqq' is none that py3langid can tell"
    monkeypatch.setattr(language, "PACKAGE", "no_such_package")
    assert problems(input={"language": {"allow": ["en"]}}) == {
        "input.language": (
            "needs the package no_such_package, which is not installed",
            'pip install "hfbatch[language]"',
        )
    }

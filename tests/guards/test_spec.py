"""What may be written under `guardrails:`, in a job file."""

import pytest
from jsonschema import Draft202012Validator

from hfbatch.errors import SpecError
from hfbatch.load import load_job
from hfbatch.schema import job_schema

JOB = """task: text-classification
model: {id: owner/name}
input: {path: in.parquet}
output: {path: out}
guardrails:
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "job.yaml"
        path.write_text(JOB + text)
        return load_job(path)

    return load


@pytest.fixture
def problem(load):
    """(the message, the fix) of the only problem, after its place."""

    def problem(text, place):
        with pytest.raises(SpecError) as info:
            load(text)
        [found] = info.value.problems
        assert found.key == place
        assert found.place.endswith("job.yaml:6:" + found.place.rpartition(":")[2])
        return found.message, found.fix

    return problem


@pytest.mark.parametrize("written", ["null", "~", "", "'null'"])
def test_null_is_a_word_here_however_it_is_written(load, written):
    spec = load(f"  input: {{max_chars: {{limit: 5, action: {written}}}}}").guardrails
    assert spec.input.max_chars.action == "null"


def test_every_rule_of_both_sections_is_read(load):
    spec = load("""  input:
    max_chars: {limit: 20000, action: flag}
    language: {allow: [en, de], action: null}
    deny_patterns: {patterns: ["(?i)ignore (all )?previous"], action: fail}
    prompt_injection: {model: {id: owner/judge, revision: main}, labels: [INJECTION], threshold: 0.5, action: fail}
    pii: {action: redact, kinds: [email, iban], model: {id: owner/ner}, labels: [PER], columns: [text]}
  output:
    min_score: {limit: 0.6, action: null}
    deny_patterns: {patterns: [x, y], columns: [answer]}
    content_filter: {model: {id: owner/toxic}, labels: [toxic], threshold: 0.7}
    max_repetition: {limit: 0.5, n: 3, action: fail}
""").guardrails
    assert spec.input.language.allow == ["en", "de"]
    assert spec.input.language.action == spec.output.min_score.action == "null"
    assert spec.output.content_filter.action == spec.output.deny_patterns.action == "flag"
    assert spec.input.pii.kinds == ["email", "iban"]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("  input: {max_chars: {limit: 0}}", "guardrails.input.max_chars.limit", "must be greater than 0, got '0'"),
        ("  input: {max_char: {limit: 9}}", "guardrails.input.max_char", "unknown key"),
        (
            "  input: {deny_patterns: {patterns: [ok, '(a']}}",
            "guardrails.input.deny_patterns.patterns.1",
            "no regular expression of RE2 (missing ): (a), which has no look-around and no \\1, got '(a'",
        ),
        (
            "  output: {deny_patterns: {patterns: ['a*']}}",
            "guardrails.output.deny_patterns.patterns.0",
            "fits every text, an empty one too, got 'a*'",
        ),
        (
            "  input: {language: {allow: [english]}}",
            "guardrails.input.language.allow.0",
            "is no ISO 639 code of two or three small letters, such as en, got 'english'",
        ),
        (
            "  input: {pii: {kinds: [mail]}}",
            "guardrails.input.pii.kinds.0",
            "expected 'email', 'iban', 'credit_card', 'ssn', 'ip' or 'phone', got 'mail'",
        ),
        (
            "  output: {min_score: {limit: 0.5, action: flag}}",
            "guardrails.output.min_score.action",
            "expected 'review' or 'null', got 'flag'",
        ),
        (
            "  input: {prompt_injection: {model: {id: a/b}, labels: []}}",
            "guardrails.input.prompt_injection.labels",
            "must not be empty",
        ),
        (
            "  output: {max_repetition: {limit: 1}}",
            "guardrails.output.max_repetition.limit",
            "must be less than 1, got '1'",
        ),
    ],
)
def test_a_mistake_is_told_at_its_place(problem, text, place, message):
    assert problem(text, place)[0] == message


@pytest.mark.parametrize("action", [None, "null", "flag", "${x}"])
def test_the_schema_of_editors_takes_null_as_it_is_written(action):
    job = {"task": "text-classification", "model": {"id": "a/b"}, "input": {"path": "x"}, "output": {"path": "y"}}
    accepts = Draft202012Validator(job_schema()).is_valid
    assert accepts(job | {"guardrails": {"input": {"max_chars": {"limit": 5, "action": action}}}})
    assert not accepts(job | {"guardrails": {"input": {"max_chars": {"limit": 5, "action": "drop"}}}})

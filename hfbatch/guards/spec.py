"""What a person may write under `guardrails:`, the rules that rows have to keep. Declared once, as in spec.py."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, WithJsonSchema

from hfbatch.guards.patterns import check_pattern
from hfbatch.guards.pii import Kind
from hfbatch.modelspec import ModelSpec
from hfbatch.origin import Spec


def _word(value: Any) -> Any:
    """`null` in YAML is no text, but here it is a word."""
    return "null" if value is None else value


def _code(language: str) -> str:
    if not re.fullmatch("[a-z]{2,3}", language):
        raise ValueError("is no ISO 639 code of two or three small letters, such as en")
    return language


def _words(*words: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "string", "enum": list(words)}, {"type": "null"}]})


_DOES = "flag: the row goes on, noted; null: its predictions become null; fail: it gets an `error`"
Action: TypeAlias = Annotated[
    Literal["flag", "null", "fail"], BeforeValidator(_word), _words("flag", "null", "fail"), Field(description=_DOES)
]
PiiAction: TypeAlias = Annotated[
    Literal["redact", "flag", "null", "fail"],
    BeforeValidator(_word),
    _words("redact", "flag", "null", "fail"),
    Field(description=f"redact: the model gets the text with [EMAIL] and so on in place of them; {_DOES}"),
]
ScoreAction: TypeAlias = Annotated[
    Literal["review", "null"],
    BeforeValidator(_word),
    _words("review", "null"),
    Field(description="review: the column `review` is true; null: the label becomes null, the score stays"),
]
Pattern: TypeAlias = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(check_pattern)]
Language: TypeAlias = Annotated[str, AfterValidator(_code)]
Probability: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Labels: TypeAlias = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Rail(Spec):
    """One rule over texts."""

    columns: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(min_length=1, description="what it looks at; null: every text that a model reads (input) or writes"),
    ] = None


class MaxChars(Rail):
    """No text is longer."""

    limit: Annotated[PositiveInt, Field(description="characters a text may have")]
    action: Action = "flag"


class LanguageRail(Rail):
    """Every text is in one of these languages, as far as that can be told; needs the extra `language`."""

    allow: Annotated[list[Language], Field(min_length=1, description="ISO 639 codes, such as [en, de]")]
    min_confidence: Annotated[Probability, Field(description="a text whose language is less sure is let through")] = 0.8
    action: Action = "flag"


class DenyPatterns(Rail):
    """None of these occurs in a text."""

    patterns: Annotated[
        list[Pattern], Field(min_length=1, description="regular expressions of RE2, such as (?i)ignore (all )?previous")
    ]
    action: Action = "flag"


class Classifier(Rail):
    """A text-classification model gives a text none of these labels. It reads as much of it as it has room for."""

    model: ModelSpec
    labels: Annotated[Labels, Field(description="labels that a text must not have")]
    threshold: Annotated[Probability, Field(description="score from which on a text has a label")] = 0.5
    action: Action = "flag"


class Pii(Rail):
    """No text holds data about a person."""

    kinds: Annotated[list[Kind], Field(description="what is looked for by its form; [] for the model alone")] = Field(
        default_factory=lambda: list(KINDS)
    )
    model: Annotated[
        ModelSpec | None, Field(description="a token-classification model, to find names and the like too")
    ] = None
    labels: Annotated[Labels | None, Field(description="the model's entities that count; null: all of them")] = None
    threshold: Annotated[Probability, Field(description="score from which on an entity counts")] = 0.5
    action: PiiAction = "flag"


class MinScore(Spec):
    """No prediction is less sure."""

    limit: Annotated[float, Field(allow_inf_nan=False, description="the least score that will do")]
    columns: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(min_length=1, description="columns of the output that hold it; null: `score`, of every step"),
    ] = None
    action: ScoreAction = "review"


class MaxRepetition(Rail):
    """No text repeats itself: of its n-grams of words no larger share stood before in it."""

    limit: Annotated[float, Field(ge=0, lt=1, description="share of n-grams that may be repetitions")]
    n: Annotated[PositiveInt, Field(le=20, description="words of an n-gram")] = 4
    action: Action = "flag"


class InputRails(Spec):
    """Before the model sees a row."""

    max_chars: Annotated[MaxChars | None, Field(description="texts that are too long")] = None
    language: Annotated[LanguageRail | None, Field(description="texts in other languages; extra `language`")] = None
    deny_patterns: Annotated[DenyPatterns | None, Field(description="texts in which a pattern occurs")] = None
    prompt_injection: Annotated[
        Classifier | None, Field(description="texts that a text-classification model finds to be instructions")
    ] = None
    pii: Annotated[Pii | None, Field(description="data about persons: e-mail addresses, card numbers, ...")] = None


class OutputRails(Spec):
    """After the model, before the row is written."""

    min_score: Annotated[MinScore | None, Field(description="predictions that are not sure")] = None
    deny_patterns: Annotated[DenyPatterns | None, Field(description="texts in which a pattern occurs")] = None
    max_repetition: Annotated[MaxRepetition | None, Field(description="texts that repeat themselves")] = None
    content_filter: Annotated[
        Classifier | None, Field(description="texts that a text-classification model gives one of some labels")
    ] = None


class GuardrailsSpec(Spec):
    """Rules for rows. What was done stands in the column `guardrails`."""

    input: Annotated[InputRails, Field(description="before the model sees a row")] = InputRails()
    output: Annotated[OutputRails, Field(description="after the model, before the row is written")] = OutputRails()

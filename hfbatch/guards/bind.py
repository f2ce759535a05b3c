"""`guardrails:` + a job's steps + the dataset's schema -> Guards: each rule bound to the columns it looks at.

What is not there, is of another type, or cannot be asked is a problem that points at its key in the job file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hfbatch import hub, tasks
from hfbatch.columns import MADE
from hfbatch.errors import Problem
from hfbatch.guards import language
from hfbatch.guards.apply import Guards, Rule
from hfbatch.guards.passages import holds_text
from hfbatch.guards.rules import holds_scores
from hfbatch.guards.spec import Classifier, LanguageRail, MinScore, Pii, Rail
from hfbatch.job import Step, load_task, source_of
from hfbatch.kinds import TEXT
from hfbatch.modelspec import ModelSpec
from hfbatch.origin import Loc
from hfbatch.spec import JobSpec

_WRITTEN = ("generated_text", "summary_text", "translation_text", "answer", "text")  # texts that models write
_SCORES = ("score", "scores")
_ASKED: Mapping[type, tuple[str, dict[str, Any]]] = {  # what the model of a rule does, and with which params
    Classifier: ("text-classification", {"top_k": None, "truncation": True}),
    Pii: ("token-classification", {"aggregation_strategy": "simple", "stride": 16}),
}


def bind_guards(spec: JobSpec, steps: Sequence[Step], schema: pa.Schema, problems: list[Problem]) -> Guards | None:
    """The rules of a job whose `steps` are bound to a dataset of `schema`; None where it has none."""
    if spec.guardrails is None:
        return None
    made = {step.prefix + entry.name: entry.type for step in steps for entry in step.writes}
    read = {
        column: schema.field(column).type
        for step in steps
        for column in step.reads.values()
        if column not in step.sources and column in schema.names and holds_text(schema.field(column).type)
    }
    wrote = {
        step.prefix + name: made[step.prefix + name] for step in steps for name in step.writes.names if name in _WRITTEN
    }
    dataset = {entry.name: entry.type for entry in schema}
    sections = (
        _Section(spec, "input", steps, dataset, read, problems),
        _Section(spec, "output", steps, made, wrote, problems),
    )
    found = [section.rules(getattr(spec.guardrails, section.name)) for section in sections]
    if not any(found):
        return None
    guards = Guards(*found)
    for name in guards.writes:
        _check_free(name, spec, steps, schema, problems)
    return guards


def _check_free(name: str, spec: JobSpec, steps: Sequence[Step], schema: pa.Schema, problems: list[Problem]) -> None:
    """A problem where the output has such a column already."""
    kept = schema.names if spec.input.keep == "all" else spec.input.keep
    message = f"the output would have two columns {name!r}: one %s, one from guardrails"
    if name in kept:
        loc: Loc = ("input", "path") if spec.input.keep == "all" else ("input", "keep", kept.index(name))
        problems.append(spec.origin.problem(loc, message % "kept from the input", "leave it out of input.keep"))
    for number, step in enumerate(steps):
        if name in step.made:
            fix = "write another prefix"
            problems.append(spec.origin.problem(spec.loc(number, "prefix"), message % "from the task", fix))


@dataclass(frozen=True)
class _Section:
    """`input` or `output`, being bound."""

    spec: JobSpec
    name: str
    steps: Sequence[Step]
    columns: Mapping[str, pa.DataType]  # all that a rule may name
    texts: Mapping[str, pa.DataType]  # those that it looks at unless it names some
    problems: list[Problem]

    def rules(self, rails: Any) -> tuple[Rule, ...]:
        """In the order in which they are declared."""
        written = ((name, getattr(rails, name)) for name in type(rails).model_fields)
        return tuple(self._rule(name, rail) for name, rail in written if rail is not None)

    def _add(self, key: Loc, message: str, fix: str | None = None) -> None:
        self.problems.append(self.spec.origin.problem(("guardrails", self.name, *key), message, fix))

    def _rule(self, name: str, rail: Rail | MinScore) -> Rule:
        if isinstance(rail, LanguageRail):
            self._check_language(name, rail)
        if isinstance(rail, MinScore):
            scores = {column: kind for column, kind in self.columns.items() if self._of(column)[1] in _SCORES}
            columns = self._chosen(
                name, rail, {c: kind for c, kind in scores.items() if holds_scores(kind)}, holds_scores
            )
            labels = {column: self._beside(column) for column in columns}
            return Rule(self._called(name), rail, {column: MADE + column for column in columns}, labels=labels)
        columns = self._chosen(name, rail, self.texts, holds_text)
        if isinstance(rail, Pii) and rail.action == "redact":
            for column in sorted(set(columns) - set(self.texts)):
                message = f"redact changes what a model sees, and no model reads column {column!r}"
                self._add((name, "columns"), message, "leave it out of input.keep instead")
        places = {column: (MADE if self.name == "output" else "") + column for column in columns}
        return Rule(self._called(name), rail, places, self._models(name, rail, columns))

    def _called(self, rule: str) -> str:
        return f"{self.name}.{rule}"

    def _chosen(self, name: str, rail: Rail | MinScore, default: Iterable[str], fits: Any) -> list[str]:
        """The columns that a rule looks at."""
        what = "scores" if fits is holds_scores else "texts"
        if rail.columns is None and not (default := list(default)):
            does = "read" if self.name == "input" else "write"
            fitting = [column for column, kind in self.columns.items() if fits(kind)]
            fix = f"name some of {', '.join(fitting[:12])} under columns" if fitting else "leave the rule out"
            self._add((name,), f"the job's models {does} no {what}", fix)
        for index, column in enumerate(rail.columns or ()):
            near = difflib.get_close_matches(column, self.columns, n=1)
            fix = f"write '{near[0]}'" if near else f"there are {', '.join(list(self.columns)[:12])}"
            if column not in self.columns:
                self._add((name, "columns", index), f"the {self.name} has no column {column!r}", fix)
            elif not fits(kind := self.columns[column]):
                self._add((name, "columns", index), f"column {column!r} is {kind}, which holds no {what}")
        named = (
            default
            if rail.columns is None
            else (c for c in rail.columns if c in self.columns and fits(self.columns[c]))
        )
        return list(dict.fromkeys(named))

    def _of(self, column: str) -> tuple[Step, str]:
        """The step that makes a column, and the task's name for it."""
        return next((step, name) for step in self.steps for name in step.writes.names if step.prefix + name == column)

    def _beside(self, score: str) -> tuple[str, ...]:
        """The names in a block of what the step of a score makes beside it, but for what is no prediction."""
        step, own = self._of(score)
        return tuple(MADE + step.prefix + name for name in step.writes.names if name not in (own, "truncated"))

    def _check_language(self, name: str, rail: LanguageRail) -> None:
        if not language.installed():
            return self._add((name,), f"needs the package {language.PACKAGE}, which is not installed", language.FIX)
        known = language.known_languages()
        for index, code in enumerate(rail.allow):
            if code not in known:
                message = f"the language {code!r} is none that {language.PACKAGE} can tell"
                self._add((name, "allow", index), message, f"it knows {', '.join(sorted(known))}")
        return None

    def _models(self, name: str, rail: Rail, columns: Iterable[str]) -> dict[str, Step]:
        """Column -> the step in which the model of a rule reads it."""
        if not isinstance(rail, Classifier | Pii) or rail.model is None:
            return {}
        pinned, model = self._pinned(name, rail.model), rail.model
        task, params = _ASKED[type(rail)]
        made = None if pinned is None else self._task(name, rail, pinned, task, params)
        if pinned is None or made is None:
            return {}
        steps = {}
        for column in columns:
            place = f"guardrails.{self._called(name)}.{column}"
            steps[column] = Step(
                name=place,
                task=task,
                params=made.params.model_dump(mode="json"),
                model=pinned,
                dtype=model.dtype_for(made.config),
                attn_implementation=model.attn_implementation,
                trust_remote_code=False,
                reads={"text": place},
                given=made.given,
                prefix=f"{place}.",
                writes=made.writes(),
                model_place=self.spec.origin.problem(("guardrails", self.name, name, "model", "id"), "").place,
                sources={place: ""},
            )
        return steps

    def _pinned(self, name: str, model: ModelSpec) -> hub.PinnedModel | None:
        if model.trust_remote_code:
            message = "the model of a rule runs no code from its repository"
            self._add((name, "model", "trust_remote_code"), message, "take a model that transformers has the code of")
            return None
        try:
            return hub.resolve_model(model)
        except hub.ModelProblem as problem:
            self._add((name, "model", problem.key), problem.message, problem.fix)
            return None

    def _task(
        self, name: str, rail: Classifier | Pii, model: hub.PinnedModel, task: str, params: dict[str, Any]
    ) -> Any:
        """The task with the model's config, where that can serve the rule."""
        checked = tasks.find(task).Params.model_validate(params).model_dump(mode="json")
        try:
            folder = hub.fetch(model, weights=False)
            made = load_task(task, checked, source_of(model, folder, False, {}), pa.schema([("text", TEXT)]))
        except hub.ModelProblem as problem:
            return self._add((name, "model", problem.key), problem.message, problem.fix)
        except (ValueError, OSError, KeyError) as error:
            message = f"{model.id!r} cannot serve {task}: {error}"
            return self._add((name, "model", "id"), message, "take a checkpoint made for this task")
        if isinstance(rail, Pii) and not made.tokenizer.is_fast:
            message = (
                f"{model.id!r} has no fast tokenizer (tokenizer.json), and without one nobody knows where names stand"
            )
            return self._add((name, "model", "id"), message, "take another")
        labels = [
            label.split("-", 1)[-1] if isinstance(rail, Pii) else label for label in made.config.id2label.values()
        ]
        for index, label in enumerate(rail.labels or ()):
            if label not in labels:
                near = difflib.get_close_matches(label, labels, n=1, cutoff=0.3)
                fix = f"write '{near[0]}'" if near else f"it has {', '.join(dict.fromkeys(labels))}"
                self._add((name, "labels", index), f"{model.id!r} has no label {label!r}", fix)
        return made

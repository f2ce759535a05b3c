"""The rules of a job over its rows: what breaks one is noted, kept from the models, or an error. Rows in == rows out.

Rules for the input act before a model sees a row, those for the output after all models and before the row is written.
A model that a rule asks is a step of its own in the job's chain, whose columns are for the rule alone. What was done
stands in NOTES: which rule, what it did, and a detail that counts and measures, but never shows the text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch import columns as col
from hfbatch.errors import RowError
from hfbatch.guards import rules
from hfbatch.guards.passages import Passages
from hfbatch.guards.spec import Classifier, MinScore, Pii
from hfbatch.sequences import Array

if TYPE_CHECKING:
    from hfbatch.job import Job, Step

_MODEL = ("model_commit", "dtype", "attn_implementation", "task", "task_version", "params")
NOTE = pa.struct([("name", pa.string()), ("action", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Rule:
    """One rule, bound to columns."""

    name: str  # its place below `guardrails:`, such as input.pii
    spec: Any  # one of guards.spec's
    places: Mapping[str, str]  # the columns that it looks at -> their names in a block
    models: Mapping[str, Step] = field(default_factory=dict)  # column -> what reads it for this rule
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column of scores -> those in a block it is of

    @property
    def identity(self) -> dict[str, Any]:
        """All of it that affects a row."""
        written = {**self.spec.model_dump(mode="json", exclude={"model"}), "columns": sorted(self.places)}
        model = next(iter(self.models.values()), None)  # the same for all columns
        told = {} if model is None else {name: model.identity[name] for name in _MODEL}
        return {**written, **({"model": told} if told else {})}


@dataclass(frozen=True)
class Guards:
    """The rules of a job."""

    input: tuple[Rule, ...]
    output: tuple[Rule, ...]

    @property
    def before(self) -> tuple[Step, ...]:
        """The models that are asked about the input."""
        return tuple(step for rule in self.input for step in rule.models.values())

    @property
    def after(self) -> tuple[Step, ...]:
        """The models that are asked about the output."""
        return tuple(step for rule in self.output for step in rule.models.values())

    @property
    def columns(self) -> set[str]:
        """The dataset's columns that rules look at."""
        return {column for rule in self.input for column in rule.places}

    def over(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """The steps of the job, reading what `redact` leaves of the dataset's columns."""
        changed = self.redacted
        of = (
            {name: changed[name] for name in step.reads.values() if name in changed.keys() - step.sources}
            for step in steps
        )
        return tuple(replace(step, redacted=own) for step, own in zip(steps, of, strict=True))

    @property
    def redacted(self) -> dict[str, Any]:
        """Column -> how it is changed before the job's models see it."""
        rules = [rule for rule in self.input if rule.spec.action == "redact"]
        return {column: rule.identity for rule in rules for column in rule.places}

    @property
    def commits(self) -> dict[str, str]:
        """Rule -> the commit of its model."""
        asked = [rule for rule in (*self.input, *self.output) if rule.models]
        return {rule.name: next(iter(rule.models.values())).model.commit for rule in asked}

    @property
    def reviews(self) -> bool:
        """Whether the output has a column `review`."""
        return any(rule.spec.action == "review" for rule in self.output)

    @property
    def writes(self) -> dict[str, pa.DataType]:
        """The columns that the output has for them."""
        return {**({"review": pa.bool_()} if self.reviews else {}), "guardrails": pa.list_(NOTE)}

    def beside(self, output: pa.Schema) -> pa.Schema:
        """The output's columns with those that are for rules, in front of `error`."""
        place = output.get_field_index("error")
        own = [pa.field(name, kind) for name, kind in self.writes.items()]
        return pa.schema([*list(output)[:place], *own, *list(output)[place:]])

    @property
    def identity(self) -> dict[str, Any]:
        """What they contribute to Job.identity."""
        return {rule.name: rule.identity for rule in (*self.input, *self.output)}


class Guardrails:
    """Callables of blocks that apply a job's rules; without any they leave a block as it is."""

    def __init__(self, job: Job) -> None:
        self.guards, self.steps = job.guards, len(job.steps)

    def before(self, number: int, block: pa.Table) -> pa.Table:
        """The block on its way into step `number` of the job's chain."""
        if self.guards is None:
            return block
        asked, own = len(self.guards.before), self.guards
        if number == 0:
            cheap = [rule for rule in own.input if not rule.models]
            block = _shown(_judged(block, cheap, "tokenise_s"), own.input)
        if number == asked:
            block = _judged(block, [rule for rule in own.input if rule.models], "tokenise_s")
        return _shown(block, own.output) if number == asked + self.steps else block

    def after(self, block: pa.Table) -> pa.Table:
        """The block behind the chain: predictions that a rule takes back are null."""
        if self.guards is None:
            return block
        block = _judged(block, self.guards.output, "postprocess_s")
        names = [name for name in block.column_names if name.startswith((col.MADE, col.KNOWS))]
        return _without(block, names, _flags(block, col.WITHHELD))


def _shown(block: pa.Table, judges: Sequence[Rule]) -> pa.Table:
    """The block with the texts that the models of these rules read; null where there is nothing to ask about."""
    out = pa.array(_flags(block, col.WITHHELD))
    for rule in judges:
        for column, step in rule.models.items():
            texts = Passages(block[rule.places[column]]).joined()
            nothing = pc.or_(out, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True))
            place = step.place_of(step.reads["text"])
            block = col.with_column(block, place, pc.if_else(nothing, None, texts))
    return block


def _judged(block: pa.Table, judges: Sequence[Rule], clock: str) -> pa.Table:
    """The block with all that the rules do to its rows; the seconds go to the stat `clock`."""
    if not judges:
        return block
    started, verdict = time.perf_counter(), _Verdict(block)
    for rule in judges:
        if isinstance(rule.spec, MinScore):
            verdict.low(rule)
        else:
            verdict.broken(rule)
    block = verdict.block()
    return col.ticket_of(block).plus(**{clock: time.perf_counter() - started}).on(block)


class _Verdict:
    """What rules, one after another, say of a block. A row that is withheld is not looked at again."""

    def __init__(self, block: pa.Table) -> None:
        self.table = block
        noted = block[col.NOTES].to_pylist() if col.NOTES in block.column_names else [None] * len(block)
        self.notes: list[list[dict[str, str]]] = [list(notes or ()) for notes in noted]
        self.out = _flags(block, col.WITHHELD)
        self.failed = dict[int, RowError]()

    def broken(self, rule: Rule) -> None:
        """Act on the rows that break a rule about texts."""
        told = dict[int, list[str]]()
        for column, place in rule.places.items():
            where = f"{column}: " if len(rule.places) > 1 else ""
            for row, detail in self._look(rule, column, place).items():
                told.setdefault(row, []).append(where + detail)
        self._act(rule, {row: "; ".join(details) for row, details in told.items()})

    def _look(self, rule: Rule, column: str, place: str) -> dict[int, str]:
        """Row -> what is wrong with it."""
        passages, spec = Passages(self.table[place]), rule.spec
        made = self._answers(rule.models[column]) if rule.models else {}
        if isinstance(spec, Classifier):
            return rules.classified(made["labels"], spec.labels, spec.threshold)
        if not isinstance(spec, Pii):
            return rules.OF_TEXTS[type(spec)](passages.joined(), spec)
        entities = made.get("entities")
        spans = rules.persons(passages, spec, entities)
        if spec.action == "redact":
            self.table = col.with_column(self.table, col.SEEN + column, rules.redacted(passages, spans))
        return rules.told(passages, spans)

    def _answers(self, step: Step) -> dict[str, pa.ChunkedArray]:
        """What a rule's model says, by the task's names. A row of which it could say nothing has an error of it."""
        made = {name: self.table[col.MADE + step.prefix + name] for name in step.writes.names}
        asked = self.table[step.place_of(step.reads["text"])].is_valid()
        self.out |= np.asarray(pc.and_(asked, made["truncated"].is_null()))
        return made

    def low(self, rule: Rule) -> None:
        """Act on predictions that are not sure enough."""
        details, review, scored = dict[int, str](), *np.zeros((2, len(self.table)), dtype=bool)
        for column, place in rule.places.items():
            where = f"{column} " if len(rule.places) > 1 else ""
            scores = rules.best_scores(self.table[place])
            low = np.less(scores, rule.spec.limit, where=~np.isnan(scores), out=np.zeros(len(scores), dtype=bool))
            for row in np.flatnonzero(low):
                text = f"{where}{scores[row]:.3g} is below {rule.spec.limit:g}"
                details[int(row)] = f"{details[int(row)]}; {text}" if int(row) in details else text
            review, scored = review | low, scored | ~np.isnan(scores)
            if rule.spec.action == "null":  # and so it is not what a later run may take for the model's
                known = [name for name in self.table.column_names if name.startswith(col.KNOWS)]
                self.table = _without(self.table, [*rule.labels[column], *known], low)
        if rule.spec.action == "review":
            self.table = col.with_column(self.table, col.REVIEW, pa.array(review, mask=~scored))
        self._act(rule, details)

    def _act(self, rule: Rule, details: Mapping[int, str]) -> None:
        action = rule.spec.action
        for row, detail in sorted(details.items()):
            if self.out[row]:
                continue
            self.notes[row].append({"name": rule.name, "action": action, "detail": detail})
            if action == "fail":
                self.failed[row] = RowError("guardrail", f"{rule.name}: {detail}")
            self.out[row] = action == "fail" or (action == "null" and not isinstance(rule.spec, MinScore))

    def block(self) -> pa.Table:
        """The block with notes, errors and the rows that are withheld."""
        notes = pa.array([notes or None for notes in self.notes], pa.list_(NOTE))
        table = col.with_column(self.table, col.NOTES, notes)
        table = col.with_column(table, col.WITHHELD, pa.array(self.out))
        before = table[col.FAILED] if col.FAILED in table.column_names else pa.nulls(len(table), pa.string())
        errors = [str(self.failed[row]) if row in self.failed else None for row in range(len(table))]
        failed = pc.coalesce(before, pa.array(errors, pa.string()))
        table = col.with_column(table, col.FAILED, failed)
        return col.ticket_of(table).plus(errors=before.null_count - failed.null_count).on(table)


def _without(block: pa.Table, columns: Sequence[str], rows: Array) -> pa.Table:
    """The block with nulls for `rows` (rows,) bool in these columns."""
    kept = pa.array(np.arange(len(block)), mask=rows)
    for name in columns:
        block = col.with_column(block, name, block[name].take(kept))
    return block


def _flags(block: pa.Table, name: str) -> Array:
    """(rows,) bool, writable; False where the block has no such column."""
    if name not in block.column_names:
        return np.zeros(len(block), dtype=bool)
    return np.array(block[name].to_pylist(), dtype=bool)

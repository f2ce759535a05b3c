"""What a call of `enrich` asks for + a frame -> Addition: the job bound to the frame, and the columns it will add.

It is read by the job file's own rules; problems are told in the words of the call (`column`, `prefix`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from hfbatch import kinds, tasks
from hfbatch.binding import LINEAGE, bind
from hfbatch.draft import Draft
from hfbatch.errors import Problem, SpecError
from hfbatch.explain import nearest
from hfbatch.frames import Errors, Frame
from hfbatch.job import Job
from hfbatch.resident import MODELS
from hfbatch.spec import JobSpec
from hfbatch.tasks.base import Task
from hfbatch.trust import check_trust

_ARGUMENTS = ("column", "prefix", "lineage", "on", "progress")
_IN_THE_CALL = (  # keys of the job file -> what they are here
    ("input.allow_media_prefixes", "allow_media_prefixes"),
    ("input.columns.", "column."),
    ("input.columns", "column"),
    ("output.prefix", "prefix"),
    ("params.", ""),
)


_COLUMN = re.compile(r"\bcolumn '(\w+)'")


@dataclass(frozen=True)
class Request:
    """A call's arguments, as they were given."""

    task: str
    model: str | os.PathLike[str] | Mapping[str, Any]
    column: str | Mapping[str, str] | None
    prefix: str
    lineage: bool
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Addition:
    """A job over the task's own names of its inputs, so that frames with other names share its model; picklable."""

    job: Job
    columns: Mapping[str, str]  # the task's input -> the frame's column
    prefix: str
    lineage: Mapping[str, str]  # column -> value; empty unless asked for

    def rows_of(self, frame: Frame, start: int, stop: int, types: pa.Schema) -> tuple[pa.Table, Errors]:
        """Rows [start, stop) of the frame under the task's names, and what is wrong with some. `types`: `types_in`."""
        read, errors = frame.read(types, start, stop)
        return pa.table([read[column] for column in self.columns.values()], names=list(self.columns)), errors

    def types_in(self, frame: Frame) -> pa.Schema:
        """The columns that are read, each once, with their types."""
        return frame.types(list(dict.fromkeys(self.columns.values())))

    def named(self, made: pa.Table) -> pa.Table:
        """What the steps gave, as the frame gets it: lineage added, the prefix before every name."""
        zeros = pa.array(np.zeros(len(made), dtype=np.int32))
        for name, value in self.lineage.items():
            made = made.append_column(name, pa.DictionaryArray.from_arrays(zeros, pa.array([value])))
        return made.rename_columns([self.prefix + name for name in made.column_names])

    def nothing(self) -> pa.Table:
        """The columns, without a row."""
        job = self.job
        names = [name for name in job.output_schema.names if name not in LINEAGE]
        return self.named(pa.schema([job.output_schema.field(name) for name in names]).empty_table())


def make_addition(asked: Request, frame: Frame, run_id: str) -> Addition:
    """Everything decided, nothing run. Raises SpecError with what is wrong, in the words of the call."""
    try:
        return _made(asked, frame, run_id)
    except SpecError as error:
        raise type(error)(_in_the_call(problem, asked) for problem in error.problems) from None


def _made(asked: Request, frame: Frame, run_id: str) -> Addition:
    spec = _spec(asked)
    check_trust(spec, allowed=True)  # trust_remote_code stands in the call itself, as with transformers
    task = tasks.find(spec.each[0].task)
    mapped = _mapped(asked.column, task, frame)
    beside = {name: name for name in (*task.reads.names, *task.optional.names) if name in frame.names}
    columns = {**beside, **mapped}
    _check_columns(columns, frame)
    types = frame.types(list(dict.fromkeys(columns.values())))
    schema = pa.schema([pa.field(name, types.field(column).type) for name, column in columns.items()])
    _check_inputs(spec, task, mapped, schema, frame)
    read = spec.input.model_copy(update={"columns": {name: name for name in mapped}})
    models = [MODELS.pin(spec, number) for number in range(len(spec.each))]
    try:
        job = bind(spec.model_copy(update={"input": read}), models, schema)
    except SpecError as error:
        raise SpecError(_by_column(problem, columns) for problem in error.problems) from None
    step = job.step
    columns = {name: columns[name] for name in step.reads}
    parameters = replace(step, reads=columns).parameters
    lineage = (step.model.id, step.model.commit, parameters, run_id) if asked.lineage else ()
    made = Addition(job, columns, asked.prefix, dict(zip(LINEAGE, lineage, strict=False)))
    _check_clash(made.nothing().column_names, frame.names)
    return made


def _spec(asked: Request) -> JobSpec:
    """The call as a job; texts stay as they are, without variables."""
    given, model = dict(asked.params), asked.model
    allowed, more = given.pop("allow_media_prefixes", []), given.pop("params", {})
    tree = {
        "name": "enrich",
        "task": asked.task,
        "model": {"id": model} if isinstance(model, str | os.PathLike) else model,
        "params": {**given, **more} if isinstance(more, Mapping) else more,
        "input": {"path": "frame", "keep": [], "allow_media_prefixes": allowed},
        "output": {"path": "frame"},
    }
    draft = Draft.of_mapping(tree)
    draft.check_tasks()
    return draft.validated(JobSpec, {})


def _mapped(column: str | Mapping[str, str] | None, task: type[Task], frame: Frame) -> Mapping[str, str]:
    """The task's input -> the frame's column, as far as the call says."""
    if not isinstance(column, str):
        return dict(column or {})
    if len(task.reads) != 1:
        pairs = ", ".join(f"{name!r}: ..." for name in task.reads.names)
        raise _problem("column", f"{task.name} reads {' and '.join(task.reads.names)}", f"write column={{{pairs}}}")
    _check_columns({"": column}, frame)
    found = frame.types([column]).field(column).type
    inputs = [entry for entry in (*task.reads, *task.optional) if kinds.accepts(entry.type, found)]
    return {(inputs or task.reads)[0].name: column}


def _check_columns(columns: Mapping[str, Any], frame: Frame) -> None:
    """Each of `columns` stands in the frame, once."""
    for column in columns.values():
        count = frame.names.count(column)
        if count > 1:
            raise _problem("column", f"the frame has {count} columns {column!r}", "rename all but one")
        if not count:
            near = nearest(column, _texts(frame)) if isinstance(column, str) else None
            fix = f"write {near!r}; {_there(frame)}" if near else _there(frame)
            raise _problem("column", f"the frame has no column {column!r}", fix)


def _check_inputs(spec: JobSpec, task: type[Task], mapped: Mapping[str, str], schema: pa.Schema, frame: Frame) -> None:
    """All that the task reads is there; `bind` sees to the rest."""
    params = task.Params.model_validate(spec.params)
    try:
        missing = [name for name in task.reads_for(params, mapped, schema).names if name not in schema.names]
    except ValueError:
        return  # `bind` tells it
    if missing:
        example = "column='...'" if len(task.reads) == 1 else f"column={{{missing[0]!r}: '...'}}"
        message = f"{task.name} reads {missing[0]!r}, and the frame has no column of that name"
        raise _problem("column", message, f"write {example}; {_there(frame)}")


def _check_clash(made: Sequence[str], names: Sequence[Any]) -> None:
    """No column is added under a name that is there."""
    if clash := [name for name in made if name in names]:
        columns = f"column{'s' if clash[1:] else ''} {', '.join(map(repr, clash))}"
        fix = "write prefix='pred_' or another, which goes before every new name; or drop what is there"
        raise _problem("prefix", f"the frame has {columns} already", fix)


def _there(frame: Frame) -> str:
    names = _texts(frame)
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"the frame has {', '.join(names[:30])}{more}" if names else "the frame has no columns"


def _texts(frame: Frame) -> list[str]:
    return [str(name) for name in frame.names]


def _problem(argument: str, message: str, fix: str) -> SpecError:
    return SpecError([Problem(argument, argument, message, fix)])


def _by_column(problem: Problem, columns: Mapping[str, str]) -> Problem:
    """A problem that speaks of the task's inputs, in the names of the frame."""
    told = _COLUMN.sub(lambda found: f"column {columns.get(found[1], found[1])!r}", problem.message)
    return replace(problem, message=told)


def _in_the_call(problem: Problem, asked: Request) -> Problem:
    """A problem of a job file as one of the call."""
    key = problem.key.removeprefix("params.")
    if key != problem.key and key in asked.params and (near := nearest(key, _ARGUMENTS)):
        return Problem(key, key, "no such argument, and no such parameter of the task", f"write {near}=")
    fix = problem.fix and _said(problem.fix)
    return Problem(_said(problem.place), _said(problem.key), _said(problem.message), fix)


def _said(text: str) -> str:
    """The keys of a job file in `text` as what they are in the call."""
    for written, here in _IN_THE_CALL:
        text = text.replace(written, here)
    return text

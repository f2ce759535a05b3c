"""Spec + model + dataset schema -> Job: the columns a job reads and writes, bound to those that are there.

Every column that is missing, of another type, or there twice is a problem that points at its key in the job file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfbatch import hub, kinds, tasks
from hfbatch.errors import Problem, SpecError
from hfbatch.guards.bind import bind_guards
from hfbatch.job import MODEL_LINEAGE, Job, Step, load_task, source_of
from hfbatch.modelspec import ModelSpec
from hfbatch.origin import Loc, mark_of
from hfbatch.spec import JobSpec, StepSpec
from hfbatch.store import LocalStore, open_store
from hfbatch.tasks.base import Params, Task
from hfbatch.where import WhereError, columns_of, parse_where

LINEAGE = (*MODEL_LINEAGE, "run_id")
RESERVED = "_hfbatch"  # see columns.py
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_CURE = {False: "set output.prefix, such as 'pred_'", True: "give that step another prefix"}  # in a job with steps


@dataclass(frozen=True)
class _Bound:
    """A step that is being bound: its place in the job file, what is known of the columns before it."""

    spec: JobSpec
    number: int  # of the step
    schema: pa.Schema  # the dataset's columns, and those of earlier steps
    sources: Mapping[str, str]  # an earlier step's column -> the generation of that step
    problems: list[Problem]

    @property
    def written(self) -> StepSpec:
        """What the job file says of it."""
        return self.spec.each[self.number]

    def loc(self, *key: str) -> Loc:
        """Where `key` of it stands."""
        return self.spec.loc(self.number, *key)

    def add(self, key: tuple[str, ...], message: str, fix: str | None = None) -> None:
        """A problem with `key` of it."""
        self.problems.append(self.spec.origin.problem(self.loc(*key), message, fix))


def bind(spec: JobSpec, models: Sequence[hub.PinnedModel], schema: pa.Schema) -> Job:
    """The job with its schemas fixed, or a SpecError with all that does not fit. `models`: one a step."""
    problems = list[Problem]()
    keep = _keep(spec, schema, problems)
    needed = {name for name in keep if name not in spec.output.partition_by}
    if spec.input.where is not None:
        try:
            parse_where(spec.input.where, schema)
            needed |= columns_of(spec.input.where)
        except WhereError as error:
            problems.append(spec.origin.problem(("input", "where"), error.message, error.fix))
    steps = _steps(spec, models, schema, problems)
    guards = bind_guards(spec, steps, schema, problems) if len(steps) == len(models) else None
    output = _output_schema(spec, schema, keep, steps, problems)
    if problems:
        raise SpecError(sorted(problems, key=mark_of))
    needed |= guards.columns if guards is not None else set()
    for step in steps:
        used = {*step.reads.values(), *(columns_of(step.where) if step.where else ())}
        needed |= used - step.sources.keys()
    return Job(
        name=spec.name,
        steps=tuple(steps) if guards is None else guards.over(steps),
        keep=tuple(name for name in keep if name not in spec.output.partition_by),
        where=spec.input.where,
        input_schema=pa.schema([entry for entry in schema if entry.name in needed]),
        output_schema=output if guards is None else guards.beside(output),
        errors=spec.errors,
        output=_absolute(spec.output.path),
        partition_by=tuple(spec.output.partition_by),
        dedupe=spec.dedupe,
        guards=guards,
    )


def _steps(spec: JobSpec, models: Sequence[hub.PinnedModel], schema: pa.Schema, problems: list[Problem]) -> list[Step]:
    """Each with what those before it make; up to the first of which it is not known what it makes."""
    steps, sources = list[Step](), dict[str, str]()
    for number, model in enumerate(models):
        step = _step(_Bound(spec, number, schema, dict(sources), problems), model)
        if step is None:
            break
        step = step.with_seed()
        steps.append(step)
        for entry in step.writes:
            name = step.prefix + entry.name
            there = schema.get_field_index(name)
            made = pa.field(name, entry.type)
            schema = schema.append(made) if there < 0 else schema.set(there, made)
            sources[name] = step.generation
    return steps


def _step(bound: _Bound, model: hub.PinnedModel) -> Step | None:
    """None where the checkpoint and the params do not say what it makes."""
    spec, written = bound.spec, bound.written
    task = tasks.find(written.task)
    params = task.Params.model_validate({**task.params_in_name(written.task), **written.params})
    reads, given = _reads(bound, task, params)
    used = set(reads.values())
    if written.where is not None:
        try:
            parse_where(written.where, bound.schema)
            used |= columns_of(written.where)
        except WhereError as error:
            bound.add(("where",), error.message, error.fix)
    companions = _companions(bound, task, params)
    config, writes = _task_schema(bound, model, params, companions, given)
    if config is None:
        return None
    return Step(
        name=written.name,
        task=task.name,
        params=params.model_dump(mode="json"),
        model=model,
        dtype=written.model.dtype_for(config),
        attn_implementation=written.model.attn_implementation,
        trust_remote_code=written.model.trust_remote_code,
        reads=reads,
        given=given,
        prefix=f"{written.name}_" if written.prefix is None else written.prefix,
        writes=writes,
        where=written.where,
        model_place=spec.origin.problem(bound.loc("model", "id"), "").place,
        companions=companions,
        media_prefixes=_prefixes(spec),
        sources={name: of for name, of in bound.sources.items() if name in used},
    )


def _reads(bound: _Bound, task: type[Task], params: Any) -> tuple[dict[str, str], pa.Schema]:
    """The task's inputs -> columns that are there and can be read as the task's kinds; and those kinds."""
    reads, mapped, schema = {}, bound.written.columns, bound.schema
    try:
        given = task.reads_for(params, mapped, schema)
    except ValueError as error:
        bound.add(("columns",), str(error), f"map them under {'.'.join(map(str, bound.loc('columns')))}")
        return {}, task.reads
    known = list(dict.fromkeys([*task.reads.names, *task.optional.names, *given.names]))
    for name in mapped:
        if name not in given.names:
            fix = f"the task reads {', '.join(known)}; write those to the left, your columns to the right"
            message = f"{task.name} has no input {name!r}" if name not in known else f"{name!r} is not used here"
            bound.add(("columns", name), message, fix)
    for entry in given:
        column, key = mapped.get(entry.name, entry.name), ("columns", entry.name)
        if column not in schema.names:
            spec, loc = bound.spec, bound.loc(*key)
            bound.problems.append(_no_column(spec, loc, column, schema, None if entry.name in mapped else entry.name))
        elif not kinds.accepts(entry.type, found := schema.field(column).type):
            message = f"column {column!r} is {found}, {task.name} reads {kinds.describe(entry.type)}"
            bound.add(key, message, "name a column of that type")
        elif entry.type in kinds.MEDIA and kinds.is_path(found) and not _prefixes(bound.spec):
            message = f"column {column!r} holds paths, and a path inside a column is read only where that is allowed"
            bound.add(key, message, "write the folder or URL that they lie below under input.allow_media_prefixes")
        elif entry.type in kinds.MEDIA and kinds.is_path(found) and column in bound.sources:
            bound.add(key, f"column {column!r} is written by a model, and what models write is never a path")
        reads[entry.name] = column
    return reads, given


def _prefixes(spec: JobSpec) -> tuple[str, ...]:
    """input.allow_media_prefixes, local ones as absolute paths: workers may stand in another folder."""
    prefixes = spec.input.allow_media_prefixes
    return tuple(each if "://" in each else str(Path(each).expanduser().absolute()) for each in prefixes)


def _companions(bound: _Bound, task: type[Task], params: Any) -> dict[str, hub.PinnedModel]:
    """The models that the task needs beside its own, pinned."""
    pinned, allow_pickle = {}, bound.written.model.allow_pickle
    for name, companion in task.companions(params).items():
        try:
            named = ModelSpec(id=companion.id, revision=companion.revision, allow_pickle=allow_pickle)
            pinned[name] = hub.resolve_model(named)
        except hub.ModelProblem as problem:
            bound.add(("params", name), problem.message, problem.fix)
    return pinned


def _keep(spec: JobSpec, schema: pa.Schema, problems: list[Problem]) -> tuple[str, ...]:
    """The columns carried into the output, each once."""
    keep = tuple(schema.names) if spec.input.keep == "all" else tuple(spec.input.keep)
    for index, name in enumerate(keep):
        loc: Loc = ("input", "path") if spec.input.keep == "all" else ("input", "keep", index)
        if name not in schema.names:
            problems.append(_no_column(spec, loc, name, schema))
        elif name in keep[:index]:
            problems.append(spec.origin.problem(loc, f"column {name!r} is listed twice", "remove one of them"))
        elif name.startswith(RESERVED):
            message = f"column {name!r}: names that begin with {RESERVED} are hfbatch's own"
            problems.append(spec.origin.problem(loc, message, "leave it out of input.keep, or rename it"))
    return keep


def _no_column(spec: JobSpec, loc: Loc, name: str, schema: pa.Schema, task_input: str | None = None) -> Problem:
    if not schema.names:
        return spec.origin.problem(loc, f"the input has no column {name!r}: its files have no rows", "name other files")
    near = difflib.get_close_matches(name, schema.names, n=1)
    fix = f"write '{near[0]}'" if near else f"the input has {', '.join(schema.names[:12])}"
    if task_input is not None:
        fix += f"; or map it: columns: {{{task_input}: YOUR_COLUMN}}"
    return spec.origin.problem(loc, f"the input has no column {name!r}", fix)


def _not_deduped(spec: JobSpec, task: Task) -> Problem:
    fix = "leave dedupe out" + (", or write params.do_sample: false" if hasattr(task.params, "do_sample") else "")
    message = f"{task.name} may draw random numbers here, and so give equal rows different results"
    return spec.origin.problem(("dedupe",), message, fix)


def _task_schema(
    bound: _Bound,
    model: hub.PinnedModel,
    params: Params,
    companions: Mapping[str, hub.PinnedModel],
    given: pa.Schema,
) -> tuple[Any, pa.Schema]:
    """The checkpoint's config and the columns the task will write; no config where that cannot be told."""
    written = bound.written
    task, trust = tasks.find(written.task), written.model.trust_remote_code
    try:
        folder = hub.fetch(model, weights=False, code=trust)
        source = source_of(model, folder, trust, companions)
        made = load_task(task.name, params.model_dump(mode="json"), source, given)
        if bound.spec.dedupe and made.random:
            bound.problems.append(_not_deduped(bound.spec, made))
        return made.config, made.writes()
    except hub.ModelProblem as problem:
        bound.add(("model", problem.key), problem.message, problem.fix)
    except (ValueError, OSError, KeyError) as error:
        if named := re.match(r"params\.(\w+)", str(error)):
            bound.add(("params", named[1]), str(error), f"see hfbatch tasks {task.name}")
            return None, pa.schema([])
        message = f"{written.model.id!r} cannot serve {task.name}: {error}"
        bound.add(("model", "id"), message, "take a checkpoint made for this task")
    return None, pa.schema([])


def _output_schema(
    spec: JobSpec, schema: pa.Schema, keep: tuple[str, ...], steps: Sequence[Step], problems: list[Problem]
) -> pa.Schema:
    """Kept columns but those of folders, the steps' columns, error, lineage; a name there twice is a problem."""
    made, fixed = dict[str, pa.DataType](), {"error": pa.string()}
    fixed |= {step.lineage(name): _DICTIONARY for step in steps for name in MODEL_LINEAGE}
    fixed |= {"run_id": _DICTIONARY}
    for number, step in enumerate(steps):
        for entry in step.writes:
            name, loc = step.prefix + entry.name, spec.loc(number, "prefix")
            if name in fixed:
                message = f"the output would have two columns {name!r}: one from the task, one from hfbatch"
                problems.append(spec.origin.problem(loc, message, "write another prefix"))
            elif name in made:
                message = f"the output would have two columns {name!r}: one from this step, one from an earlier one"
                problems.append(spec.origin.problem(loc, message, "write another prefix"))
            made[name] = entry.type
    own = made | fixed
    for index, name in enumerate(keep):
        if name in own and name not in keep[:index]:
            number = next((number for number, step in enumerate(steps) if name in step.made), 0)
            loc = spec.loc(number, "prefix") if spec.input.keep == "all" else ("input", "keep", index)
            cure = "leave it out of input.keep" if name in fixed else _CURE[bool(spec.steps)]
            message = f"the output would have two columns {name!r}: one kept from the input, one from hfbatch"
            problems.append(spec.origin.problem(loc, message, cure))
    folders = spec.output.partition_by
    for index, name in enumerate(folders):
        if name in own and name not in keep:
            message = f"the output would have two columns {name!r}: one from its folders, one from hfbatch"
            problems.append(spec.origin.problem(("output", "partition_by", index), message, _CURE[bool(spec.steps)]))
    kept = [schema.field(name) for name in keep if name in schema.names and name not in own and name not in folders]
    return pa.schema([*kept, *(pa.field(name, kind) for name, kind in own.items())])


def _absolute(output: str) -> str:
    """`output` for workers too, which may stand in another folder than the driver."""
    store = open_store(output)
    return store.url() if isinstance(store, LocalStore) else output

"""Spec + model + dataset schema -> Job: the columns a job reads and writes, bound to those that are there.

Every column that is missing, of another type, or there twice is a problem that points at its key in the job file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfbatch import hub, kinds, tasks
from hfbatch.errors import Problem, SpecError
from hfbatch.job import Job, load_task, source_of
from hfbatch.spec import JobSpec, Loc, ModelSpec
from hfbatch.store import LocalStore, open_store
from hfbatch.tasks.base import Params, Task
from hfbatch.where import WhereError, columns_of, parse_where

LINEAGE = ("model_id", "model_revision", "parameters", "run_id")
RESERVED = "_hfbatch"  # see columns.py
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def bind(spec: JobSpec, model: hub.PinnedModel, schema: pa.Schema) -> Job:
    """The job with its schemas fixed, or a SpecError with all that does not fit."""
    task_class, problems = tasks.find(spec.task), list[Problem]()
    params = task_class.Params.model_validate({**task_class.params_in_name(spec.task), **spec.params})
    reads, given = _reads(spec, task_class, params, schema, problems)
    keep = _keep(spec, schema, problems)
    needed = {name for name in keep if name not in spec.output.partition_by} | {*reads.values()}
    if spec.input.where is not None:
        try:
            parse_where(spec.input.where, schema)
            needed |= columns_of(spec.input.where)
        except WhereError as error:
            problems.append(spec.origin.problem(("input", "where"), error.message, error.fix))
    companions = _companions(task_class, params, spec, problems)
    config, predictions = _task_schema(spec, model, params, companions, given, problems)
    output = _output_schema(spec, schema, keep, predictions, problems)
    if problems:
        raise SpecError(problems)
    mark = spec.origin.problem(("model", "id"), "")
    job = Job(
        name=spec.name,
        task=task_class.name,
        params=params.model_dump(mode="json"),
        model=model,
        dtype=_dtype(spec, config),
        attn_implementation=spec.model.attn_implementation,
        trust_remote_code=spec.model.trust_remote_code,
        reads=reads,
        given=given,
        keep=tuple(name for name in keep if name not in spec.output.partition_by),
        prefix=spec.output.prefix,
        where=spec.input.where,
        input_schema=pa.schema([entry for entry in schema if entry.name in needed]),
        output_schema=output,
        errors=spec.errors,
        output=_absolute(spec.output.path),
        model_place=mark.place,
        companions=companions,
        media_prefixes=_prefixes(spec),
        partition_by=tuple(spec.output.partition_by),
    )
    return job.with_seed()


def _reads(
    spec: JobSpec, task: type[Task], params: Any, schema: pa.Schema, problems: list[Problem]
) -> tuple[dict[str, str], pa.Schema]:
    """The task's inputs -> columns that are there and can be read as the task's kinds; and those kinds."""
    reads, mapped = {}, spec.input.columns
    try:
        given = task.reads_for(params, mapped, schema)
    except ValueError as error:
        problems.append(spec.origin.problem(("input", "columns"), str(error), "map them under input.columns"))
        return {}, task.reads
    known = list(dict.fromkeys([*task.reads.names, *task.optional.names, *given.names]))
    for name in mapped:
        if name not in given.names:
            fix = f"the task reads {', '.join(known)}; write those to the left, your columns to the right"
            message = f"{task.name} has no input {name!r}" if name not in known else f"{name!r} is not used here"
            problems.append(spec.origin.problem(("input", "columns", name), message, fix))
    for entry in given:
        column = mapped.get(entry.name, entry.name)
        loc: Loc = ("input", "columns", entry.name)
        if column not in schema.names:
            problems.append(_no_column(spec, loc, column, schema, entry.name))
        elif not kinds.accepts(entry.type, found := schema.field(column).type):
            message = f"column {column!r} is {found}, {task.name} reads {kinds.describe(entry.type)}"
            problems.append(spec.origin.problem(loc, message, "name a column of that type"))
        elif entry.type in kinds.MEDIA and kinds.is_path(found) and not _prefixes(spec):
            message = f"column {column!r} holds paths, and a path inside a column is read only where that is allowed"
            fix = "write the folder or URL that they lie below under input.allow_media_prefixes"
            problems.append(spec.origin.problem(loc, message, fix))
        reads[entry.name] = column
    return reads, given


def _prefixes(spec: JobSpec) -> tuple[str, ...]:
    """input.allow_media_prefixes, local ones as absolute paths: workers may stand in another folder."""
    prefixes = spec.input.allow_media_prefixes
    return tuple(each if "://" in each else str(Path(each).expanduser().absolute()) for each in prefixes)


def _companions(task: type[Task], params: Any, spec: JobSpec, problems: list[Problem]) -> dict[str, hub.PinnedModel]:
    """The models that the task needs beside its own, pinned."""
    pinned = {}
    for name, companion in task.companions(params).items():
        try:
            named = ModelSpec(id=companion.id, revision=companion.revision, allow_pickle=spec.model.allow_pickle)
            pinned[name] = hub.resolve_model(named)
        except hub.ModelProblem as problem:
            problems.append(spec.origin.problem(("params", name), problem.message, problem.fix))
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
    if task_input is not None and task_input not in spec.input.columns:
        fix += f"; or map it: columns: {{{task_input}: YOUR_COLUMN}}"
    return spec.origin.problem(loc, f"the input has no column {name!r}", fix)


def _task_schema(
    spec: JobSpec,
    model: hub.PinnedModel,
    params: Params,
    companions: Mapping[str, hub.PinnedModel],
    given: pa.Schema,
    problems: list[Problem],
) -> tuple[Any, pa.Schema]:
    """The checkpoint's config and the columns the task will write."""
    task = tasks.find(spec.task)
    try:
        trust = spec.model.trust_remote_code
        folder = hub.fetch(model, weights=False, code=trust)
        source = source_of(model, folder, trust, companions)
        made = load_task(task.name, params.model_dump(mode="json"), source, given)
        return made.config, made.writes()
    except hub.ModelProblem as problem:
        problems.append(spec.origin.problem(("model", problem.key), problem.message, problem.fix))
    except (ValueError, OSError, KeyError) as error:
        if named := re.match(r"params\.(\w+)", str(error)):
            problems.append(spec.origin.problem(("params", named[1]), str(error), f"see hfbatch tasks {task.name}"))
            return None, pa.schema([])
        message = f"{spec.model.id!r} cannot serve {task.name}: {error}"
        problems.append(spec.origin.problem(("model", "id"), message, "take a checkpoint made for this task"))
    return None, pa.schema([])


def _output_schema(
    spec: JobSpec, schema: pa.Schema, keep: tuple[str, ...], predictions: pa.Schema, problems: list[Problem]
) -> pa.Schema:
    """Kept columns but those of folders, the task's columns, error, lineage; a name there twice is a problem."""
    made = {spec.output.prefix + entry.name: entry.type for entry in predictions}
    fixed = {"error": pa.string(), **dict.fromkeys(LINEAGE, _DICTIONARY)}
    own, prefix = made | fixed, ("output", "prefix")
    for name in sorted(made.keys() & fixed):
        message = f"the output would have two columns {name!r}: one from the task, one from hfbatch"
        problems.append(spec.origin.problem(prefix, message, "write another prefix"))
    for index, name in enumerate(keep):
        if name in own and name not in keep[:index]:
            loc: Loc = prefix if spec.input.keep == "all" else ("input", "keep", index)
            cure = "leave it out of input.keep" if name in fixed else "set output.prefix, such as 'pred_'"
            message = f"the output would have two columns {name!r}: one kept from the input, one from hfbatch"
            problems.append(spec.origin.problem(loc, message, cure))
    folders = spec.output.partition_by
    for index, name in enumerate(folders):
        if name in own and name not in keep:
            message = f"the output would have two columns {name!r}: one from its folders, one from hfbatch"
            problems.append(spec.origin.problem(("output", "partition_by", index), message, "set output.prefix"))
    kept = [schema.field(name) for name in keep if name in schema.names and name not in own and name not in folders]
    return pa.schema([*kept, *(pa.field(name, kind) for name, kind in own.items())])


def _absolute(output: str) -> str:
    """`output` for workers too, which may stand in another folder than the driver."""
    store = open_store(output)
    return store.url() if isinstance(store, LocalStore) else output


def _dtype(spec: JobSpec, config: Any) -> str:
    """The precision to load; `auto` is what the checkpoint's config says."""
    if spec.model.dtype != "auto":
        return spec.model.dtype
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")

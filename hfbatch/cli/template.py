"""Job files for a task, whole and commented or as short as can be, made from spec.py and what the task declares."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hfbatch.kinds import describe
from hfbatch.modelspec import ModelSpec
from hfbatch.origin import Spec
from hfbatch.spec import ErrorsSpec, InputSpec, JobSpec, OutputSpec
from hfbatch.tasks.base import Task

_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_NOT_TEXT = frozenset({"null", "true", "false", "yes", "no", "on", "off"})  # to one YAML reader or another


def job_file(task: type[Task], path: str | None = None, name: str | None = None) -> str:
    """YAML text that loads as it stands; every key with its default and what it means.

    `path`: where it will stand. `name`: how the task was called, as a name may say something about params.
    """
    job = re.sub(r"[^A-Za-z0-9._-]+", "-", path.rpartition("/")[2].removesuffix(".yaml")).lstrip("._-") if path else ""
    job = job[:100] or f"my-{task.name}"
    file = shlex.quote(path or f"{job}.yaml")
    lines = [
        f"# {task.name} over a dataset",
        f"#   hfbatch tasks {task.name}    what does it read and write?",
        f"#   hfbatch check {file}    is everything in it written right?",
        f"#   hfbatch plan {file}     what would a run do?",
        f"#   hfbatch run {file}      again: only what is new or missing",
        *_entry("name", job, _about(JobSpec, "name")),
        *_entry("task", task.name, _about(JobSpec, "task")),
        *_section("model", ModelSpec, {"id": "owner/name", "revision": "main"}),
        *_section("input", InputSpec, {"path": "data/*.parquet"}, {"columns": _columns(task)}),
        *_section("params", task.Params, {key: _scalar(value) for key, value in _shown(task, name).items()}),
        *_section("output", OutputSpec, {"path": f"out/{job}"}),
        *_section("errors", ErrorsSpec, {}),
        *_entry("dedupe", "false", _about(JobSpec, "dedupe")),
        *_entry("gates", "null", _about(JobSpec, "gates")),
        *_entry("guardrails", "null", _about(JobSpec, "guardrails")),
        *_entry("vars", "{}", _about(JobSpec, "vars")),
    ]
    return "\n".join(lines) + "\n"


def short_job(task: type[Task], name: str | None = None, width: int = 80) -> str:
    """YAML text of what a job must say, with the two lines to edit marked; comments folded at `width`."""
    shape = {"column": 28, "width": width}
    params = [f"  {key}: {_scalar(value)}" for key, value in _shown(task, name).items()]
    lines = [
        f"# all keys, explained: hfbatch init {name or task.name}",
        f"task: {task.name}",
        "model:",
        *_entry("  id", "owner/name", "edit: a model of the Hub, or a directory", **shape),
        "input:",
        *_entry("  path", "data/*.parquet", "edit: your files", **shape),
        *_entry("  columns", "", "the task's input: your column", **shape),
        *_columns(task, **shape),
        *(["params:", *params] if params else []),
        "output:",
        f"  path: out/{task.name}",
    ]
    return "\n".join(lines) + "\n"


def _columns(task: type[Task], **shape: int) -> list[str]:
    """Input to column, by the input's own name, and what a column of it may hold; those that may be left out below."""
    needed, lines = [*task.reads] or list(task.optional)[:1], list[str]()
    role = "optional" if len(task.reads) else "in its place"
    for entry in needed:
        lines += _entry(f"    {entry.name}", entry.name, describe(entry.type), **shape)
    for entry in task.optional:
        if entry not in needed:
            lines += _entry(f"    # {entry.name}", entry.name, f"{role}; {describe(entry.type)}", **shape)
    return lines


def _shown(task: type[Task], name: str | None) -> dict[str, Any]:
    """Params that an example should set: what the task's name says, and those with an example but no default."""
    examples = {key: info.examples[0] for key, info in task.Params.model_fields.items() if info.examples}
    return examples | dict(task.params_in_name(name or task.name))


def _section(
    name: str, model: type[BaseModel], values: Mapping[str, str], below: Mapping[str, list[str]] | None = None
) -> list[str]:
    """A section's keys with `values` or their defaults; `below`: lines that are a key's value."""
    about = inspect.getdoc(model) if issubclass(model, Spec) else _about(JobSpec, name)
    lines, below = _entry(name, "" if model.model_fields else "{}", _sentence(about or "")), below or {}
    for key, info in model.model_fields.items():
        written = "" if key in below else values.get(key) or _scalar(info.get_default(call_default_factory=True))
        lines += _entry(f"  {key}", written, _about(model, key)) + below.get(key, [])
    return lines


def _entry(key: str, written: str, about: str, column: int = 36, width: int = 100) -> list[str]:
    """`key: value  # comment`, the comment at `column` or behind, going on below itself where it is long."""
    entry = f"{key}: {written}".rstrip()
    column = max(column, len(entry) + 2)
    first, *others = textwrap.wrap(about, max(width - column - 2, 24), break_on_hyphens=False) or [""]
    return [f"{entry:<{column}}# {first}" if first else entry, *(f"{'':<{column}}# {line}" for line in others)]


def _about(model: type[BaseModel], key: str) -> str:
    return model.model_fields[key].description or ""


def _sentence(docstring: str) -> str:
    first = docstring.splitlines()[0] if docstring else ""
    return first[:1].lower() + first[1:].rstrip(".")


def _scalar(value: Any) -> str:
    """A value as YAML that reads back as it is."""
    plain = isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _NOT_TEXT
    return str(value) if plain else json.dumps(value, ensure_ascii=False)

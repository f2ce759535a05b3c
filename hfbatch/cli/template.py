"""A commented job file for a task, made from the declarations in spec.py and the task's Params."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import textwrap
from typing import Any

from pydantic import BaseModel

from hfbatch.spec import ErrorsSpec, InputSpec, JobSpec, ModelSpec, OutputSpec
from hfbatch.tasks.base import Task

_COMMENT_COLUMN = 36
_WIDTH = 100
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_NOT_TEXT = frozenset({"null", "true", "false", "yes", "no", "on", "off"})  # to one YAML reader or another


def job_file(task: type[Task], path: str | None = None) -> str:
    """YAML text that loads as it stands; every key with its default and what it means. `path`: where it will stand."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.rpartition("/")[2].removesuffix(".yaml")).lstrip("._-") if path else ""
    name = name[:100] or f"my-{task.name}"
    file = shlex.quote(path or f"{name}.yaml")
    columns = f"{{{', '.join(f'{column}: {column}' for column in task.reads.names)}}}"
    more = f"; {', '.join(task.optional.names)} may be given too" if task.optional.names else ""
    lines = [
        f"# {task.name} over a dataset; what it reads and writes: hfbatch tasks {task.name}",
        f"#   hfbatch check {file}    is everything in it written right?",
        f"#   hfbatch plan {file}     what would a run do?",
        f"#   hfbatch run {file}      again: only what is new or missing is computed",
        *_entry("name", name, _about(JobSpec, "name")),
        *_entry("task", task.name, _about(JobSpec, "task")),
        *_section("model", ModelSpec, {"id": "owner/name", "revision": "main"}),
        *_section("input", InputSpec, {"path": "data/*.parquet", "columns": columns}, {"columns": more}),
        *_section("params", task.Params, {}),
        *_section("output", OutputSpec, {"path": f"out/{name}"}),
        *_section("errors", ErrorsSpec, {}),
        *_entry("vars", "{}", _about(JobSpec, "vars")),
    ]
    return "\n".join(lines) + "\n"


def _section(
    name: str, model: type[BaseModel], values: dict[str, str], more: dict[str, str] | None = None
) -> list[str]:
    about = inspect.getdoc(model) if model.__module__ == JobSpec.__module__ else _about(JobSpec, name)
    lines = _entry(name, "" if model.model_fields else "{}", _sentence(about or ""))
    for key, info in model.model_fields.items():
        written = values.get(key) or _scalar(info.get_default(call_default_factory=True))
        lines += _entry(f"  {key}", written, _about(model, key) + (more or {}).get(key, ""))
    return lines


def _entry(key: str, written: str, about: str) -> list[str]:
    """`key: value  # comment`, the comment going on below itself where it is long."""
    entry = f"{key}: {written}".rstrip()
    column = max(_COMMENT_COLUMN, len(entry) + 2)
    first, *others = textwrap.wrap(about, max(_WIDTH - column - 2, 24), break_on_hyphens=False) or [""]
    return [f"{entry:<{column}}# {first}" if first else entry, *(f"{'':<{column}}# {line}" for line in others)]


def _about(model: type[BaseModel], key: str) -> str:
    return model.model_fields[key].description or ""


def _sentence(docstring: str) -> str:
    first = docstring.splitlines()[0] if docstring else ""
    return first[:1].lower() + first[1:].rstrip(".")


def _scalar(value: Any) -> str:
    """A value as YAML that reads back as it is."""
    plain = isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _NOT_TEXT
    return str(value) if plain else json.dumps(value)

"""A commented job file for a task, made from the declarations in spec.py and the task's Params."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from hfbatch.spec import ErrorsSpec, InputSpec, ModelSpec, OutputSpec
from hfbatch.tasks.base import Task

_EXAMPLES: dict[type[BaseModel], dict[str, str]] = {
    ModelSpec: {"id": "owner/name", "revision": "main"},
    InputSpec: {"path": "data/*.parquet"},
    OutputSpec: {"path": "out/NAME"},
    ErrorsSpec: {},
}
_COMMENT_COLUMN = 44


def job_file(task: type[Task]) -> str:
    """YAML text that loads as it stands; every key with its default and what it means."""
    name = f"my-{task.name}"
    reads = ", ".join(f"{column}: {column}" for column in [*task.reads.names])
    lines = [
        f"# {name}: {task.name} over a dataset. What it reads and writes: hfbatch tasks {task.name}",
        f"# check it: hfbatch check {name}.yaml    see what it would do: hfbatch plan {name}.yaml",
        f"# run it:   hfbatch run {name}.yaml      run it again: only what is new or missing is computed",
        f"name: {name}",
        f"task: {task.name}",
        "model:",
        *_keys(ModelSpec, {}),
        "input:",
        *_keys(InputSpec, {"columns": f"{{{reads}}}"}),
        "params:",
        *_keys(task.Params, {}),
        "output:",
        *_keys(OutputSpec, {"path": f"out/{name}"}),
        "errors:",
        *_keys(ErrorsSpec, {}),
    ]
    return "\n".join(lines) + "\n"


def _keys(model: type[BaseModel], values: dict[str, str]) -> list[str]:
    lines = []
    for name, info in model.model_fields.items():
        default = info.default_factory() if info.default_factory else info.default  # type: ignore[call-arg]
        written = values.get(name) or _EXAMPLES.get(model, {}).get(name) or _scalar(default)
        entry = f"  {name}: {written}"
        lines.append(f"{entry:<{_COMMENT_COLUMN}}# {info.description}" if info.description else entry)
    return lines


def _scalar(value: Any) -> str:
    """A value as YAML that reads back as it is."""
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value)

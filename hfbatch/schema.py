"""JSON Schema (2020-12) of the job and machine files, made from the pydantic models, for editors.

An editor reads YAML with types, hfbatch reads it as text; so a text may look like a number here, and a number may be
quoted or hold a `${variable}`. What the schema accepts is never more than a spelling away from what `load` accepts.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from hfbatch import tasks
from hfbatch.spec import JobSpec, Machine
from hfbatch.tasks.base import Task

_VARIABLE = r"\$\{"
_TEXT_WITH_VARIABLE = {"type": "string", "pattern": _VARIABLE}
_SPELLINGS = {  # how a value of each type may be written as text: quoted, or as YAML 1.1 and 1.2 differ
    "integer": r"^\s*[-+]?[0-9][0-9_]*(\.0*)?\s*$",
    "number": r"^\s*[-+]?[0-9.][0-9_.]*([eE][-+]?[0-9]+)?\s*$",
    "boolean": r"^([Tt]rue|TRUE|[Ff]alse|FALSE|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF|0|1)$",
}


def job_schema() -> dict[str, Any]:
    """The schema of a job file."""
    return _whole("hfbatch job", *_job())


def machine_schema() -> dict[str, Any]:
    """The schema of a machine file."""
    return _whole("hfbatch machine", *_model(Machine, "#/$defs/{model}", variables=False))


def schema() -> dict[str, Any]:
    """One schema for both files, so that an editor needs to be told of one."""
    job, job_parts = _job()
    machine, machine_parts = _model(Machine, "#/$defs/{model}", variables=False)
    return _whole("hfbatch job or machine", {"anyOf": [job, machine]}, {**job_parts, **machine_parts})


def _whole(title: str, body: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": GenerateJsonSchema.schema_dialect, "title": title, **body, "$defs": parts}


def _job() -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's schema and its parts; `params` follows `task`, in each of `steps` too."""
    job, parts = _model(JobSpec, "#/$defs/{model}")
    chosen = []
    for task in tasks.all():
        key = f"params-{task.name}"
        params, nested = _model(task.Params, f"#/$defs/{key}/$defs/{{model}}")
        parts[key] = {**params, "$defs": nested} if nested else params
        called = [{key: name[key] for key in name if key != "description"} for name in _names(task)]
        written = {"properties": {"task": {"anyOf": called}}, "required": ["task"]}
        then: dict[str, Any] = {"properties": {"params": {"$ref": f"#/$defs/{key}"}}}
        if params.get("required"):
            then["required"] = ["params"]
        chosen.append({"if": written, "then": then})
    names = [choice for task in tasks.all() for choice in _names(task)]
    for whole in (job, parts["StepSpec"]):
        description = whole["properties"]["task"].get("description", "")
        whole["properties"]["task"] = {"description": description, "anyOf": [*names, _TEXT_WITH_VARIABLE]}
        whole["allOf"] = chosen
    job["anyOf"] = [{"required": ["task", "model"]}, {"required": ["steps"]}]
    return job, parts


def _names(task: type[Task]) -> list[dict[str, str]]:
    """A task's names, each with what an editor shows beside it."""
    about = tasks.about(task).partition("\n")[0].removeprefix(f"{task.name}: ")
    more = [{"const": alias} for alias in task.aliases]
    more += [{"pattern": f"^{task.pattern}$"}] if task.pattern else []
    others = [{**name, "description": f"another name of {task.name}: {about}"} for name in more]
    return [{"const": task.name, "description": about}, *others]


def _model(model: type[BaseModel], refs: str, variables: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's schema and the schemas it refers to, as a person may write the values."""
    found = model.model_json_schema(ref_template=refs)
    parts = {name: _as_written(part, variables) for name, part in found.pop("$defs", {}).items()}
    return _as_written(found, variables), parts


def _as_written(node: dict[str, Any], variables: bool) -> dict[str, Any]:
    """A schema that takes every spelling of the same value; generated titles, which only repeat the key, go."""
    node = {key: value for key, value in node.items() if key != "title"}
    for key in ("properties", "patternProperties"):
        if key in node:
            node[key] = {name: _as_written(each, variables) for name, each in node[key].items()}
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in node:
            node[key] = [_as_written(each, variables) for each in node[key]]
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _as_written(node[key], variables)
    return _loosened(node, variables)


def _loosened(node: dict[str, Any], variables: bool) -> dict[str, Any]:
    kind = node.get("type")
    if kind == "string" and ("enum" in node or "const" in node):
        return {"anyOf": [node, _TEXT_WITH_VARIABLE]} | _about(node) if variables else node
    if kind == "string":
        pattern = {"pattern": f"{node['pattern']}|{_VARIABLE}"} if "pattern" in node and variables else {}
        return {**node, "type": ["string", "number", "boolean"], **pattern}
    if isinstance(kind, str) and kind in _SPELLINGS:
        return {**node, "type": [kind, "string"], "pattern": _SPELLINGS[kind] + (f"|{_VARIABLE}" if variables else "")}
    return node


def _about(node: dict[str, Any]) -> dict[str, Any]:
    return {key: node[key] for key in ("default", "description") if key in node}

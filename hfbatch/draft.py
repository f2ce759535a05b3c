"""A tree of text on its way to a spec: overrides, variables and checks, with every problem found so far."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hfbatch import tasks
from hfbatch.access import credentials_in, redact
from hfbatch.errors import Problem, SpecError
from hfbatch.explain import MAX_PROBLEMS, Explainer, given, homes, nearest
from hfbatch.origin import Loc, Origin, mark_of
from hfbatch.spec import JobSpec, Machine
from hfbatch.tasks.base import Task

MAX_DEPTH = 32
MAX_ADDED = 1024 * 1024  # characters all variables together may add: a small file must not explode

_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")

_CREDENTIALS = (
    "take them out of it and put them into the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
    "AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_CONNECTION_STRING, HF_TOKEN"
)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Written(Origin):
    """An Origin that also knows which keys were given on the command line instead of in the file."""

    given: dict[Loc, str] = field(default_factory=dict)  # key -> "--set input.limit"

    def problem(self, loc: Loc, message: str, fix: str | None = None) -> Problem:
        """A Problem at the option that gave `loc`, or else where the file has it. Shows no secret of a URL."""
        message, fix = redact(message), fix and redact(fix)
        for depth in range(len(loc), 0, -1):
            if place := self.given.get(loc[:depth]):
                return Problem(place, ".".join(map(str, loc)), message, fix)
        return super().problem(loc, message, fix)

    def at(self, mark: tuple[int, int], key: str, message: str, fix: str | None = None) -> Problem:
        """A Problem at a line and column of the file; the line is shown without the secrets of URLs in it."""
        found = super().at(mark, key, message, fix)
        return replace(found, excerpt=found.excerpt and redact(found.excerpt))


class Draft:
    """What was written, before it is a spec. Problems are added until `stop` raises them all."""

    def __init__(self, tree: dict[str, Any], places: Written) -> None:
        self.tree, self.places = tree, places
        self.problems: list[Problem] = []
        self.broken: set[Loc] = set()  # keys whose problem is known: nothing more is said about them

    @classmethod
    def of_mapping(cls, source: Mapping[str, Any]) -> Draft:
        """A mapping given in Python, copied."""
        draft = cls({}, Written())
        draft.tree = draft.copied(source, ())
        return draft

    @classmethod
    def of_spec(cls, spec: BaseModel, origin: Origin) -> Draft:
        """A finished spec, to be checked again."""
        known = dict(origin.given) if isinstance(origin, Written) else {}
        return cls(spec.model_dump(exclude_unset=True), Written(origin.name, origin.lines, origin.marks, known))

    def add(self, loc: Loc, message: str, fix: str | None = None) -> None:
        """A problem at a key, which is then checked no further."""
        self.problems.append(self.places.problem(loc, message, fix))
        self.broken.add(loc)

    def stop(self) -> None:
        """Raise what was found, in the order of the file, if anything was."""
        found = sorted(dict.fromkeys(self.problems), key=mark_of)
        if found[MAX_PROBLEMS:]:
            found[MAX_PROBLEMS:] = [Problem(self.places.name or "job", "", "there are more problems; mend these first")]
        if found:
            raise SpecError(found)

    def copied(self, value: Any, loc: Loc) -> Any:
        """A value given in Python as the tree a file would give: own dicts and lists, paths as text."""
        if len(loc) > MAX_DEPTH:
            self.add(loc, f"deeper than {MAX_DEPTH} levels")
            self.stop()
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    self.add(loc, f"the key {given(key)} is not text", f"write {str(key)!r}")
            return {key: self.copied(each, (*loc, key)) for key, each in value.items() if isinstance(key, str)}
        if isinstance(value, list | tuple):
            return [self.copied(each, (*loc, index)) for index, each in enumerate(value)]
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    def put(self, key: str, value: Any) -> None:
        """Set the dotted key an option of the command line gives."""
        loc = tuple(key.split(".", MAX_DEPTH))
        self.places.given[loc] = f"--set {key}"
        node: Any = self.tree
        for part in loc[:-1]:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
            if not isinstance(node, dict):
                self.add(loc, f"nothing can be set below {given(node)}")
                return
        node[loc[-1]] = value

    def escape(self) -> None:
        """Keep `substitute` from touching what stands in the tree now."""
        for node, key, _ in _texts(self.tree):
            node[key] = node[key].replace("${", "$${")

    def declare(self, variables: Mapping[str, str]) -> None:
        """Variables of the command line; they win over the file's."""
        written = self.tree.get("vars") or {}
        if variables and isinstance(written, dict):
            self.tree["vars"] = {**written, **variables}
            self.places.given.update({("vars", name): f"--var {name}" for name in variables})

    def substitute(self, how: str, built_in: Mapping[str, str] | None = None) -> None:
        """Replace `${name}` in every text but those of `vars`; `how` tells how to declare the variable {}."""
        written, given = self.tree.get("vars"), built_in or {}
        declared = {name: str(text) for name, text in written.items()} if isinstance(written, dict) else {}
        known = {**given, **declared}
        room = MAX_ADDED
        for node, key, loc in _texts(self.tree):
            names = [match[1] for match in _VARIABLE.finditer(node[key]) if match[0] != "$${"]
            if any(name not in known for name in names):
                unknown = next(name for name in names if name not in known)
                self._refuse_variable(loc, unknown, declared, _almost(unknown, given), how)
                continue
            room -= sum(len(known[name]) for name in names)
            if room < 0:
                self.add(loc, f"variables add more than {MAX_ADDED:,} characters", "shorten them")
                return
            node[key] = _VARIABLE.sub(lambda match: "${" if match[0] == "$${" else known[match[1]], node[key])

    def _refuse_variable(
        self, loc: Loc, name: str | None, known: Mapping[str, str], almost: str | None, how: str
    ) -> None:
        if name is None:
            self.add(loc, "'${' without '}'", "close it, or write $${ for a literal ${")
            return
        listed = f"; there are {', '.join(sorted(known)[:20])}" if known else ""
        near = nearest(name, known) or almost
        self.add(loc, f"no variable {name!r}{listed}", f"write ${{{near}}}" if near else how.format(name))

    def check_tasks(self) -> list[type[Task]]:
        """The tasks that are asked for; their params are checked and put in canonical form."""
        steps = self.tree.get("steps")
        if not isinstance(steps, list) or not steps:
            found = [self._check_task(self.tree, ())]
        else:
            for section, key in (("", "params"), ("input", "columns"), ("output", "prefix")):
                within = self.tree.get(section) if section else self.tree
                if isinstance(within, dict) and within.get(key) not in (None, "", {}):
                    where = (section, key) if section else (key,)
                    self.add(where, "stands in each of the steps where there are steps", "move it there")
            found = [self._check_task(step, ("steps", n)) for n, step in enumerate(steps) if isinstance(step, dict)]
        return [task for task in found if task is not None]

    def _check_task(self, tree: dict[str, Any], at: Loc) -> type[Task] | None:
        name, params = tree.get("task"), tree.get("params", {})
        if not isinstance(name, str) or (*at, "task") in self.broken:
            return None
        try:
            task = tasks.find(name)
        except tasks.UnknownTask as unknown:
            fix = f"write '{unknown.nearest}'" if unknown.nearest else "`hfbatch tasks` lists them"
            self.add((*at, "task"), f"no task {given(name)}", fix)
            return None
        tree["task"] = task.name
        if not isinstance(params, dict):
            return task
        params = {**task.params_in_name(name), **params}
        try:
            checked = task.Params.model_validate(params)
        except ValidationError as error:
            explainer = Explainer(task.Params, params, self.places.problem, prefix=(*at, "params"))
            self.problems.extend(explainer.problems(error, self.broken))
        else:
            tree["params"] = checked.model_dump(mode="json", exclude_unset=True)
        return task

    def validated(self, model: type[Model], hints: Mapping[str, str]) -> Model:
        """The tree as `model`, or every problem at once."""
        try:
            spec = model.model_validate(self.tree)
        except ValidationError as error:
            explainer = Explainer(model, self.tree, self.places.problem, hints=hints)
            self.problems.extend(explainer.problems(error, self.broken))
            self.stop()
            raise
        if isinstance(spec, JobSpec):
            self._check_urls(spec)
        self.stop()
        return spec

    def _check_urls(self, spec: JobSpec) -> None:
        """Credentials do not belong into paths, which reports and error messages show."""
        found: list[Loc] = [("output", "path")] if credentials_in(spec.output.path, stored=True) else []
        if spec.gates and spec.gates.golden and credentials_in(spec.gates.golden.path, stored=False):
            found.append(("gates", "golden", "path"))
        for index, path in enumerate(spec.input.paths):
            if credentials_in(path, stored=False):
                found.append(("input", "path") if isinstance(spec.input.path, str) else ("input", "path", index))
        for loc in found:
            self.add(loc, "the URL holds credentials", _CREDENTIALS)


def days() -> dict[str, str]:
    """The variables that need no declaration: the date in UTC and the one before, as in 2026-11-20.

    They are read once, when the job is loaded: a run that crosses midnight keeps the day it was planned with.
    """
    today = datetime.now(UTC).date()
    return {"today": today.isoformat(), "yesterday": (today - timedelta(days=1)).isoformat()}


def _almost(name: str | None, known: Iterable[str]) -> str | None:
    """A built-in name that differs by a slip of the finger; `day` is none of `today`."""
    return next(iter(difflib.get_close_matches(name or "", list(known), 1, 0.8)), None)


def split_overrides(pairs: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """`key=value` strings to the overrides of the job and those of the machine. Raises SpecError."""
    job: dict[str, str] = {}
    machine: dict[str, str] = {}
    problems = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        first = key.partition(".")[0]
        if not equals:
            problems.append(Problem(f"--set {key}", key, "no value", f"write {key}=VALUE"))
        elif first in JobSpec.model_fields:
            job[key] = value
        elif first in Machine.model_fields:
            machine[key] = value
        else:
            problems.append(Problem(f"--set {key}", key, "unknown key", _known_key(key, first, value)))
    if problems:
        raise SpecError(problems)
    return job, machine


def _known_key(key: str, first: str, value: str) -> str:
    names = [*JobSpec.model_fields, *Machine.model_fields]
    if sections := homes(JobSpec, key):
        return f"write {sections[0]}.{key}={value}"
    if near := nearest(first, names):
        return f"write {near}{key[len(first) :]}={value}"
    return f"a key starts with {', '.join(names)}"


def _texts(node: Any, loc: Loc = ()) -> Iterator[tuple[Any, Any, Loc]]:
    """Every text with `${` below `node`, as (its dict or list, its key there, its loc); not those of `vars`."""
    entries: Iterable[tuple[Any, Any]] = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(entries):
        if isinstance(value, dict | list) and (loc, key) != ((), "vars"):
            yield from _texts(value, (*loc, key))
        elif isinstance(value, str) and "${" in value:
            yield node, key, (*loc, key)

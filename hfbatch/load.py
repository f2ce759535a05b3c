"""YAML text in, JobSpec out, or one SpecError that names every problem with its line.

YAML gives text, the spec gives types: every scalar stays the text that was written (an all-digit sha, `no`, `0012`),
and pydantic turns it into what its key takes. Only plain `null`, `~` and nothing at all are null. The tree is built
from the parser's events in one pass, so anchors, tags, duplicates and depth are refused before they cost anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hfbatch.draft import MAX_DEPTH, Draft, Written, days, split_overrides
from hfbatch.errors import Problem, SpecError
from hfbatch.explain import MAX_PROBLEMS, given, nearest
from hfbatch.origin import Loc
from hfbatch.spec import JobSpec, Machine

__all__ = ["load_job", "load_machine", "split_overrides"]

MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000  # a mark is kept for each
MAX_KEY = 200  # characters

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it: 20 times as fast
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_NULLS = frozenset({"", "~", "null"})


def load_job(
    source: str | Path | Mapping[str, Any] | JobSpec,
    *,
    vars: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> JobSpec:
    """The job in a file, a mapping or a JobSpec: `${name}` replaced, task and params checked. Raises SpecError.

    `${today}` and `${yesterday}` are UTC dates of this moment, unless `vars` or the file says otherwise. The values of
    a JobSpec are final: `${name}` in them is replaced only where `vars` is given.
    """
    draft = Draft.of_spec(source, source.origin) if isinstance(source, JobSpec) else _draft(source)
    if isinstance(source, JobSpec) and vars is None:
        draft.escape()
    _override(draft, overrides or {})
    draft.declare(vars or {})
    draft.substitute("declare it under vars:, or give --var {}=VALUE", days())
    if isinstance(source, str | Path):
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).stem).lstrip("._-")
        draft.tree.setdefault("name", stem[:100] or "job")
    params = (task.Params.model_fields for task in draft.check_tasks())
    spec = draft.validated(JobSpec, {name: "under params" for fields in params for name in fields})
    if isinstance(source, JobSpec) and spec.model_dump() == source.model_dump():
        return source
    spec._origin = draft.places
    return spec


def load_machine(
    source: str | Path | Mapping[str, Any] | Machine | None, *, overrides: Mapping[str, str] | None = None
) -> Machine:
    """The machine in a file or a mapping; None is the default machine. Raises SpecError."""
    if isinstance(source, Machine):
        draft = Draft.of_spec(source, source._origin)
        draft.escape()
    else:
        draft = _draft({} if source is None else source)
    _override(draft, overrides or {})
    draft.substitute("a machine file has no variables; write the value, or give it with --set")
    machine = draft.validated(Machine, {})
    machine._origin = draft.places
    return machine


def _draft(source: str | Path | Mapping[str, Any]) -> Draft:
    """What a file or a mapping says, with the problems of its form."""
    if isinstance(source, Mapping):
        return Draft.of_mapping(source)
    name = str(source)
    text = _read_text(Path(source), name)
    reader = _Reader(name, text)
    draft, tree = Draft({}, reader.places), reader.read()
    draft.problems, draft.broken = reader.problems, reader.broken
    if isinstance(tree, dict) and not reader.stopped:
        draft.tree = tree
        return draft
    if not reader.problems:
        message = "the file is empty" if tree is None else f"the file is {given(tree)}, not keys with values"
        draft.add((), message, "write 'task: text-classification' and so on; `hfbatch init TASK` writes a whole file")
    draft.stop()
    raise AssertionError("a problem was there, so stop raised it")


def _read_text(path: Path, name: str) -> str:
    try:
        if not path.is_file():
            raise SpecError([_no_file(path, name)])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SpecError([Problem(name, "", "the file is larger than 256 KiB", "name inputs by a folder or a glob")])
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - (error.object.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise SpecError([Problem(f"{name}:{line}:{column}", "", message, "save the file as UTF-8")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError([Problem(name, "", f"cannot be read: {reason}", "give the path of a YAML file")]) from None


def _no_file(path: Path, name: str) -> Problem:
    folder = path.parent
    if path.exists():
        return Problem(name, "", "not a file", "give the path of a YAML file")
    if not folder.is_dir():
        return Problem(name, "", f"there is no folder '{folder}'", "give the path of a YAML file")
    near = nearest(path.name, sorted(entry.name for entry in folder.iterdir() if entry.is_file()))
    fix = f"write '{folder / near}'" if near else "give the path of a YAML file; `hfbatch init TASK` writes a job file"
    return Problem(name, "", "there is no such file", fix)


def _override(draft: Draft, overrides: Mapping[str, str]) -> None:
    """Values of --set, read as YAML by the same rules as the file."""
    for key, text in overrides.items():
        if not isinstance(text, str):
            draft.put(key, draft.copied(text, tuple(key.split("."))))
            continue
        reader = _Reader(f"--set {key}", text)
        draft.put(key, text if text.startswith("*") else reader.read())  # *.parquet: aliases are refused anyway
        for problem in reader.problems:
            draft.add(tuple(key.split(".")), problem.message, problem.fix)


class _Stop(Exception):
    """The rest of the text is not worth reading."""


@dataclass
class _Frame:
    """A mapping or list that is being filled."""

    node: dict[str, Any] | list[Any]
    loc: Loc
    key: str | None = None  # of a mapping: the key whose value comes next
    keep: bool = True  # False: that key is refused, so its value is read and forgotten


class _Reader:
    """Builds a tree of text from YAML events, without recursion, and notes the line and column of every key."""

    def __init__(self, name: str, text: str) -> None:
        self.text = text
        self.marks: dict[Loc, tuple[int, int]] = {(): (1, 1)}
        self.places = Written(name, tuple(_BREAK.split(text)), self.marks)
        self.problems: list[Problem] = []
        self.broken: set[Loc] = set()
        self.stopped = False  # the tree is not whole
        self.stack: list[_Frame] = []
        self.root: Any = None
        self.documents = 0

    def read(self) -> Any:
        """The tree: dicts, lists, str and None."""
        try:
            if found := _CONTROL.search(self.text):
                before = _BREAK.split(self.text[: found.start()])
                message = f"control character U+{ord(found[0]):04X}"
                self._stop((len(before), len(before[-1]) + 1), message, "remove it")
            for event in yaml.parse(self.text, Loader=_LOADER):
                self._take(event)
        except _Stop:
            self.stopped = True
        except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # the last two: an escape out of range
            self.stopped = True
            self.problems.append(self._syntax(error))
        return self.root

    def _refuse(self, mark: tuple[int, int], loc: Loc, message: str, fix: str) -> None:
        self.problems.append(self.places.at(mark, ".".join(map(str, loc)), message, fix))
        if len(self.problems) > MAX_PROBLEMS:
            raise _Stop

    def _stop(self, mark: tuple[int, int], message: str, fix: str) -> None:
        self._refuse(mark, (), message, fix)
        raise _Stop

    def _take(self, event: yaml.Event) -> None:
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._stop(mark, "a second document begins here", "write one file for each")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            frame = self.stack[-1] if self.stack else _Frame([], ())
            if isinstance(frame.node, dict) and frame.key is None:
                self._take_key(frame, frame.node, event, mark)
            else:
                self._take_value(frame, event, mark)

    def _take_key(self, frame: _Frame, node: dict[str, Any], event: yaml.NodeEvent, mark: tuple[int, int]) -> None:
        key = event.value if isinstance(event, yaml.ScalarEvent) else "?"
        loc = (*frame.loc, key)
        frame.key, frame.keep = key, False
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse(mark, frame.loc, "a key must be plain text", "write key: value")
            self._open(event, frame.loc, mark)
        elif not event.style and key in _NULLS:
            self._refuse(mark, frame.loc, "no key before ':'", "write key: value")
        elif event.tag is not None or event.anchor:
            self._refuse(mark, loc, "keys have no anchor and no tag", f"write {key}:")
        elif not event.style and key == "<<":
            self._refuse(mark, frame.loc, "merge keys are not read", "write the values out")
        elif len(key) > MAX_KEY or not key.isprintable():
            self._refuse(mark, frame.loc, f"a key must be printable text of at most {MAX_KEY} characters", "shorten it")
        elif key in node:
            self._refuse(mark, loc, f"duplicate key, first written in line {self.marks[loc][0]}", "remove one of them")
        else:
            frame.keep = True
            self.marks.setdefault(loc, mark)

    def _take_value(self, frame: _Frame, event: yaml.NodeEvent, mark: tuple[int, int]) -> None:
        value = _value(event)
        if not self.stack:
            loc: Loc = ()
            self.root = value
        elif isinstance(frame.node, dict):
            key = frame.key or ""
            loc = (*frame.loc, key)
            if frame.keep:
                frame.node[key] = value
            frame.key = None
        else:
            loc = (*frame.loc, len(frame.node))
            frame.node.append(value)
            self.marks.setdefault(loc, mark)
        if len(self.marks) > MAX_VALUES:
            self._stop(mark, f"more than {MAX_VALUES:,} values", "name many inputs by a folder or a glob")
        if problem := _form(event, value):
            self._refuse(mark, loc, *problem)
            self.broken.add(loc)
        self._open(event, loc, mark, value)

    def _open(self, event: yaml.NodeEvent, loc: Loc, mark: tuple[int, int], node: Any = None) -> None:
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self.stack) >= MAX_DEPTH:
                self._stop(mark, f"deeper than {MAX_DEPTH} levels", "a job file needs four")
            self.stack.append(_Frame(_value(event) if node is None else node, loc))

    def _syntax(self, error: Exception) -> Problem:
        """What libyaml says, at the place a person has to look at, with the likeliest remedy."""
        where, what = getattr(error, "problem_mark", None), str(getattr(error, "problem", None) or error)
        context = getattr(error, "context", None) or ""
        opened = next((each for each in ("quoted scalar", "flow sequence", "flow mapping") if each in context), None)
        where = (getattr(error, "context_mark", None) if opened else None) or where
        mark = _mark(where)
        line = "".join(self.places.lines[mark[0] - 1 : mark[0]])
        before, after = line[: mark[1]], line[mark[1] - 1 :].lstrip()
        fix = "line up the keys of a section, write 'key: value', and quote a value that has ':' or '#' in it"
        if "\t" in before or after.startswith("\t"):
            fix = "indent with spaces, not with tabs"
        elif opened:
            fix = "close the quote, or escape what is in it" if opened == "quoted scalar" else "close the bracket"
        elif "alias" in context or "anchor" in context or "cannot start any token" in what:
            fix = "write the value in quotes"
        elif "mapping values" in what:
            fix = "put the key on its own line, or write the value in quotes"
        return self.places.at(mark, "", f"not YAML: {what}{f' {context}' if context else ''}", fix)


def _mark(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _value(event: yaml.NodeEvent) -> Any:
    """An empty dict or list to be filled, a text, or None."""
    if isinstance(event, yaml.ScalarEvent):
        return None if not event.style and event.value in _NULLS else event.value
    return (
        {} if isinstance(event, yaml.MappingStartEvent) else [] if isinstance(event, yaml.SequenceStartEvent) else None
    )


def _form(event: yaml.NodeEvent, value: Any) -> tuple[str, str] | None:
    """What is refused in a node whatever its key: (message, fix)."""
    if isinstance(event, yaml.AliasEvent):
        return f"aliases are not read: *{event.anchor}", "write the value out, or in quotes if it is text"
    if event.anchor:
        return f"anchors are not read: &{event.anchor}", "write the value out where it is used"
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
        return f"tags are not read: {given(event.tag)}", "write the value alone; its key decides the type"
    return ("a NUL character", "remove it") if isinstance(value, str) and "\0" in value else None

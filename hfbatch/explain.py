"""pydantic's errors in, Problems out: one for each key, in words, with what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hfbatch.errors import Problem
from hfbatch.origin import Loc
from hfbatch.spec import JobSpec, Machine

MAX_PROBLEMS = 50  # nobody reads more, and looking for near names costs time for each

Place: TypeAlias = Callable[[Loc, str, str | None], Problem]

_EXAMPLES: Mapping[Loc, str] = {
    ("task",): "task: text-classification",
    ("model",): "model: {id: distilbert/distilbert-base-uncased-finetuned-sst-2-english}",
    ("model", "id"): "id: distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    ("input",): "input: {path: data/reviews/*.parquet}",
    ("input", "path"): "path: data/reviews/*.parquet",
    ("output",): "output: {path: out/reviews}",
    ("output", "path"): "path: out/reviews",
    ("actors", "max"): "max: 8",
}
_KINDS = (  # the start of pydantic's error type, and what a person would have to write
    ("string", "text"),
    ("int", "a whole number"),
    ("float", "a number"),
    ("bool", "true or false"),
    ("list", "a list"),
    ("tuple", "a list"),
    ("set", "a list"),
    ("dict", "a mapping (key: value)"),
    ("model", "a mapping (key: value)"),
    ("none", "null"),
)
_LIMITS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "finite_number": "must be a finite number",
    "int_parsing_size": "is too large",
    "string_pattern_mismatch": "may hold letters, digits, '.', '_' and '-' only, a letter or digit first",  # job names
}


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most like `word`, if one is."""
    folded = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word.lower()[:80], folded, n=1)
    return folded[found[0]] if found else None


def homes(model: type[BaseModel], key: str) -> list[str]:
    """The dotted sections of `model` that declare `key`; "" is its top level."""
    nested = ((name, _model_in(info.annotation)) for name, info in model.model_fields.items())
    found = [name for name, section in nested if section and key in section.model_fields]
    return ([""] if key in model.model_fields else []) + found


def given(value: object) -> str:
    """A value as a message shows it."""
    if value is None:
        return "null"
    for kind, word in ((Mapping, "a mapping"), (list, "a list")):
        if isinstance(value, kind):
            return word
    text = repr(value) if isinstance(value, str) else f"{value!r} ({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:76]}..."


@dataclass(frozen=True)
class Explainer:
    """Puts the errors of one model over one tree into words."""

    model: type[BaseModel]
    tree: Mapping[str, Any]  # what was validated
    place: Place
    prefix: Loc = ()  # where the tree stands in the file: ("params",)
    hints: Mapping[str, str] = field(default_factory=dict)  # key -> the section of another model that declares it

    def problems(self, error: ValidationError, broken: Iterable[Loc] = ()) -> Iterator[Problem]:
        """One Problem for each key; none at or below `broken`, whose problem is already known."""
        groups = self._grouped(error)
        known = set(broken)
        meant = {self._meant(loc) for loc, errors in groups.items() if errors[0]["type"] == "extra_forbidden"}
        for loc, errors in groups.items():
            whole = (*self.prefix, *loc)
            if any(whole[:depth] in known for depth in range(len(whole) + 1)):
                continue
            if errors[0]["type"] == "missing" and loc in meant:
                continue  # the unknown key that stands for it says what to write
            yield self.place(whole, *self._words(loc, errors))

    def _grouped(self, error: ValidationError) -> dict[Loc, list[ErrorDetails]]:
        """Errors by the key they are about. Of a union's branches, those that got deepest say most."""
        groups: dict[Loc, list[ErrorDetails]] = {}
        for details in error.errors(include_url=False):
            loc = self._written(details)
            if loc in groups or len(groups) < 2 * MAX_PROBLEMS:
                groups.setdefault(loc, []).append(details)
        above = {loc[:depth] for loc in groups for depth in range(len(loc))}
        return {loc: errors for loc, errors in groups.items() if loc not in above}

    def _written(self, details: ErrorDetails) -> Loc:
        """The loc of pydantic without the names of union branches, which stand in no file."""
        node: Any = self.tree
        loc: Loc = ()
        for part in details["loc"]:
            if node is details["input"] and isinstance(node, dict | list):
                break
            inside = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
            if inside:
                loc, node = (*loc, part), node[part]
        return (*loc, details["loc"][-1]) if details["type"] == "missing" else loc

    def _words(self, loc: Loc, errors: list[ErrorDetails]) -> tuple[str, str | None]:
        if errors[0]["type"] == "extra_forbidden":
            return self._unknown(loc)
        info = self._field(loc)
        if errors[0]["type"] == "missing":
            about = f" ({info.description})" if info and info.description else ""
            return f"missing{about}", f"write '{_EXAMPLES.get((*self.prefix, *loc), f'{loc[-1]}: ...')}'"
        return _wrong(errors, info)

    def _unknown(self, loc: Loc) -> tuple[str, str | None]:
        message = "unknown parameter" if self.prefix else "unknown key"
        key = str(loc[-1])
        meant = self._meant(loc)
        if home := self._home(key):
            return message, f"it belongs {home}"
        if meant:
            return message, f"write '{meant[-1]}'"
        names = self._section(loc).model_fields
        return message, f"the keys here are {', '.join(names)}" if names else "remove it: there are none"

    def _meant(self, loc: Loc) -> Loc | None:
        """The declared key that an unknown one is most like."""
        name = nearest(str(loc[-1]), self._section(loc).model_fields)
        return (*loc[:-1], name) if name and not self._home(str(loc[-1])) else None

    def _home(self, key: str) -> str | None:
        """Where an unknown key is declared: "under model"."""
        if key in self.hints:
            return self.hints[key]
        for model, file in ((JobSpec, "the job file"), (Machine, "a machine file (--on)")):
            if found := homes(model, key):
                below = f"under {' or '.join(found)}" if all(found) else "at the top level"
                same = model is self.model or (self.prefix and model is JobSpec)
                return below if same else f"in {file}" + (f", {below}" if all(found) else "")
        return None

    def _section(self, loc: Loc) -> type[BaseModel]:
        """The model that declares the key at `loc`."""
        section: type[BaseModel] = self.model
        for part in loc[:-1]:
            info = section.model_fields.get(str(part))
            section = (info and _model_in(info.annotation)) or section
        return section

    def _field(self, loc: Loc) -> FieldInfo | None:
        return self._section(loc).model_fields.get(str(loc[-1])) if loc else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model in a type such as `Literal["auto"] | ActorRange`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _wrong(errors: list[ErrorDetails], info: FieldInfo | None) -> tuple[str, str | None]:
    """A value that is not what its key takes. A broken limit says more than the types of other branches."""
    value = errors[0]["input"]
    choices = [choice for details in errors for choice in _choices(details)]
    expected = list(dict.fromkeys(word for details in errors for word in _expected(details)))
    limit = next((details for details in errors if not _expected(details)), None)
    if limit is not None:
        shown = "" if isinstance(value, dict | list) else f", got {given(value)}"
        return _limit(limit) + shown, f"or write {choices[0]}" if choices and shown else None
    wanted = " or ".join(filter(None, (", ".join(expected[:-1]), expected[-1])))
    return f"expected {wanted}, got {given(value)}", _suggest(value, choices, expected, info)


def _expected(details: ErrorDetails) -> list[str]:
    """What a branch takes, in words; nothing where the type is right and a limit is broken."""
    kind = details["type"]
    if kind in ("literal_error", "enum"):
        return _choices(details)
    if kind in _LIMITS:
        return []
    return [words for start, words in _KINDS if kind.startswith(start)][:1]


def _choices(details: ErrorDetails) -> list[str]:
    expected = str(details.get("ctx", {}).get("expected", ""))
    return re.findall(r"'[^']*'|-?\d+|True|False", expected) if details["type"] in ("literal_error", "enum") else []


def _limit(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    if context.get("min_length") == 1:
        return "must not be empty"
    if details["type"] in _LIMITS:
        return re.sub(r"\.0\b", "", _LIMITS[details["type"]].format(**context))
    return details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _suggest(value: object, choices: list[str], expected: list[str], info: FieldInfo | None) -> str | None:
    """What to write instead, where that can be told from the value."""
    if value is None and info is not None and not info.is_required():
        default = info.get_default(call_default_factory=False)
        shown = f" ({default})" if isinstance(default, str | int | float) and default != "" else ""
        return f"leave the line out for the default{shown}"
    if isinstance(value, list) and "a mapping" in expected[-1]:
        return "write {key: value}"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return f"write {value[0]!r}, without brackets"
    if not isinstance(value, str):
        return f"write it in quotes: '{value}'" if expected == ["text"] and isinstance(value, int | float) else None
    if near := nearest(value, (choice.strip("'") for choice in choices)):
        return f"write '{near}'"
    if "a list" in expected and value:
        return f"write [{value}]"
    bare = value.replace(",", "").replace("_", "")
    if "a whole number" in expected and re.fullmatch(r"\d{1,9}(\.0*)?([eE]\+?\d)?", bare):
        return f"write {float(bare):.0f}" if float(bare).is_integer() else None
    section = _model_in(info.annotation) if info and len(expected) == 1 else None
    if section and (needed := [name for name, each in section.model_fields.items() if each.is_required()]):
        return f"write {{{needed[0]}: {value}}}"
    return None

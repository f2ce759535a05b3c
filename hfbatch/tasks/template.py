"""Prompt templates: "Summarise: {{body}}" and the values of a row to a text. What a value holds is never a place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pyarrow as pa

_PLACE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")


def check_template(template: str | None) -> str | None:
    """`template` itself. ValueError where a place has no end, or no beginning."""
    rest = _PLACE.sub("", template or "")
    if "{{" in rest or "}}" in rest:
        raise ValueError("a {{ or }} without its other half; write {{column}}")
    return template


def places(*templates: str | None) -> list[str]:
    """The columns that `templates` name, each once, in order."""
    return list(dict.fromkeys(name for template in templates for name in _PLACE.findall(template or "")))


def filled(template: str, values: Mapping[str, str]) -> str:
    """`template` with a value in each place."""
    return _PLACE.sub(lambda place: values[place[1]], template)


def as_texts(column: pa.ChunkedArray) -> list[str]:
    """Values of any type as text: numbers and times as Arrow writes them, lists and structs as JSON."""
    if pa.types.is_nested(column.type):
        return [json.dumps(value, ensure_ascii=False, default=str) for value in column.to_pylist()]
    texts: list[str] = column.cast(pa.large_string()).to_pylist()
    return texts


def check_hypothesis(template: str, example: str) -> str:
    """`template` itself. ValueError where a label put in the place of its {} would not show; `example` has a place."""
    try:
        shows = template.format("one") != template.format("other")
    except (LookupError, ValueError, AttributeError):  # other places than {}, or braces that make none
        shows = False
    if not shows:
        raise ValueError(f"it has no place for the label; write {{}} once, as in {example!r}")
    return template

"""What all of a job or machine file has: no key that is not declared, and a place that problems can point at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from hfbatch.errors import Problem

_MARK = re.compile(r":(\d+):(\d+)$")

Loc: TypeAlias = tuple[str | int, ...]  # ("input", "path", 0): the way to a key


class Spec(BaseModel):
    """Frozen data; a key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Origin:
    """Where a spec was written: the file's name, its lines, and line and column of every key."""

    name: str = ""
    lines: tuple[str, ...] = ()
    marks: Mapping[Loc, tuple[int, int]] = field(default_factory=dict)  # 1-based (line, column)

    def problem(self, loc: Loc, message: str, fix: str | None = None) -> Problem:
        """A Problem at `loc`, or at the nearest key above it that is written in the file."""
        key = ".".join(str(part) for part in loc)
        for depth in range(len(loc), -1, -1):
            mark = self.marks.get(loc[:depth])
            if mark is not None:
                return self.at(mark, key, message, fix)
        return Problem(place=self.name or key or "job", key=key, message=message, fix=fix)

    def at(self, mark: tuple[int, int], key: str, message: str, fix: str | None = None) -> Problem:
        """A Problem at a line and column of the file, with the line and a caret as excerpt."""
        line, column = mark
        excerpt = None
        if 1 <= line <= len(self.lines):
            gutter = f" {line} | "
            text = self.lines[line - 1].expandtabs(1)[:160]
            excerpt = f"{gutter}{text}\n{' ' * (len(gutter) - 2)}| {' ' * (column - 1)}^"
        return Problem(f"{self.name}:{line}:{column}", key, message, fix, excerpt)


def mark_of(problem: Problem) -> tuple[int, int]:
    """Line and column of a problem, to sort by; those outside a file come first."""
    found = _MARK.search(problem.place)
    return (int(found[1]), int(found[2])) if found else (0, 0)

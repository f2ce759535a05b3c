"""Lines for people and JSON for programs, on stdout: folded to a terminal's width, never folded in a pipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.cells import cell_len, set_cell_size

GAP = 2  # spaces between columns
_LABEL = re.compile(r".* {2,}|\s*")  # up to where the last column of a line starts


def out(text: str, end: str = "\n") -> None:
    """Print to stdout. A reader that has gone away (`| head -1`) ends the command as SIGPIPE would."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        raise typer.Exit(128 + signal.SIGPIPE) from None


def out_json(content: Any) -> None:
    """Print one JSON document."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    out(json.dumps(content, indent=2, ensure_ascii=not unicode, default=str))


def width() -> int | None:
    """Columns of the terminal; None in a pipe or a file, where nothing is folded or cut."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def bold(text: str) -> str:
    """A heading, bold where the terminal can."""
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[1m{text}\033[0m"


def fold(text: str) -> str:
    """Every line folded at the terminal's width, what follows indented to where the line's last column starts."""
    if width() is None:
        return text
    lines: list[str] = []
    for line in text.splitlines():
        start = len(line) - len(line.lstrip())
        if lines and lines[-1].strip() and line.strip() and start == _last_column(lines[-1]):
            lines[-1] += " " + line.strip()  # it was folded already, at another width
        else:
            lines.append(line)
    return "\n".join("\n".join(_folded(line, _last_column(line))) for line in lines)


def facts(rows: Iterable[tuple[str, str]], indent: int = 0) -> str:
    """One `name  value` a line; further lines of a value stand below its first."""
    rows = list(rows)
    widest = max((cell_len(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        label = " " * indent + set_cell_size(name, widest) + " " * GAP
        for number, line in enumerate(value.splitlines() or [""]):
            start = " " * len(label) if number else label
            lines += _folded(start + line, cell_len(label))
    return "\n".join(lines)


def table(names: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[str] = ()) -> str:
    """A line a row; columns in `right` are aligned right. Where a line is too long the last column folds, or, when
    there is no room even for that, every row becomes a block of facts.
    """
    widths = [max(cell_len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    before, limit = sum(widths[:-1]) + GAP * (len(names) - 1), width()
    if limit is not None and before + min(widths[-1], 24) > limit:
        return "\n\n".join(facts(zip(names, row, strict=True)) for row in rows)
    aligned = [name in right for name in names]
    lines: list[str] = []
    for row in [names, *rows]:
        cells = (_cell(*each) for each in zip(row, widths, aligned, strict=True))
        lines += _folded((" " * GAP).join(cells), before)
    return "\n".join(lines)


def one_line(value: Any) -> str:
    """Any value as text of one line that cannot move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else " " for sign in str(value))


def cut(text: str, cells: int) -> str:
    """`text`, shortened to so many columns of a terminal."""
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 3).rstrip() + "..."


def _cell(text: str, cells: int, right: bool) -> str:
    return " " * (cells - cell_len(text)) + text if right else set_cell_size(text, cells)


def _last_column(line: str) -> int:
    found = _LABEL.match(line)
    return len(found[0]) if found else 0


def _folded(line: str, indent: int) -> list[str]:
    limit, line = width(), line.rstrip()
    if limit is None or cell_len(line) <= limit:
        return [line]
    head, rest = line[:indent], line[indent:]
    room = max(limit - indent, 16)
    folded = textwrap.wrap(rest, room, break_long_words=False, break_on_hyphens=False) or [""]
    return [(head if number == 0 else " " * indent) + part for number, part in enumerate(folded)]

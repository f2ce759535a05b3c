"""The text of `input.where` in, Python's syntax tree of it out; or one WhereError that says what to write.

Nothing is run. A column whose name is no Python name is written in backquotes, as in SQL.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence

MAX_CHARACTERS = 10_000
MAX_DEPTH = 100
ALLOWED = (
    "comparisons, and / or / not, in [..], not in [..], is None, is not None, + - * / %, parentheses, 'text', "
    "numbers, True, False, None, len(column), column.startswith('x'), column.endswith('x'), 'x' in column"
)
_QUOTED = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]*)`""")
PLACEHOLDER = re.compile(r"_backquoted_(\d+)_")
_SLIPS = (  # what people write from other languages
    (r"&&", "write and"),
    (r"\|\|", "write or"),
    (r"<>", "write !="),
    (r"(?<![=!<>])=(?!=)", "write == to compare"),
    (r"\b(AND|OR|NOT|IN|IS)\b", "write and, or, not, in, is in small letters"),
    (r"(?i)\b(between|like)\b", "write low <= column <= high, or column.startswith('x')"),
    (r"!(?!=)", "write not"),
)


class WhereError(ValueError):
    """`input.where` cannot be used: `message` says what is wrong, `fix` what to write instead."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message, fix)
        self.message, self.fix = message, fix

    def __str__(self) -> str:
        return self.message


def is_column(node: ast.AST) -> bool:
    """Whether `node` of a parsed tree is a column's name, and not that of a function."""
    return isinstance(node, ast.Name) and not getattr(node, "called", False)


def column_name(name: str, names: Sequence[str]) -> str:
    """The column that a name in the tree stands for."""
    match = PLACEHOLDER.fullmatch(name)
    return names[int(match[1])] if match else name


def parse(text: str) -> tuple[ast.expr, list[str]]:
    """The tree, and the backquoted column names that stand in it as _backquoted_0_, _backquoted_1_, ..."""
    if len(text) > MAX_CHARACTERS:
        raise WhereError(f"the expression has {len(text):,} characters; at most {MAX_CHARACTERS:,}", "filter earlier")
    names: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        if match[1] is not None:
            return match[1]
        names.append(match[2])
        return f"_backquoted_{len(names) - 1}_"

    if not text.strip():
        raise WhereError("the expression is empty", "leave out input.where, or write such as: stars >= 3")
    source = _QUOTED.sub(replaced, text.strip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on literals and escapes
            tree = ast.parse(f"({source}\n)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        bare = _QUOTED.sub("", text)
        fix = next((fix for slip, fix in _SLIPS if re.search(slip, bare)), f"allowed: {ALLOWED}")
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise WhereError(f"{short(text)!r} is not an expression ({reason})", fix) from error
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise WhereError(f"the expression is nested over {MAX_DEPTH} deep", "join terms by and / or; use in [..]")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.func.called = True  # type: ignore[attr-defined]
    return tree, names


def short(text: str) -> str:
    """`text` as it fits into a message."""
    return text if len(text) <= 120 else text[:117] + "..."

"""How a command ends: every failure becomes an exit code, words on stderr and, with --json, a document on stdout."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any

import typer

from hfbatch.cli.text import out_json
from hfbatch.errors import HfbatchError, Interrupted, SpecError, StorageError, SystemicError

# What typer raises for a wrong command line: of click, or of the copy of click that newer versions carry.
UsageError: Any = typer.BadParameter.__mro__[1]


def fail(error: BaseException, as_json: bool) -> int:
    """Tell what went wrong; the exit code."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        error = Interrupted(signal.SIGINT)
    if as_json:
        out_json(as_data(error))
    tell(error)
    return exit_code(error)


def tell(error: BaseException) -> None:
    """The failure on stderr: an expected one in its own words, any other with its traceback and a line below it."""
    if isinstance(error, HfbatchError):
        print(error, file=sys.stderr)
    elif isinstance(error, UsageError):
        error.show(file=sys.stderr)
    else:
        traceback.print_exception(error, file=sys.stderr)
        print(_unexpected(error), file=sys.stderr)


def as_data(error: BaseException) -> dict[str, Any]:
    """The failure as plain data."""
    problems = [vars(problem) for problem in error.problems] if isinstance(error, SpecError) else []
    if isinstance(error, UsageError):
        message = error.format_message()
    else:
        message = str(error) if isinstance(error, HfbatchError) else _unexpected(error)
    content = {"type": type(error).__name__, "message": message, "problems": problems}
    return {"error": content, "exit_code": exit_code(error)}


def exit_code(error: BaseException) -> int:
    """As hfbatch.errors has them; 74 where the system could not read or write, 70 for what nobody foresaw."""
    if isinstance(error, HfbatchError):
        return error.exit_code
    if isinstance(error, UsageError):
        return SpecError.exit_code
    return StorageError.exit_code if isinstance(error, OSError) else SystemicError.exit_code


def _unexpected(error: BaseException) -> str:
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        return f"hfbatch: reading or writing failed: {what}"
    return f"hfbatch: this is a bug in hfbatch: {what}; please report it with the lines above"

"""How a command ends: every failure becomes an exit code, words on stderr and, with --json, a document on stdout."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from typing import Any

import typer

from hfbatch import errors, logs
from hfbatch.access import redact
from hfbatch.cli.text import out_json
from hfbatch.errors import HfbatchError, Interrupted, SpecError

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
    if logs.wanted():
        told = as_data(error)
        trace = "" if isinstance(error, HfbatchError | UsageError) else "".join(traceback.format_exception(error))
        logs.event("", "failed", logging.ERROR, **told["error"], exit_code=told["exit_code"], trace=trace)
    elif isinstance(error, HfbatchError):
        print(error, file=sys.stderr)
    elif isinstance(error, UsageError):
        error.show(file=sys.stderr)
    else:
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        print(_unexpected(error), file=sys.stderr)


def say(line: str) -> None:
    """Words for people, on stderr."""
    if logs.wanted():
        logs.event("", "said", message=line)
    else:
        print(line, file=sys.stderr, flush=True)


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
    """As hfbatch.errors has them, and 2 for a wrong command line."""
    return SpecError.exit_code if isinstance(error, UsageError) else errors.exit_code(error)


def _unexpected(error: BaseException) -> str:
    what = redact(f"{type(error).__name__}: {error}")
    if isinstance(error, OSError):
        return f"hfbatch: reading or writing failed: {what}"
    return f"hfbatch: this is a bug in hfbatch: {what}; please report it with the lines above"

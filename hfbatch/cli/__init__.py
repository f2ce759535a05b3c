"""The command line. The only place that prints or exits: data goes to stdout, progress and errors to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from hfbatch import logs
from hfbatch.cli import ending, jobs, outputs
from hfbatch.cli.root import app

# isort: split
from hfbatch.cli import cluster, look, schedule  # `--help` lists the commands in the order of these imports

__all__ = ["app", "cluster", "jobs", "look", "main", "outputs", "schedule"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `hfbatch` command. Ends the process with the exit code of what happened."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with logs.on_stderr():
        code = _carry_out(arguments)
    sys.exit(code)


def _carry_out(arguments: list[str]) -> int:
    """The exit code of the command, whose end has been told."""
    as_json = "--json" in arguments
    try:
        try:
            code = app(arguments, prog_name="hfbatch", standalone_mode=False) or 0
            if code == 130:  # typer's for Ctrl-C, said without a word
                code = ending.fail(KeyboardInterrupt(), as_json)
        except (Exception, KeyboardInterrupt) as error:
            code = ending.fail(error, as_json)
    except typer.Exit as ended:  # nobody reads what `fail` prints
        code = ended.exit_code
    return int(code)

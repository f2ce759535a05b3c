"""The `hfbatch` app, the arguments and options that its commands share, and the two files they read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfbatch import __version__
from hfbatch.cli.text import out
from hfbatch.errors import Problem, SpecError
from hfbatch.load import load_job, load_machine, split_overrides
from hfbatch.spec import JobSpec, Machine


def lines(title: str, *lines: str) -> str:
    """The end of a help text; typer folds it where the mark of click's documentation does not say to keep the lines."""
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)])


START = lines(
    "Start here",
    "hfbatch tasks                                    what there is",
    "hfbatch init text-classification -o job.yaml     a commented job file",
    "hfbatch check job.yaml                           is it written right?",
    "hfbatch plan job.yaml                            what would a run do?",
    "hfbatch run job.yaml                             do it; again: resume it",
)
EXIT_CODES = lines(
    "Exit codes",
    "0  done                                  70  a bug, or nothing works at all",
    "2  wrong command or job file             74  reading or writing failed",
    "3  more failed rows than allowed         75  another run is at work on it",
    "4  incomplete: run again                 77  credentials or trust refused",
    "5  the output was made by another spec   78  the store is not safe",
    "6  the output is damaged: repair it      130, 143  interrupted: run again",
    "9  the gates are not passed",
)

app = typer.Typer(
    name="hfbatch",
    help="Batch inference for Hugging Face models: declared in YAML, executed by Ray, committed exactly once.",
    epilog=f"{START}\n\n{EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the same on a terminal and in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="the job file: WHAT is computed", show_default=False)]
On = Annotated[
    Path | None, typer.Option("--on", metavar="MACHINE", help="the machine file: ON WHAT (default: this machine)")
]
Var = Annotated[
    list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="for ${NAME} in the job file; repeatable")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="sets a key of either file; repeatable")
]
Head = Annotated[
    int, typer.Option(metavar="N", min=0, show_default=False, help="print the first N rows of the output too")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
NewGeneration = Annotated[
    bool, typer.Option("--new-generation", help="replace an output that another spec made, once the new one is whole")
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="allow what model.trust_remote_code asks for: you have read it")
]
Anyway = Annotated[
    bool, typer.Option("--publish-anyway", help="publish though gates are not passed; the report will say so")
]
Wait = Annotated[bool, typer.Option("--wait", help="where another run is at work on the output, wait for its end")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="an output folder, any fsspec URL", show_default=False)]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True)] = False,
) -> None:
    if version:
        out(f"hfbatch {__version__}")
        raise typer.Exit


def read_files(job: Path, on: Path | None, var: list[str] | None, set_: list[str] | None) -> tuple[JobSpec, Machine]:
    """Both files, with --var and --set applied; the problems of everything in one error."""
    variables, problems = dict[str, str](), list[Problem]()
    for pair in var or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            problems.append(Problem(f"--var {pair}", "", "is not NAME=VALUE", "write --var day=2026-11-20"))
        else:
            variables[name] = value
    for_job, for_machine = _split(set_, problems)
    spec = None
    try:
        spec = load_job(job, vars=variables, overrides=for_job)
    except SpecError as error:
        problems.extend(error.problems)
    machine = _machine(on, for_machine, problems)
    if spec is None or machine is None or problems:
        raise SpecError(problems)
    return spec, machine


def read_machine(on: Path | None, set_: list[str] | None) -> tuple[dict[str, str], Machine]:
    """What --set says of the job, and the machine file with the rest applied; all problems in one error."""
    problems = list[Problem]()
    for_job, for_machine = _split(set_, problems)
    machine = _machine(on, for_machine, problems)
    if machine is None or problems:
        raise SpecError(problems)
    return for_job, machine


def _split(set_: list[str] | None, problems: list[Problem]) -> tuple[dict[str, str], dict[str, str]]:
    try:
        return split_overrides(set_ or [])
    except SpecError as error:
        problems.extend(error.problems)
        return {}, {}


def _machine(on: Path | None, overrides: dict[str, str], problems: list[Problem]) -> Machine | None:
    try:
        return load_machine(on, overrides=overrides)
    except SpecError as error:
        problems.extend(error.problems)
        return None

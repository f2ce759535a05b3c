"""The command line. The only place that prints or exits: data goes to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from hfbatch import __version__, tasks
from hfbatch.cli import show
from hfbatch.errors import HfbatchError, Interrupted, Problem, SpecError
from hfbatch.load import load_job, load_machine, split_overrides
from hfbatch.spec import JobSpec, Machine

app = typer.Typer(
    name="hfbatch",
    help="Batch inference for Hugging Face models: declared in YAML, executed by Ray, committed exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[Path, typer.Argument(help="the job file: WHAT is computed", show_default=False)]
On = Annotated[Path | None, typer.Option("--on", help="a machine file: ON WHAT it runs (default: this machine)")]
Var = Annotated[list[str] | None, typer.Option("--var", help="name=value for ${name} in the job file; repeatable")]
Set = Annotated[list[str] | None, typer.Option("--set", help="output.path=... sets a key of either file; repeatable")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
NewGeneration = Annotated[
    bool, typer.Option("--new-generation", help="replace an output that another spec made, once the new one is whole")
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="allow what model.trust_remote_code asks for: you have read it")
]
Output = Annotated[str, typer.Argument(help="an output folder, any fsspec URL", show_default=False)]


@app.command()
def run(
    job: JobFile,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    new_generation: NewGeneration = False,
    trust_remote_code: Trust = False,
    head: Annotated[int, typer.Option(help="print the first N rows of the output too")] = 0,
    json_: Json = False,
) -> None:
    """Run a job, or what is left of it.

    Examples:
        hfbatch run jobs/quickstart.yaml

        hfbatch run job.yaml --on configs/one-gpu.yaml --var day=2026-11-20

        hfbatch run job.yaml --set input.limit=100 --set output.path=out/try
    """
    from hfbatch import pipeline
    from hfbatch.cli.live import watching
    from hfbatch.planner import make_plan

    spec, machine = _load(job, on, var, set_)
    plan = make_plan(spec, machine, new_generation=new_generation, trust_remote_code=trust_remote_code)
    with watching(plan) as watch:
        report = pipeline.run(plan, watch=watch)
    if json_:
        _print_json(report.model_dump())
    else:
        show.report(report)
    if head:
        show.head(plan, head, as_json=json_)


@app.command()
def plan(
    job: JobFile,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    new_generation: NewGeneration = False,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Show everything that a run would do, and run nothing: commit, files, columns, shards, what is done.

    Examples:
        hfbatch plan jobs/quickstart.yaml

        hfbatch plan job.yaml --json | jq .shards
    """
    from hfbatch.planner import check_no_conflict, make_plan

    spec, machine = _load(job, on, var, set_)
    made = make_plan(spec, machine, new_generation=new_generation, trust_remote_code=trust_remote_code)
    if json_:
        _print_json(show.plan_as_dict(made))
    else:
        show.plan(made)
    check_no_conflict(made)


@app.command()
def check(job: JobFile, on: On = None, var: Var = None, set_: Set = None, json_: Json = False) -> None:
    """Check the files alone, in a moment: no model, no data, no network.

    Examples:
        hfbatch check jobs/quickstart.yaml

        hfbatch check job.yaml --on configs/one-gpu.yaml
    """
    spec, machine = _load(job, on, var, set_)
    if json_:
        _print_json({"job": spec.model_dump(mode="json"), "machine": machine.model_dump(mode="json")})
    else:
        print(f"{job}: ok: {spec.task} with {spec.model.id} over {', '.join(spec.input.paths)} into {spec.output.path}")


@app.command("tasks")
def tasks_(
    name: Annotated[str | None, typer.Argument(help="a task: show what it reads, writes and takes")] = None,
    json_: Json = False,
) -> None:
    """List the tasks, or show one with its parameters.

    Examples:
        hfbatch tasks

        hfbatch tasks text-classification
    """
    found = tasks.all() if name is None else (_find_task(name),)
    if json_:
        _print_json([show.task_as_dict(task) for task in found])
    elif name is None:
        show.tasks(found)
    else:
        show.task(found[0])


@app.command()
def schema() -> None:
    """Print the JSON schema of job and machine files, for an editor that completes and checks.

    Examples:
        hfbatch schema > hfbatch.schema.json

    then, as the first line of a job file:

        # yaml-language-server: $schema=hfbatch.schema.json
    """
    from hfbatch.schema import schema as made

    _print_json(made())


@app.command()
def init(
    task: Annotated[str, typer.Argument(help="a task, or one of its aliases", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a new file (default: stdout)")] = None,
) -> None:
    """Write a commented job file for a task.

    Examples:
        hfbatch init text-classification

        hfbatch init feature-extraction -o jobs/embed.yaml
    """
    from hfbatch.cli.template import job_file

    text = job_file(_find_task(task))
    if output is None:
        print(text, end="")
    elif output.exists():
        raise SpecError([Problem("--output", str(output), "exists and is not overwritten", "name another file")])
    else:
        output.write_text(text)
        print(f"{output}: written; edit model.id, input.path and output.path, then: hfbatch check {output}")


@app.command()
def status(output: Output, json_: Json = False) -> None:
    """Show how far an output is, and the runs that made it.

    Examples:
        hfbatch status out/quickstart

        hfbatch status s3://bucket/labels --json
    """
    from hfbatch.status import read_status

    found = read_status(output)
    if json_:
        _print_json(found)
    else:
        show.status(found)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True)] = False,
) -> None:
    if version:
        print(f"hfbatch {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `hfbatch` command. Ends the process with the exit code of what happened."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(arguments, standalone_mode=True)
    except HfbatchError as error:
        if "--json" in arguments:
            _print_json({"error": _error_as_dict(error), "exit_code": error.exit_code})
        Console(stderr=True, highlight=False, soft_wrap=True).print(str(error), markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(Interrupted(2).exit_code)
    sys.exit(0)


def _load(job: Path, on: Path | None, var: list[str] | None, set_: list[str] | None) -> tuple[JobSpec, Machine]:
    """Both files, with --var and --set applied; the problems of both in one error."""
    for_job, for_machine = split_overrides(set_ or [])
    variables, problems = dict[str, str](), list[Problem]()
    for pair in var or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            problems.append(Problem(f"--var {pair}", "", "is not name=value", "write --var day=2026-11-20"))
        variables[name] = value
    spec = machine = None
    try:
        spec = load_job(job, vars=variables, overrides=for_job)
    except SpecError as error:
        problems.extend(error.problems)
    try:
        machine = load_machine(on, overrides=for_machine)
    except SpecError as error:
        problems.extend(error.problems)
    if spec is None or machine is None or problems:
        raise SpecError(problems)
    return spec, machine


def _find_task(name: str) -> type[tasks.Task]:
    try:
        return tasks.find(name)
    except tasks.UnknownTask as error:
        fix = f"write '{error.nearest}'" if error.nearest else "`hfbatch tasks` lists them"
        raise SpecError([Problem("task", "task", f"no task '{name}'", fix)]) from None


def _error_as_dict(error: HfbatchError) -> dict[str, Any]:
    problems = [vars(problem) for problem in error.problems] if isinstance(error, SpecError) else []
    return {"type": type(error).__name__, "message": str(error), "problems": problems}


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False, default=str))

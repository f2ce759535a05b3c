"""The command line. The only place that prints or exits: data goes to stdout, progress and errors to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hfbatch import __version__, tasks
from hfbatch.cli import ending, show
from hfbatch.cli.text import out, out_json
from hfbatch.errors import Conflict, Problem, SpecError
from hfbatch.load import load_job, load_machine, split_overrides
from hfbatch.spec import JobSpec, Machine


def _lines(title: str, *lines: str) -> str:
    """The end of a help text; typer folds it where the mark of click's documentation does not say to keep the lines."""
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)])


START = _lines(
    "Start here",
    "hfbatch tasks                                    what there is",
    "hfbatch init text-classification -o job.yaml     a commented job file",
    "hfbatch check job.yaml                           is it written right?",
    "hfbatch plan job.yaml                            what would a run do?",
    "hfbatch run job.yaml                             do it; again: resume it",
)
EXIT_CODES = _lines(
    "Exit codes",
    "0  done                                  70  a bug, or nothing works at all",
    "2  wrong command or job file             74  reading or writing failed",
    "3  more failed rows than allowed         77  credentials or trust refused",
    "4  incomplete: run again                 78  the store is not safe",
    "5  the output was made by another spec   130, 143  interrupted: run again",
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
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="an output folder, any fsspec URL", show_default=False)]


@app.command(
    epilog=_lines(
        "Examples",
        "hfbatch run jobs/quickstart.yaml",
        "hfbatch run job.yaml --on configs/one-gpu.yaml --var day=2026-11-20",
        "hfbatch run job.yaml --set input.limit=100 --set output.path=out/try",
    )
)
def run(
    job: JobFile,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    new_generation: NewGeneration = False,
    trust_remote_code: Trust = False,
    head: Head = 0,
    json_: Json = False,
) -> None:
    """Run a job, or what is left of it."""
    from hfbatch import pipeline
    from hfbatch.cli import head as rows
    from hfbatch.cli.live import watching
    from hfbatch.planner import make_plan

    spec, machine = _load(job, on, var, set_)
    plan = make_plan(spec, machine, new_generation=new_generation, trust_remote_code=trust_remote_code)
    with watching(plan) as watch, redirect_stdout(sys.stderr):  # a library's chatter is not our data
        report = pipeline.run(plan, watch=watch)
    first = rows.read_head(plan, head) if head else None
    if json_:
        out_json(report.model_dump() | ({} if first is None else {"head": rows.as_data(first)}))
        return
    show.report(report)
    if first is not None:
        rows.show(first)


@app.command(
    epilog=_lines("Examples", "hfbatch plan jobs/quickstart.yaml", "hfbatch plan job.yaml --json | jq .shards")
)
def plan(
    job: JobFile,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    new_generation: NewGeneration = False,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Show all that a run would do, and run nothing."""
    from hfbatch.planner import make_plan

    spec, machine = _load(job, on, var, set_)
    made = make_plan(spec, machine, new_generation=new_generation, trust_remote_code=trust_remote_code)
    conflict = None if made.conflict is None else Conflict(made.conflict)
    if json_:
        out_json(show.plan_as_data(made) | (ending.as_data(conflict) if conflict else {}))
    else:
        show.plan(made)
    if conflict:
        ending.tell(conflict)
        raise typer.Exit(conflict.exit_code)


@app.command(
    epilog=_lines("Examples", "hfbatch check jobs/quickstart.yaml", "hfbatch check job.yaml --on configs/one-gpu.yaml")
)
def check(job: JobFile, on: On = None, var: Var = None, set_: Set = None, json_: Json = False) -> None:
    """Check the files alone, in a moment: no model, no data, no network."""
    spec, machine = _load(job, on, var, set_)
    if json_:
        out_json({"job": spec.model_dump(mode="json"), "machine": machine.model_dump(mode="json")})
    else:
        out(f"{job}: ok: {spec.task} with {spec.model.id} over {', '.join(spec.input.paths)} into {spec.output.path}")


@app.command("tasks", epilog=_lines("Examples", "hfbatch tasks", "hfbatch tasks text-classification"))
def tasks_(
    name: Annotated[str | None, typer.Argument(metavar="TASK", help="show what it reads, writes and takes")] = None,
    json_: Json = False,
) -> None:
    """List the tasks, or show one with its parameters."""
    found = tasks.all() if name is None else (_find_task(name),)
    if json_:
        out_json([show.task_as_data(task) for task in found])
    elif name is None:
        show.tasks(found)
    else:
        show.task(found[0])


@app.command(
    epilog=_lines("Examples", "hfbatch init text-classification", "hfbatch init feature-extraction -o jobs/embed.yaml")
)
def init(
    task: Annotated[str, typer.Argument(metavar="TASK", help="a task, or one of its aliases", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="a new file (default: stdout)")
    ] = None,
    json_: Json = False,
) -> None:
    """Write a commented job file for a task."""
    from hfbatch.cli.template import job_file

    text = job_file(_find_task(task), None if output is None else str(output))
    if output is not None:
        _write_new(output, text)
    if json_:
        out_json({"file": None if output is None else str(output), "text": text})
    elif output is None:
        out(text.removesuffix("\n"))
    else:
        out(f"{output}: written; edit model.id, input.path and output.path, then: hfbatch check {output}")


@app.command(
    epilog=_lines("Examples", "hfbatch schema > hfbatch.schema.json")
    + "\n\n"
    + _lines("And as the first line of a job file", "# yaml-language-server: $schema=hfbatch.schema.json")
)
def schema(json_: Annotated[bool, typer.Option("--json", help="what it prints anyway")] = False) -> None:
    """Print the JSON schema of job and machine files."""
    from hfbatch.schema import schema as made

    out_json(made())


@app.command(epilog=_lines("Examples", "hfbatch status out/quickstart", "hfbatch status s3://bucket/labels --json"))
def status(output: Output, json_: Json = False) -> None:
    """Show how far an output is, and the runs that made it."""
    from hfbatch.status import read_status

    found = read_status(output)
    if json_:
        out_json(found)
    else:
        show.status(found)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True)] = False,
) -> None:
    if version:
        out(f"hfbatch {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `hfbatch` command. Ends the process with the exit code of what happened."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
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
    sys.exit(code)


def _load(job: Path, on: Path | None, var: list[str] | None, set_: list[str] | None) -> tuple[JobSpec, Machine]:
    """Both files, with --var and --set applied; the problems of everything in one error."""
    variables, problems = dict[str, str](), list[Problem]()
    for pair in var or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            problems.append(Problem(f"--var {pair}", "", "is not NAME=VALUE", "write --var day=2026-11-20"))
        else:
            variables[name] = value
    for_job, for_machine = dict[str, str](), dict[str, str]()
    spec = machine = None
    try:
        for_job, for_machine = split_overrides(set_ or [])
    except SpecError as error:
        problems.extend(error.problems)
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
        raise SpecError([Problem("TASK", "", f"no task '{name}'", fix)]) from None


def _write_new(file: Path, text: str) -> None:
    """A file that was not there, with the folders it stands in."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        where = "exists and is not overwritten" if file.exists() else f"{error.filename} is not a folder"
        raise SpecError([Problem("--output", "", f"{file}: {where}", "name another file")]) from None

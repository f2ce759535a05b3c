"""The commands on jobs: run, plan, check; and those that help to write one: tasks, init, schema."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfbatch import tasks
from hfbatch.access import redact, redact_all
from hfbatch.cli import ending, show
from hfbatch.cli.root import (
    Anyway,
    Head,
    JobFile,
    Json,
    NewGeneration,
    On,
    Set,
    Trust,
    Var,
    Wait,
    app,
    lines,
    read_files,
)
from hfbatch.cli.text import out, out_json
from hfbatch.errors import Conflict, Problem, SpecError
from hfbatch.trust import check_trust

if TYPE_CHECKING:
    from hfbatch.forecast import Forecast
    from hfbatch.planner import Plan
    from hfbatch.report import RunReport
    from hfbatch.sample import Look


@app.command(
    epilog=lines(
        "Examples",
        "hfbatch run jobs/quickstart.yaml",
        "hfbatch run job.yaml --on configs/one-gpu.yaml --var day=2026-11-20",
        "hfbatch run job.yaml --set input.limit=100 --set output.path=out/try",
        "hfbatch run job.yaml --wait",
        "HFBATCH_LOG=json hfbatch run job.yaml   # stderr as JSON lines",
    )
)
def run(
    job: JobFile,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    new_generation: NewGeneration = False,
    trust_remote_code: Trust = False,
    publish_anyway: Anyway = False,
    wait: Wait = False,
    head: Head = 0,
    json_: Json = False,
) -> None:
    """Run a job, or what is left of it."""
    from hfbatch.cli import head as rows
    from hfbatch.planner import make_plan
    from hfbatch.startup import early_start, uncollected
    from hfbatch.turn import run_in_turn

    spec, machine = read_files(job, on, var, set_)

    def make() -> Plan:
        with uncollected():
            made = make_plan(
                spec, machine, new_generation=new_generation, trust_remote_code=trust_remote_code, begin=begin
            )
            return replace(made, publish_anyway=publish_anyway)

    with early_start(machine) as begin:
        plan, report = run_in_turn(make, watched_run, ending.say if wait else None)
    first = rows.read_head(plan, head) if head else None
    if json_:
        out_json(report.model_dump() | ({} if first is None else {"head": rows.as_data(first)}))
        return
    show.report(report)
    if first is not None:
        rows.show(first, plan.job.steps)


def watched_run(plan: Plan) -> RunReport:
    """Carry the plan out, with progress on stderr."""
    from hfbatch import pipeline
    from hfbatch.cli.live import watching

    with watching(plan) as watch, redirect_stdout(sys.stderr):  # a library's chatter is not our data
        return pipeline.run(plan, watch=watch)


@app.command(
    epilog=lines(
        "Examples",
        "hfbatch plan jobs/quickstart.yaml",
        "hfbatch plan job.yaml --sample 2000",
        "hfbatch plan job.yaml --json | jq .shards",
    )
)
def plan(
    job: JobFile,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    new_generation: NewGeneration = False,
    trust_remote_code: Trust = False,
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="read N rows: tokens, padding, duplicates, time, cost")
    ] = None,
    no_time: Annotated[bool, typer.Option("--no-time", help="with --sample: load no model to time it")] = False,
    json_: Json = False,
) -> None:
    """Show all that a run would do, and run nothing."""
    from hfbatch.cli import ahead
    from hfbatch.planner import make_plan
    from hfbatch.startup import early_start

    spec, machine = read_files(job, on, var, set_)
    with early_start(machine) as begin:
        made = make_plan(
            spec,
            machine,
            new_generation=new_generation,
            trust_remote_code=trust_remote_code,
            begin=begin if sample and not no_time else None,
        )
        conflict = None if made.conflict is None else Conflict(made.conflict)
        looked = _look_ahead(made, sample, not no_time) if sample and not conflict else None
    if json_:
        more = ahead.ahead_as_data(*looked) if looked else {}
        out_json(show.plan_as_data(made) | more | (ending.as_data(conflict) if conflict else {}))
    else:
        show.plan(made)
        if looked:
            ahead.ahead(*looked, made.machine.cost_per_hour)
    if conflict:
        ending.tell(conflict)
        raise typer.Exit(conflict.exit_code)


def _look_ahead(plan: Plan, rows: int, timed: bool) -> tuple[Look, Forecast | None]:
    from hfbatch.forecast import look_ahead

    with redirect_stdout(sys.stderr):  # a library's chatter is not our data
        return look_ahead(plan, rows, timed=timed)


@app.command(
    epilog=lines("Examples", "hfbatch check jobs/quickstart.yaml", "hfbatch check job.yaml --on configs/one-gpu.yaml")
)
def check(job: JobFile, on: On = None, var: Var = None, set_: Set = None, json_: Json = False) -> None:
    """Check the files alone, in a moment: no model, data or network."""
    spec, machine = read_files(job, on, var, set_)
    check_trust(spec, allowed=True)  # consent is asked of who runs it
    if json_:  # without `vars`, whose values stand where they are used
        written = redact_all(spec.model_dump(mode="json", exclude={"vars"}))
        out_json({"job": written, "machine": machine.model_dump(mode="json")})
    else:
        paths = redact(", ".join(spec.input.paths))
        done = ", then ".join(f"{step.task} with {step.model.id}" for step in spec.each)
        out(f"{job}: ok: {done} over {paths} into {spec.output.path}")


@app.command("tasks", epilog=lines("Examples", "hfbatch tasks", "hfbatch tasks text-classification"))
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
        show.task(found[0], name)


@app.command(
    epilog=lines("Examples", "hfbatch init text-classification", "hfbatch init feature-extraction -o jobs/embed.yaml")
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

    text = job_file(_find_task(task), None if output is None else str(output), task)
    if output is not None:
        _write_new(output, text)
    if json_:
        out_json({"file": None if output is None else str(output), "text": text})
    elif output is None:
        out(text.removesuffix("\n"))
    else:
        out(f"{output}: written; edit model.id, input.path and output.path, then: hfbatch check {output}")


@app.command(
    epilog=lines("Examples", "hfbatch schema > hfbatch.schema.json")
    + "\n\n"
    + lines("And as the first line of a job file", "# yaml-language-server: $schema=hfbatch.schema.json")
)
def schema(json_: Annotated[bool, typer.Option("--json", help="what it prints anyway")] = False) -> None:
    """Print the JSON schema of job and machine files."""
    from hfbatch.schema import schema as made

    out_json(made())


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

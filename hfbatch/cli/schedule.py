"""The command for schedulers: it writes what cron, Kubernetes or Airflow take, and installs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from hfbatch.cli import ending
from hfbatch.cli.root import JobFile, Json, On, Set, Trust, Var, app, lines, read_files
from hfbatch.cli.text import out, out_json
from hfbatch.errors import Problem, SpecError

if TYPE_CHECKING:
    from hfbatch.cron import Cron
    from hfbatch.kuberay import Pods
    from hfbatch.schedule import Scheduled

P = ParamSpec("P")
T = TypeVar("T")


class Scheduler(StrEnum):
    """Whom the text is for."""

    CRON = "cron"
    KUBERAY = "kuberay"
    AIRFLOW = "airflow"


_NEXT = {
    Scheduler.CRON: "add it with: (crontab -l; cat {}) | crontab -",
    Scheduler.KUBERAY: "apply it with: kubectl apply -f {}",
    Scheduler.AIRFLOW: "put it into Airflow's dags folder: {}",
}

At = Annotated[str | None, typer.Option(metavar="CRON", help="when: five fields as cron has them, or @daily")]
Tz = Annotated[
    str | None, typer.Option(metavar="ZONE", help="time zone of --at (default: UTC; cron: the machine's own)")
]
To = Annotated[Scheduler, typer.Option(help="the scheduler")]
Image = Annotated[
    str | None, typer.Option(metavar="IMAGE", help="kuberay: the pods' image, with hfbatch in it", show_default=False)
]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="kuberay: memory of a worker pod")]
SecretOption = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="VAR=NAME/KEY", help="kuberay: VAR from a Kubernetes Secret; repeatable"),
]
Write = Annotated[Path | None, typer.Option("--write", metavar="FILE", help="save it (default: print it)")]
Force = Annotated[bool, typer.Option("--force", help="replace FILE if it is there")]


@app.command(
    epilog=lines(
        "Examples",
        'hfbatch schedule job.yaml --to cron --at "0 2 * * *"',
        "hfbatch schedule job.yaml --to airflow --at @daily --write dags/x.py",
        "hfbatch schedule job.yaml --to kuberay --on k8s.yaml --image r/hfbatch:1",
    )
)
def schedule(
    job: JobFile,
    to: To,
    at: At = None,
    tz: Tz = None,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    trust_remote_code: Trust = False,
    image: Image = None,
    memory: Memory = "16Gi",
    secret: SecretOption = None,
    write: Write = None,
    force: Force = False,
    json_: Json = False,
) -> None:
    """Write what a scheduler takes to run a job every night."""
    from hfbatch.kuberay import Pods, Secret
    from hfbatch.schedule import Scheduled

    problems, dates = list[Problem](), _dates(job, var, set_) if to is Scheduler.AIRFLOW else []
    some_day = [f"{name}={datetime.now(UTC):%Y-%m-%d}" for name in dates]  # to check the files with
    files = _tried(problems, read_files, job, on, [*(var or []), *some_day], set_)
    cron = _tried(problems, _cron, to, at, tz)
    secrets = [found for each in secret or [] if (found := _tried(problems, Secret.read, each))]
    if to is not Scheduler.KUBERAY and (image or secret):
        problems.append(Problem("--image, --secret", "", f"{to} has no pods", "leave them out, or write --to kuberay"))
    if write is not None and write.exists() and not force:
        problems.append(Problem(f"--write {write}", "", "exists", "name another file, or replace it with --force"))
    if files is None or problems:
        raise SpecError(problems)
    it = Scheduled(*files, job, on, cron, _options(var, set_, trust_remote_code))
    text = _text(it, to, Pods(image or "", memory, tuple(secrets)), dates)
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(text, encoding="utf-8")
    _tell(it, to, text, write, json_)


def _cron(to: Scheduler, at: str | None, tz: str | None) -> Cron | None:
    """`--at` and `--tz`; Kubernetes can do without: once, now."""
    from hfbatch.cron import FIX, read_cron

    if at is not None:
        return read_cron(at, tz)
    if to is not Scheduler.KUBERAY:
        raise SpecError([Problem("--at", "", f"{to} needs to know when", FIX)])
    if tz is not None:
        raise SpecError([Problem(f"--tz {tz}", "", "there is no --at that it could belong to", FIX)])
    return None


def _dates(job: Path, var: list[str] | None, set_: list[str] | None) -> list[str]:
    """Those of Airflow's dates that the job file or --set uses and --var does not give."""
    from hfbatch.schedule import AIRFLOW_DATES

    try:
        text = "\n".join([job.read_text(encoding="utf-8"), *(set_ or [])])
    except (OSError, UnicodeDecodeError):
        return []  # read_files tells of it
    given = {pair.partition("=")[0] for pair in var or []}
    return [name for name in AIRFLOW_DATES if f"${{{name}}}" in text and name not in given]


def _options(var: list[str] | None, set_: list[str] | None, trust_remote_code: bool) -> tuple[str, ...]:
    """The options of `hfbatch run`, as they were given: what they mean is settled each night."""
    pairs = [("--var", each) for each in var or []] + [("--set", each) for each in set_ or []]
    return (*chain.from_iterable(pairs), *(["--trust-remote-code"] if trust_remote_code else []))


def _text(it: Scheduled, to: Scheduler, pods: Pods, dates: list[str]) -> str:
    from hfbatch import kuberay, schedule

    if to is Scheduler.KUBERAY:
        return kuberay.manifest(it, pods)
    beside = Path(sys.executable).with_name("hfbatch")
    program = [str(beside)] if beside.exists() else [sys.executable, "-m", "hfbatch.cli"]
    if to is Scheduler.CRON:
        return schedule.crontab(it, program, Path.cwd())
    return schedule.airflow_dag(it, program, Path.cwd(), dates)


def _tell(it: Scheduled, to: Scheduler, text: str, write: Path | None, json_: bool) -> None:
    """The text, or where it is; when it will run first goes to stderr."""
    zone = None if to is Scheduler.CRON else UTC
    first = it.at.after(datetime.now(zone).astimezone(zone), 1)[0].isoformat(timespec="minutes") if it.at else None
    if json_:
        out_json({"to": to, "file": None if write is None else str(write), "first": first, "text": text})
    elif write is None:
        out(text.removesuffix("\n"))
    else:
        out(f"{write}: written; {_NEXT[to].format(write)}")
    if first and it.at:
        ending.say(f"{it.at.meaning}; for the first time at {first}")
    if it.at and it.at.zone and to is Scheduler.CRON:
        ending.say("only cronie reads CRON_TZ; the cron of Debian and Ubuntu goes by the machine's clock")


def _tried(problems: list[Problem], make: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
    """`make(...)`; None where its problems joined the others."""
    try:
        return make(*arguments, **named)
    except SpecError as error:
        problems += error.problems
        return None

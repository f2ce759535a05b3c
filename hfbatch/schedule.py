"""A job and when it runs in, the text that a scheduler takes out: a crontab line or an Airflow DAG file.

Nothing is installed: a person reads the text and hands it to the scheduler. All of them run the same command,
`hfbatch run`, which locks its output itself, and try again only after exit codes that a rerun helps.
`hfbatch.kuberay` writes what Kubernetes takes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hfbatch.access import redact
from hfbatch.cron import Cron
from hfbatch.errors import (
    AccessRefused,
    Conflict,
    Damage,
    ErrorBudgetExceeded,
    GateFailed,
    Problem,
    SpecError,
    UnsafeStore,
)
from hfbatch.spec import JobSpec, Machine

# After these the same command fails again, and may waste hours of GPUs before it does.
NO_RETRY = tuple(
    sorted(
        kind.exit_code
        for kind in (SpecError, ErrorBudgetExceeded, Conflict, Damage, GateFailed, AccessRefused, UnsafeStore)
    )
)
# Airflow's dates for variables that mean a day: a rerun of last Monday labels last Monday's rows. All in UTC.
AIRFLOW_DATES = {"day": "{{ ds }}", "today": "{{ ds }}", "yesterday": "{{ macros.ds_add(ds, -1) }}"}

_CRON_LINE = 998  # characters; Vixie cron and its heirs cut or refuse a longer command


@dataclass(frozen=True)
class Scheduled:
    """A job, and what a scheduler has to know to run it."""

    job: JobSpec
    machine: Machine
    job_file: Path
    machine_file: Path | None
    at: Cron | None  # None: once, now
    options: tuple[str, ...] = ()  # of `hfbatch run`, as they were given: --var, --set, --trust-remote-code

    def command(self, program: Sequence[str]) -> list[str]:
        """`hfbatch run` with absolute paths, one argument an entry."""
        on = [] if self.machine_file is None else ["--on", str(self.machine_file.absolute())]
        return [*program, "run", str(self.job_file.absolute()), *on, *self.options]

    def check_secrets(self, *texts: str) -> None:
        """SpecError where an option, or one of `texts`, has credentials in a URL: they would be written to a file."""
        for place, text in [("--var or --set", each) for each in self.options] + [
            (str(self.job_file), t) for t in texts
        ]:
            if redact(text) != text:
                message = "a URL with credentials in it would be written into what the scheduler keeps"
                fix = "take them out of the URL, and give the scheduler's job its credentials by environment or role"
                raise SpecError([Problem(place, "", message, fix)])


def crontab(it: Scheduled, program: Sequence[str], folder: Path) -> str:
    """Comments and one line for `crontab`, run in `folder`, where the paths of the job file start. Raises SpecError."""
    assert it.at is not None
    it.check_secrets()
    command, log = it.command(program), folder / f"{it.job.name}.log"
    line = f"{it.at.fields} cd {_cron(str(folder))} && {' '.join(map(_cron, command))} >> {_cron(str(log))} 2>&1"
    if not line.isprintable():
        message = "a line of a crontab holds no line break and no control character"
        raise SpecError([Problem("--to cron", "", message, "write the value into the job file")])
    if len(line) > _CRON_LINE:
        message = f"a line of {len(line):,} characters is longer than cron takes ({_CRON_LINE})"
        raise SpecError([Problem("--to cron", "", message, "write what --set and --var say into the files")])
    return render("crontab.j2", name=it.job.name, at=it.at, line=line)


def airflow_dag(it: Scheduled, program: Sequence[str], folder: Path, dates: Sequence[str]) -> str:
    """A Python file for Airflow's dags folder; `dates`: the keys of AIRFLOW_DATES that the job uses."""
    assert it.at is not None
    it.check_secrets()
    variables = [text for name in dates for text in ("--var", f"{name}={AIRFLOW_DATES[name]}")]
    return render(
        "airflow.py.j2",
        name=it.job.name,
        at=it.at,
        zone=it.at.zone or "UTC",
        command=[*it.command(program), *variables],
        folder=str(folder),
        no_retry=NO_RETRY,
        start=datetime.now(UTC),
    )


def render(template: str, **values: Any) -> str:
    """A template of hfbatch/templates/ filled in; `json`, `python` and `block` write a value as that language does."""
    environment = Environment(
        loader=PackageLoader("hfbatch"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no HTML; values of a person go through one of the filters below
    )
    environment.filters |= {"json": _json, "python": repr, "block": _block}
    return environment.get_template(template).render(values)


def _cron(argument: str) -> str:
    """Quoted for the shell, and for cron before it, to which a bare % is the end of the line."""
    return r"\%".join(shlex.quote(part) if part else "" for part in argument.split("%")) or "''"


def _json(value: Any) -> str:
    """JSON that is YAML too, whose readers know no surrogate pairs and take U+2028 for a line break."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in text)


def _block(text: str, indent: int) -> str:
    """A value of YAML that reads back as `text` with one line break at its end: a literal block where it can be one."""
    lines = text.rstrip("\n").split("\n")
    if not all(line.replace("\t", " ").isprintable() for line in lines) or text[:1] in (" ", "\t", "\n", ""):
        return _json(text)
    return "|\n" + "\n".join(" " * indent + line if line else "" for line in lines)

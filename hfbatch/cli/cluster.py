"""The commands on a Ray cluster: submit a job to it, read its log, cancel it; and what `status` says of one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfbatch.cli import ending
from hfbatch.cli.root import JobFile, Json, NewGeneration, On, Set, Trust, Var, app, lines, read_files
from hfbatch.cli.text import bold, facts, one_line, out, out_json
from hfbatch.errors import HfbatchError, Interrupted, Problem, SpecError, SystemicError
from hfbatch.trust import check_trust
from hfbatch.words import clock

if TYPE_CHECKING:
    from hfbatch.submit import Submitted

Address = Annotated[
    str,
    typer.Option("--address", metavar="URL", help="the cluster's dashboard: http://head:8265", show_default=False),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="as `hfbatch submit` printed it", show_default=False)]
Shared = Annotated[list[str] | None, typer.Option(metavar="FOLDER", help="every node has it at this place; repeatable")]
Secret = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="an environment variable that must be set on the cluster; repeatable"),
]


class Unheard(HfbatchError):
    """Ctrl-C while a job was followed."""

    exit_code = Interrupted(signal.SIGINT).exit_code


@app.command(
    epilog=lines(
        "Examples",
        "hfbatch submit job.yaml --on gpus.yaml --address http://head:8265",
        "hfbatch submit job.yaml --address https://ray.lab.org --secret HF_TOKEN",
        "hfbatch submit job.yaml --address http://head:8265 --shared /mnt/data",
    )
    + "\n\n"
    + lines(
        "Who may",
        "a token    RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        "a proxy    RAY_JOB_HEADERS, JSON; REQUESTS_CA_BUNDLE: your own authority",
    )
)
def submit(
    job: JobFile,
    address: Address,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    new_generation: NewGeneration = False,
    trust_remote_code: Trust = False,
    shared: Shared = None,
    secret: Secret = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the job to its end")] = True,
    insecure_cluster: Annotated[
        bool, typer.Option("--insecure-cluster", help="though anybody who reaches the port runs code on the cluster")
    ] = False,
    json_: Json = False,
) -> None:
    """Run a job on a Ray cluster; ends with the job's exit code."""
    from hfbatch.jobserver import connect
    from hfbatch.parcel import pack
    from hfbatch.submit import read_job, send

    spec, machine = read_files(job, on, var, set_)
    check_trust(spec, trust_remote_code)
    flags = {"--new-generation": new_generation, "--trust-remote-code": trust_remote_code}
    options = [*_repeated("--var", var), *_repeated("--set", set_), *(name for name, given in flags.items() if given)]
    parcel = pack(spec, machine, job, on, options, shared or ())
    client = connect(address, insecure=insecure_cluster)
    job_id = send(client, parcel, _names(secret))
    ending.say(f"submitted: {job_id}")
    if not wait:
        ending.say(_how_to_follow(job_id, address))
        out_json(vars(read_job(client, job_id))) if json_ else out(job_id)
        return
    _end(_followed(client, job_id, address, _show_on_stderr), json_)


@app.command(epilog=lines("Examples", "hfbatch logs reviews-1f3a5c --address http://head:8265 --follow"))
def logs(
    job_id: Id,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="to the job's end, and end as it does")] = False,
    json_: Json = False,
) -> None:
    """Print what a submitted job has said so far, or follow it."""
    from hfbatch.jobserver import connect
    from hfbatch.submit import read_log

    client = connect(address)
    if follow:
        tell = _show_on_stderr if json_ else _show_on_stdout
        found = _followed(client, job_id, address, tell)
        if json_:
            out_json(vars(found))
        raise typer.Exit(found.exit_code or 0)
    text = read_log(client, job_id)
    if json_:
        out_json({"id": job_id, "log": text})
    else:
        out(text.removesuffix("\n"))


@app.command(epilog=lines("Examples", "hfbatch cancel reviews-1f3a5c --address http://head:8265"))
def cancel(job_id: Id, address: Address, json_: Json = False) -> None:
    """End a submitted job; submitted again it goes on from there."""
    from hfbatch import submit
    from hfbatch.jobserver import connect

    found = submit.cancel(connect(address), job_id)
    if json_:
        out_json(vars(found))
    else:
        _show(found)


def status(job_id: str, address: str, json_: bool) -> None:
    """What `hfbatch status ID --address URL` prints."""
    from hfbatch.jobserver import connect
    from hfbatch.submit import read_job

    found = read_job(connect(address), job_id)
    if json_:
        out_json(vars(found))
    else:
        _show(found)


def _followed(client: Any, job_id: str, address: str, tell: Callable[[str], None]) -> Submitted:
    """How the job ended. Who stops listening before does not stop the job, and is told so."""
    from hfbatch.submit import follow

    try:
        return follow(client, job_id, tell)
    except (KeyboardInterrupt, SystemicError) as error:
        message = f"{job_id} goes on without this command\n{_how_to_follow(job_id, address)}"
        if isinstance(error, SystemicError):
            raise SystemicError(f"{error}\n{message}") from error
        raise Unheard(message) from None


def _how_to_follow(job_id: str, address: str) -> str:
    return facts(
        [
            ("follow it", f"hfbatch logs {job_id} --address {address} --follow"),
            ("cancel it", f"hfbatch cancel {job_id} --address {address}"),
        ],
        indent=2,
    )


def _end(found: Submitted, json_: bool) -> None:
    if json_:
        out_json(vars(found))
    else:
        _show(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _show(found: Submitted) -> None:
    rows = [("job", found.job or "not one of hfbatch"), ("state", found.state)]
    rows += [] if found.exit_code is None else [("exit code", str(found.exit_code))]
    if found.started is not None:
        rows.append(("time", clock((found.ended or time.time()) - found.started)))
    rows += [("output", one_line(found.output))] if found.output else []
    rows += [("Ray says", found.message)] if found.message else []
    out(f"{bold(one_line(found.id))}\n{facts(rows)}")


def _show_on_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _show_on_stdout(text: str) -> None:
    out(text, end="")


def _repeated(option: str, values: list[str] | None) -> list[str]:
    return [f"{option}={value}" for value in values or ()]


def _names(secrets: list[str] | None) -> list[str]:
    """The names of environment variables; a value would be kept by Ray, and shown."""
    for name in secrets or ():
        if not name.isidentifier() or not name.isascii():
            message = f"{name.partition('=')[0]!r} is not the name of a variable"
            fix = "write the name alone; the value stays in the environment of the nodes"
            raise SpecError([Problem("--secret", "", message, fix)])
    return list(secrets or ())

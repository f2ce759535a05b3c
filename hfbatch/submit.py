"""A parcel in, a job of a Ray cluster out: its log as it grows, and at its end the exit code of its `hfbatch run`.

Ray Jobs runs a command on the head node, keeps its log and its exit code, and sends it SIGTERM when it is cancelled.
Nothing is pickled, so this machine's Ray and Python need not be the cluster's; hfbatch must be (cli/arrive.py looks).
"""

from __future__ import annotations

import asyncio
import math
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from hfbatch.access import redact
from hfbatch.errors import Incomplete, Interrupted, SystemicError
from hfbatch.jobserver import talking
from hfbatch.parcel import Parcel
from hfbatch.pipeline import new_run_id

ARRIVAL = "arrive.py"
LOST_S = 120.0  # how long a cluster may be out of reach while its log is followed
_ASK_S = 1.0


@dataclass(frozen=True)
class Submitted:
    """A job of a cluster. Times are in seconds since 1970."""

    id: str
    job: str | None  # the job's name and its output; None where it is not hfbatch's
    output: str | None
    state: str  # pending | running | succeeded | failed | stopped
    exit_code: int | None  # of hfbatch; None before the end
    message: str | None  # Ray's words, where it is Ray that failed
    started: float | None
    ended: float | None


def send(client: Any, parcel: Parcel, secrets: Sequence[str] = ()) -> str:
    """The id of the new job. `secrets`: environment variables that must be set on the cluster; only names travel."""
    version, job_id = metadata.version("hfbatch"), f"{parcel.name}-{new_run_id()}"
    checks = [f"--hfbatch={version}", *(f"--secret={name}" for name in secrets)]
    entrypoint = "exec " + shlex.join(["python", ARRIVAL, *checks, "--", *parcel.command])
    arrival = resources.files("hfbatch.cli").joinpath(ARRIVAL).read_text(encoding="utf-8")
    about = {"hfbatch_version": version, "hfbatch_job": parcel.name, "hfbatch_output": parcel.output}
    # Ray kills 3 s after SIGTERM unless its supervisor of the job, which has the job's environment, finds this there.
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(parcel.stop_s))}
    with tempfile.TemporaryDirectory(prefix="hfbatch-") as folder:
        for name, text in {**parcel.files, ARRIVAL: arrival}.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        runtime = {"working_dir": folder, "env_vars": environment}
        with talking(client.get_address()):
            # It asks for no resources: so it runs on the head node, which nobody preempts, and holds no GPU.
            client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime, metadata=about)
    return job_id


def follow(client: Any, job_id: str, tell: Callable[[str], None]) -> Submitted:
    """Give `tell` the log, every piece once, and return how the job ended. A connection that breaks is made again.

    SystemicError when the cluster is out of reach for LOST_S; the job itself goes on.
    """
    told, heard = 0, time.monotonic()
    while True:
        place = 0
        for piece in _log(client, job_id):  # from its start, at every connection
            new, place = piece[max(0, told - place) :], place + len(piece)
            told = max(told, place)
            if new:  # what was told before says nothing of the job, which may be lost though its log is there
                heard = time.monotonic()
                tell(new)
        try:
            found = read_job(client, job_id)
        except SystemicError:
            if time.monotonic() - heard > LOST_S:
                raise
        else:
            heard = time.monotonic()
            if found.exit_code is not None:
                return found
        time.sleep(_ASK_S)


def read_job(client: Any, job_id: str) -> Submitted:
    """The state of a job. SpecError when the cluster knows none of this id."""
    with talking(client.get_address(), job_id):
        info = client.get_job_info(job_id)
    about, code = info.metadata or {}, _exit_code(info)
    is_rays = bool(code) and info.driver_exit_code is None and info.message
    said = redact(info.message.strip()) if is_rays else None
    started, ended = (None if each is None else each / 1000 for each in (info.start_time, info.end_time))
    name, output = about.get("hfbatch_job"), about.get("hfbatch_output")
    return Submitted(job_id, name, output, info.status.value.lower(), code, said, started, ended)


def read_log(client: Any, job_id: str) -> str:
    """What the job has printed so far, stdout and stderr as one. SpecError when there is no such job."""
    with talking(client.get_address(), job_id):
        return str(client.get_job_logs(job_id))


def cancel(client: Any, job_id: str) -> Submitted:
    """End the job as SIGTERM ends a run, and return once it has: what is in the model is committed first.

    A job that has ended stays as it is. SpecError when there is no such job.
    """
    with talking(client.get_address(), job_id):
        client.stop_job(job_id)
    while (found := read_job(client, job_id)).exit_code is None:
        time.sleep(_ASK_S)
    return found


def _log(client: Any, job_id: str) -> Iterator[str]:
    """The log from its start, in pieces as it grows, until the job ends or the connection does."""
    pieces = client.tail_job_logs(job_id)

    async def piece() -> str | None:
        return await anext(pieces, None)

    with asyncio.Runner() as runner:
        while True:
            try:  # not `runner.run`, whose own SIGINT handler may lose a Ctrl-C to a piece that is just there
                text = runner.get_loop().run_until_complete(piece())
            except Exception:  # whatever it was: the caller asks for the state, and that failure is told
                return
            if text is None:
                return
            yield text


def _exit_code(info: Any) -> int | None:
    """What `hfbatch` ended with, however it did; None before the end."""
    state, code = info.status.value, info.driver_exit_code
    if state != "FAILED":
        return {"SUCCEEDED": 0, "STOPPED": Interrupted(signal.SIGTERM).exit_code}.get(state)
    if code is None:  # Ray's own failure: where its supervisor of the job died, a rerun goes on
        return Incomplete.exit_code if "DIED" in (info.error_type or "") else SystemicError.exit_code
    if code in (126, 127):  # the shell's, for a command that it cannot start
        return SystemicError.exit_code
    return int(code) if code >= 0 else 128 - int(code)

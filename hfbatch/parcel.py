"""A job and its files in, what travels to a cluster out: both files as they are written, and nothing else.

Data, models and output stay where they are, so every path must be one that all nodes reach. No secret travels: what
is sent is kept by Ray, and shown on its dashboard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hfbatch.access import redact
from hfbatch.errors import AccessRefused, Problem, SpecError
from hfbatch.origin import Loc
from hfbatch.spec import JobSpec, Machine

_JOB, _MACHINE = "job.yaml", "machine.yaml"
_KILL_S = 15  # beyond machine.grace_s: what a cancelled job takes to write down how it ended
_IN_TEXT = re.compile(
    r"\w+://[^/\s@]*:[^/\s@]+@|\w+://\S*[?&][^=&\s]*(sig|token|secret|passw|credential|key)[^=&\s]*=", re.IGNORECASE
)
_SECRET_FIX = (
    "take it out, and let the nodes have credentials of their own: an instance's or pod's role, or AWS_PROFILE, "
    "HF_TOKEN ... in their environment (--secret NAME checks that it is there)"
)


class SecretRefused(AccessRefused, SpecError):
    """The job's files hold what a cluster would keep and show; carries every place."""


@dataclass(frozen=True)
class Parcel:
    """What travels, and the command that takes it up."""

    name: str  # of the job
    output: str
    files: Mapping[str, str]  # name -> text
    command: tuple[str, ...]  # the arguments of `hfbatch` on the cluster
    stop_s: float  # seconds the run may take to end once it is told to


def pack(
    spec: JobSpec, machine: Machine, job: Path, on: Path | None, options: Sequence[str] = (), shared: Sequence[str] = ()
) -> Parcel:
    """`spec` and `machine` are what `job` and `on` say with `options`, which `hfbatch run` is given there too.

    `shared`: folders that every node has at the same place. SecretRefused; SpecError for a path that only this
    machine may have.
    """
    files = {_JOB: job.read_text(encoding="utf-8-sig")}
    if on is not None:
        files[_MACHINE] = on.read_text(encoding="utf-8-sig")
    places = {_JOB: str(job), _MACHINE: str(on)}
    if secrets := [*_signed(spec)] or [*_written(files, places), *_given(options)]:
        raise SecretRefused(secrets)
    if problems := [*_local_data(spec, shared), *_local_model(spec, shared)]:
        raise SpecError(problems)
    machine_file = ("--on", _MACHINE) if on else ()
    settled = ("--set", "address=auto", "--set", f"name={spec.name}")  # the last word on a key counts
    command = ("run", _JOB, *machine_file, *options, *settled)
    return Parcel(spec.name, spec.output.path, files, command, machine.grace_s + _KILL_S)


def _addresses(spec: JobSpec) -> Iterator[tuple[Loc, str]]:
    """Every path and URL of the job, with its key; the model's id is not one."""
    if isinstance(spec.input.path, str):
        yield ("input", "path"), spec.input.path
    else:
        yield from ((("input", "path", index), path) for index, path in enumerate(spec.input.path))
    yield from (
        (("input", "allow_media_prefixes", index), path) for index, path in enumerate(spec.input.allow_media_prefixes)
    )
    yield ("output", "path"), spec.output.path
    if spec.gates and spec.gates.golden:
        yield ("gates", "golden", "path"), spec.gates.golden.path


def _signed(spec: JobSpec) -> Iterator[Problem]:
    models = ((spec.loc(number, "model", "id"), step.model.id) for number, step in enumerate(spec.each))
    for loc, url in [*_addresses(spec), *models]:
        if redact(url) != url:
            yield spec.origin.problem(loc, "the URL holds a password or a signature, and would be sent", _SECRET_FIX)


def _written(files: Mapping[str, str], places: Mapping[str, str]) -> Iterator[Problem]:
    """What the files hold beside what is read from them: comments, variables that nothing uses."""
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if _IN_TEXT.search(line):
                yield Problem(
                    f"{places[name]}:{number}", "", "this line holds a secret, and would be sent", _SECRET_FIX
                )


def _given(options: Sequence[str]) -> Iterator[Problem]:
    """What the command line says; Ray shows it."""
    for option in options:
        if _IN_TEXT.search(option):
            name = "=".join(option.split("=")[:2])
            yield Problem(name, "", "this option holds a secret, and would be sent", _SECRET_FIX)


def _local_data(spec: JobSpec, shared: Sequence[str]) -> Iterator[Problem]:
    for loc, url in _addresses(spec):
        last = url.rpartition("::")[2]  # zip://a.parquet::file:///in.zip
        scheme, split, path = last.partition("://")
        if split and scheme.lower() not in ("file", "local"):
            continue
        if problem := _not_shared(path if split else last, shared):
            yield spec.origin.problem(loc, *problem)


def _local_model(spec: JobSpec, shared: Sequence[str]) -> Iterator[Problem]:
    for number, step in enumerate(spec.each):
        name = step.model.id
        is_path = name.startswith(("/", "./", "../", "~")) or Path(name).is_dir()
        if is_path and (problem := _not_shared(name, shared)):
            message, fix = problem
            at = spec.loc(number, "model", "id")
            yield spec.origin.problem(at, message, f"push the model to the Hub, or: {fix}")


def _not_shared(path: str, shared: Sequence[str]) -> tuple[str, str] | None:
    """(message, fix) unless `path` is below a folder of `shared`."""
    whole = os.path.normpath(Path(path).expanduser().absolute())
    below = [folder for folder in shared if PurePosixPath(whole).is_relative_to(os.path.normpath(folder))]
    if below and path.startswith("/"):
        return None
    if path.startswith("/"):
        message = f"{path!r} is a path, which the nodes may not have"
        return message, f"name a bucket, or, where every node has it at this place, add --shared {Path(whole).parent}"
    message = f"{path!r} is below a folder of this machine"
    return message, f"name a bucket, or a disk that every node has: {whole}, with --shared {Path(whole).parent}"

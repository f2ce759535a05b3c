"""A job in, manifests for `kubectl` out: a RayJob and the Job, or with a schedule the CronJob, that makes it.

A RayJob has no podFailurePolicy (KubeRay 1.6: its `backoffLimit` repeats whatever failed, on a new cluster), and
RayCronJob is alpha, behind a feature gate, and would start a second run beside the first. So retries and schedule are
Kubernetes' own: the pod of a Job makes the RayJob, follows it and ends with hfbatch's exit code (`hfbatch.launch`).
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from hfbatch.errors import Problem, SpecError
from hfbatch.origin import Loc
from hfbatch.schedule import NO_RETRY, Scheduled, render
from hfbatch.spec import ActorRange, Machine

FILES = "/etc/hfbatch"  # where the pods find job and machine file
_LONGEST = 40  # characters of a name: KubeRay takes 47 for a RayJob, of which Kubernetes adds 6
_DRAIN_S = 5  # beside the machine's grace_s: what the end of a run takes after the last batch
_STOP_S = 30  # what Ray's own processes get to end after that
_SECRET = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([a-z0-9][a-z0-9.-]*)/([A-Za-z0-9._-]+)")
_MEMORY = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti|M|G|T)")


@dataclass(frozen=True)
class Secret:
    """An environment variable of the pods whose value stands in a Secret of Kubernetes; never the value itself."""

    variable: str
    name: str
    key: str

    @classmethod
    def read(cls, text: str) -> Secret:
        """`HF_TOKEN=hub/token`. Raises SpecError."""
        found = _SECRET.fullmatch(text)
        if found is None:
            shown = text.partition("=")[0][:50]  # what follows may be the secret
            message = "is not VARIABLE=NAME/KEY, the name of a Kubernetes Secret and a key in it"
            fix = f"kubectl create secret generic hub --from-literal=token=..., then --secret {shown or 'A'}=hub/token"
            raise SpecError([Problem(f"--secret {shown}", "", message, fix)])
        return cls(*found.groups())


@dataclass(frozen=True)
class Pods:
    """What the pods are made of beside the machine file."""

    image: str  # has hfbatch, the same Ray, and what the job's files need (s3fs ...)
    memory: str = "16Gi"  # of a worker
    secrets: tuple[Secret, ...] = ()

    def problems(self) -> list[Problem]:
        """What is wrong with it."""
        found = []
        if not self.image or not self.image.isprintable() or " " in self.image:
            found.append(
                Problem("--image", "", "no image is named", "name one that has hfbatch, with its tag or digest")
            )
        if not _MEMORY.fullmatch(self.memory):
            found.append(Problem(f"--memory {self.memory}", "", "is not an amount of memory", "write --memory 16Gi"))
        return found


@dataclass(frozen=True)
class Workers:
    """A group of equal worker pods, with room for the actors of a machine file."""

    gpus: int  # of a pod
    cpus: int
    least: int  # pods
    most: int


def manifest(it: Scheduled, pods: Pods) -> str:
    """YAML documents for `kubectl apply -f`. Raises SpecError with all that does not fit a cluster."""
    problems = [*pods.problems(), *_local_paths(it)]
    try:
        workers = plan_workers(it.machine)
    except SpecError as error:
        problems += error.problems
    if problems:
        raise SpecError(problems)
    job_text = it.job_file.read_text(encoding="utf-8-sig")
    machine_text = None if it.machine_file is None else it.machine_file.read_text(encoding="utf-8-sig")
    it.check_secrets(job_text, machine_text or "")
    grace = math.ceil(it.machine.grace_s) + _DRAIN_S
    return render(
        "kuberay.yaml.j2",
        name=kubernetes_name(it.job.name),
        job=it.job.name,
        at=it.at,
        files=FILES,
        job_text=job_text,
        machine_text=machine_text,
        script=_script(it),
        ray=version("ray"),
        workers=workers,
        pods=pods,
        grace=grace,
        termination=grace + _STOP_S,
        no_retry=NO_RETRY,
    )


def plan_workers(machine: Machine) -> Workers:
    """The pods that the machine's actors need: a GPU that actors share is one pod. SpecError where it says `auto`."""
    problems = []
    if machine.gpus_per_actor == "auto":
        problems.append(_problem(machine, "gpus_per_actor", "1, or 0 for CPUs alone"))
    if machine.actors == "auto":
        problems.append(_problem(machine, "actors", "a number, or {min: 1, max: 8}"))
    if problems or machine.gpus_per_actor == "auto" or machine.actors == "auto":
        raise SpecError(problems)
    gpus, actors = machine.gpus_per_actor, machine.actors
    size = actors if isinstance(actors, ActorRange) else ActorRange(min=actors, max=actors)
    each = int(1 / gpus) if 0 < gpus < 1 else 1  # actors of a pod
    in_tasks = machine.cpu_steps == "tasks" or (machine.cpu_steps == "auto" and gpus > 0)
    cpus = math.ceil(each * machine.cpus_per_actor) + (2 if in_tasks else 1)  # to read and write, to make token ids
    return Workers(math.ceil(gpus), cpus, math.ceil(size.min / each), math.ceil(size.max / each))


def kubernetes_name(job: str) -> str:
    """A name that Kubernetes takes for what belongs to `job`; another job's is another."""
    name = re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")
    name = name if name[:1].isalpha() else f"job-{name}".rstrip("-")
    if name == job and len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 7].rstrip('-')}-{sha256(job.encode()).hexdigest()[:6]}"


def _script(it: Scheduled) -> str:
    """What the head pod runs. A file, as an entrypoint is quoted anew by each program that passes it on."""
    on = [] if it.machine_file is None else ["--on", f"{FILES}/machine.yaml"]
    pod = ["--set", f"name={it.job.name}", "--set", "address=auto"]
    return f"exec {shlex.join(['hfbatch', 'run', f'{FILES}/job.yaml', *on, *it.options, *pod])}\n"


def _problem(machine: Machine, key: str, what: str) -> Problem:
    message = "auto is settled by what a machine has, and the pods are not there yet"
    return machine._origin.problem((key,), message, f"write {key}: {what}")


def _local_paths(it: Scheduled) -> list[Problem]:
    """Paths that start in this folder, which no pod has."""
    job = it.job
    one = isinstance(job.input.path, str)
    paths: list[tuple[Loc, str]] = [
        (("input", "path") if one else ("input", "path", number), path) for number, path in enumerate(job.input.paths)
    ]
    paths.append((("output", "path"), job.output.path))
    paths += [(("gates", "golden", "path"), job.gates.golden.path)] if job.gates and job.gates.golden else []
    models = [(job.loc(number, "model", "id"), step.model.id) for number, step in enumerate(job.each)]
    paths += [(loc, name) for loc, name in models if Path(name).is_dir() or name.startswith(".")]
    message = "is a path in this folder, which no pod has"
    fix = "write a URL that all pods reach (s3://bucket/...), or an absolute path in the image or on a volume"
    return [
        job.origin.problem(loc, f"{path!r} {message}", fix)
        for loc, path in paths
        if "://" not in path and path[:1] != "/"
    ]

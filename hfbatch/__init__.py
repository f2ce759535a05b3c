"""hfbatch: Hugging Face models over big datasets, declared in YAML, executed by Ray, committed exactly once.

    import hfbatch
    report = hfbatch.run("jobs/quickstart.yaml")

Importing this module imports neither torch nor Ray; `plan` and `run` do when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hfbatch.errors import HfbatchError, SpecError
from hfbatch.load import load_job, load_machine
from hfbatch.spec import JobSpec, Machine

if TYPE_CHECKING:
    from hfbatch.planner import Plan
    from hfbatch.report import Progress, RunReport

__version__ = "0.1.0"
__all__ = ["HfbatchError", "JobSpec", "Machine", "SpecError", "check", "load_job", "load_machine", "plan", "run"]

Job: TypeAlias = str | Path | Mapping[str, Any] | JobSpec
On: TypeAlias = str | Path | Mapping[str, Any] | Machine | None


def check(job: Job, *, on: On = None, vars: Mapping[str, str] | None = None) -> JobSpec:
    """Read a job file (and a machine file) and nothing else. Raises SpecError with every problem in them."""
    spec = load_job(job, vars=vars)
    load_machine(on)
    return spec


def plan(
    job: Job,
    *,
    on: On = None,
    vars: Mapping[str, str] | None = None,
    new_generation: bool = False,
    trust_remote_code: bool = False,
) -> Plan:
    """Decide everything and run nothing: commit, files, columns, shards, and what is already done.

    Raises SpecError (2) with every problem found, AccessRefused (77), StorageError (74).
    """
    from hfbatch.planner import make_plan

    spec, machine = load_job(job, vars=vars), load_machine(on)
    return make_plan(spec, machine, new_generation=new_generation, trust_remote_code=trust_remote_code)


def run(
    job: Job | Plan,
    *,
    on: On = None,
    vars: Mapping[str, str] | None = None,
    new_generation: bool = False,
    trust_remote_code: bool = False,
    watch: Callable[[Progress], None] | None = None,
) -> RunReport:
    """Run a job to its end, or what is left of it, and return the report.

    `job` is a job file, its content as a mapping, a JobSpec or a Plan (then the other arguments but `watch` play no
    part). `on` is a machine file or its content. `watch` is called about twice a second with a Progress. Raises the
    errors of `plan`, and those of hfbatch.errors; whatever is committed stays, and the same call resumes.
    """
    from hfbatch import pipeline
    from hfbatch.planner import Plan

    if not isinstance(job, Plan):
        job = plan(job, on=on, vars=vars, new_generation=new_generation, trust_remote_code=trust_remote_code)
    return pipeline.run(job, watch=watch)

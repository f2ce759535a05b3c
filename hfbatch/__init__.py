"""hfbatch: Hugging Face models over big datasets, declared in YAML, executed by Ray, committed exactly once.

    import hfbatch
    report = hfbatch.run("jobs/quickstart.yaml")

Importing this module imports neither torch nor Ray; `plan` and `run` do when they are called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hfbatch.enrichment import enrich, shutdown, warm
from hfbatch.errors import HfbatchError, SpecError
from hfbatch.load import load_job, load_machine
from hfbatch.spec import JobSpec, Machine
from hfbatch.trust import check_trust

if TYPE_CHECKING:
    import pyarrow as pa

    from hfbatch.comparison import Comparison
    from hfbatch.examine import Examined
    from hfbatch.failed import FailedRow
    from hfbatch.planner import Plan
    from hfbatch.report import Progress, RunReport

__version__ = "0.1.0"
__all__ = [
    "HfbatchError",
    "JobSpec",
    "Machine",
    "SpecError",
    "check",
    "compare",
    "enrich",
    "failed_rows",
    "load_job",
    "load_machine",
    "plan",
    "preview",
    "repair",
    "retry",
    "run",
    "shutdown",
    "verify",
    "warm",
]

Job: TypeAlias = str | Path | Mapping[str, Any] | JobSpec
On: TypeAlias = str | Path | Mapping[str, Any] | Machine | None


def check(job: Job, *, on: On = None, vars: Mapping[str, str] | None = None) -> JobSpec:
    """Read a job file (and a machine file) and nothing else. Raises SpecError with every problem in them.

    AccessRefused (77) where remote code is asked for without full commits.
    """
    spec = load_job(job, vars=vars)
    load_machine(on)
    check_trust(spec, allowed=True)
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
    wait: bool = False,
) -> RunReport:
    """Run a job to its end, or what is left of it, and return the report.

    `job` is a job file, its content as a mapping, a JobSpec or a Plan (then only `watch` and `wait` play a part).
    `on` is a machine file or its content. `watch` is called about twice a second with a Progress. With `wait`, where
    another run is at work on the output, wait for its end, plan again and run; else that is Locked (75). Raises the
    errors of `plan`, and those of hfbatch.errors, such as GateFailed (9), unless `publish_anyway` is set in the Plan
    (`dataclasses.replace`); whatever is committed stays, and the same call resumes.
    """
    from hfbatch import pipeline
    from hfbatch.planner import Plan, make_plan
    from hfbatch.startup import early_start
    from hfbatch.turn import run_in_turn

    if isinstance(job, Plan):
        plans, spec, machine = [job], job.spec, job.machine
        new_generation, trust_remote_code = job.new_generation, any(step.trust_remote_code for step in job.job.steps)
    else:
        plans, spec, machine = [], load_job(job, vars=vars), load_machine(on)

    def make() -> Plan:
        if plans:
            return plans.pop()
        made = make_plan(spec, machine, new_generation=new_generation, trust_remote_code=trust_remote_code, begin=begin)
        return replace(made, publish_anyway=isinstance(job, Plan) and job.publish_anyway)

    tell = logging.getLogger(__name__).info if wait else None
    with early_start(machine) as begin:
        return run_in_turn(make, lambda made: pipeline.run(made, watch=watch), tell)[1]


def preview(
    job: Job,
    rows: int = 5,
    *,
    on: On = None,
    vars: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> pa.Table:
    """The first `rows` rows of a job through the real model, in this process; nothing is written anywhere.

    A table with the columns that `run` would write. What stands in the output plays no part. Raises what `plan` does,
    such as SpecError (2).
    """
    from hfbatch.previewing import preview_plan

    return preview_plan(plan(job, on=on, vars=vars, trust_remote_code=trust_remote_code), rows)


def compare(a: str, b: str, *, on: str | None = None, top: int = 10) -> Comparison:
    """Where two outputs agree over the same rows: labels, scores, vectors, texts, errors; streamed.

    A row is the same where its input file, the file's content and its number are, or where column `on` is. `top`: how
    many of the rows that differ most are told. Raises SpecError (2) where no run wrote or no row is in both, and
    Damage (6).
    """
    from hfbatch.comparing import compare_outputs

    return compare_outputs(a, b, on=on, top=top)


def failed_rows(output: str, *, code: str | None = None) -> Iterator[FailedRow]:
    """The rows of an output that failed (file, row in it, code, message), in the order of the input; streamed.

    With `code` only those. Raises SpecError (2) where no run ever wrote, Damage (6) for an object that is gone or torn.
    """
    from hfbatch import failed

    return failed.failed_rows(output, code)


def retry(
    output: str,
    *,
    on: On = None,
    overrides: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    code: str | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> RunReport | None:
    """Infer the rows of an output that failed again, with the job that made it; None where none failed.

    `overrides` are keys of the job, such as {"input.path": ...}, that change no value; `code` keeps to the shards with
    an error of that code. Raises what `run` does, such as SpecError (2) and, if values would change, Conflict (5).
    """
    from hfbatch import pipeline
    from hfbatch.again import plan_retry

    machine = load_machine(on)
    made = plan_retry(output, machine, overrides, trust_remote_code=trust_remote_code, code=code)
    return None if made is None else pipeline.run(made, watch=watch)


def verify(
    output: str,
    *,
    rows: int = 0,
    seed: int | None = None,
    on: On = None,
    overrides: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> Examined:
    """Check that an output holds what was committed, all of it and nothing else; infer `rows` of it again and compare.

    Raises Damage (6) with every flaw, else Incomplete (4) where it is not finished; SpecError (2) where no run wrote.
    """
    from hfbatch.examine import examine

    found = examine(output)
    if rows and not found.flaws:
        from hfbatch.recheck import recheck_output

        sample = recheck_output(output, rows, seed, load_machine(on), overrides, trust_remote_code)
        found = sample.added_to(found)
    found.check()
    return found


def repair(
    output: str,
    *,
    on: On = None,
    overrides: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    watch: Callable[[Progress], None] | None = None,
) -> RunReport | None:
    """Make again what is damaged in an output, and only that; None where nothing is.

    Raises what `run` does, such as SpecError (2); Conflict (5) for files in data/ that are not hfbatch's.
    """
    from hfbatch import pipeline
    from hfbatch.again import plan_repair

    made, _ = plan_repair(output, load_machine(on), overrides, trust_remote_code=trust_remote_code)
    return None if made is None else pipeline.run(made, watch=watch)

"""What people see: plans, reports and tasks as text on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfbatch.access import redact
from hfbatch.cli.text import bold, facts, fold, out, table
from hfbatch.cli.words import column_type, commit, count, size
from hfbatch.spec import ActorRange
from hfbatch.tasks.base import Task

if TYPE_CHECKING:
    from hfbatch.planner import Plan
    from hfbatch.report import RunReport


def report(report: RunReport) -> None:
    """A run in a dozen lines."""
    done_before = report.rows - report.rows_new
    errors = ", ".join(f"{code} {failed:,}" for code, failed in report.errors.items())
    rows = [
        ("outcome", report.outcome.replace("_", " ")),
        ("model", f"{report.model_id} @ {commit(report.model_revision)}"),
        ("rows", f"{report.rows:,} in the output: {report.rows_new:,} new, {done_before:,} already committed"),
        ("errors", f"{report.rows_failed:,}" + (f" ({errors})" if errors else "")),
        ("shards", f"{report.shards:,}, {report.shards_new:,} new"),
    ]
    if report.rows_new:
        rows += _speed(report)
    rows.append(("output", f"{report.output}/data/*.parquet"))
    out(bold(f"{report.job} {report.run_id}".rstrip()) + "\n" + facts(rows))


def _speed(report: RunReport) -> list[tuple[str, str]]:
    took = report.seconds
    steps = ("read", "tokenise", "forward", "postprocess", "write")
    split = ", ".join(f"{step} {getattr(took, step):.1f}" for step in steps)
    gpu = f", GPU {size(report.peak_gpu_bytes)}" if report.peak_gpu_bytes else ""
    rates = f"{report.rows_per_s:,.1f} rows/s, {report.tokens_per_s:,.0f} tokens/s"
    batches = count(report.batches, "batch")
    return [
        ("speed", f"{rates} on {count(report.actors, 'actor')}"),
        ("padding", f"{report.padding_share:.1%} of {count(report.padded_tokens, 'token')}, in {batches}"),
        ("forward", f"{report.forward_share:.1%} of the time between the first and the last batch"),
        ("seconds", f"{took.total:.1f} in all: start {took.start:.1f} (model load {took.model_load:.1f}), {split}"),
        ("memory", f"peak {size(report.peak_memory_bytes)} a model process{gpu}"),
        ("written", size(report.bytes_written)),
    ]


def plan(plan: Plan) -> None:
    """A plan on one screen."""
    job, written = plan.job, facts((entry.name, column_type(entry.type)) for entry in plan.job.output_schema)
    rows = [
        ("task", job.task),
        ("params", json.dumps(dict(job.params), ensure_ascii=False)),
        ("model", f"{job.model.id} @ {commit(job.model.commit)}"),
        ("dtype", job.dtype),
        ("input", f"{count(len(plan.files), 'file')}, {_rows(plan)}: {redact(', '.join(plan.spec.input.paths))}"),
        ("reads", ", ".join(f"{name} from {column}" for name, column in job.reads.items())),
        ("where", job.where or "all rows"),
        ("output", f"{job.output}/data/*.parquet"),
        ("columns", written),
        ("shards", f"{len(plan.shards):,}, {len(plan.done):,} committed"),
        ("generation", job.generation[:8]),
        ("machine", _machine(plan)),
        ("state", _state(plan)),
    ]
    out(bold(f"plan of {job.name}") + "\n" + facts(rows))


def _rows(plan: Plan) -> str:
    limit = f", at most {plan.spec.input.limit:,} taken" if plan.spec.input.limit else ""
    return count(plan.rows, "row") + (" before where" if plan.job.where else "") + limit


def _machine(plan: Plan) -> str:
    machine, actors = plan.machine, plan.machine.actors
    pool = f"{actors.min} to {actors.max}" if isinstance(actors, ActorRange) else actors
    where = machine.address or "a Ray of its own"
    return f"{where}; actors {pool}, gpus_per_actor {machine.gpus_per_actor}, batch tokens {machine.max_batch_tokens}"


def _state(plan: Plan) -> str:
    if plan.conflict is not None:
        return "a run would refuse: what stands in the output contradicts it"
    if plan.complete:
        return "complete; a run has nothing to do"
    left = sum(shard.rows for shard in plan.todo)
    return (
        f"{count(len(plan.todo), 'shard')} to do, {count(left, 'row')}" if plan.todo else "all committed, not published"
    )


def tasks(found: Sequence[type[Task]]) -> None:
    """One line a task."""
    rows = [(task.name, _about(task).splitlines()[0].partition(": ")[2] + _also(task)) for task in found]
    out(table(("task", "what it does"), rows))


def _also(task: type[Task]) -> str:
    return f" Also called {', '.join(task.aliases)}." if task.aliases else ""


def task(task: type[Task]) -> None:
    """What a task reads and writes, and its parameters."""
    rows = []
    for name, about in _params(task).items():
        meaning, choices = str(about.get("description", "")), _choices(about)
        if not all(choice in meaning for choice in choices):
            meaning += f" ({' | '.join(choices)})"
        rows.append((name, json.dumps(about.get("default")).strip('"'), meaning))
    out(fold(_about(task)) + "\n\n" + bold("params") + "\n" + table(("name", "default", "meaning"), rows))


def _params(task: type[Task]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = task.Params.model_json_schema().get("properties", {})
    return found


def _choices(about: Mapping[str, Any]) -> list[str]:
    """The words a parameter takes, where it takes no others."""
    return [str(word) for each in (about, *about.get("anyOf", ())) for word in each.get("enum", ())]


def _about(task: type[Task]) -> str:
    return (sys.modules[task.__module__].__doc__ or "").strip()


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """All of a plan as plain data."""
    job = plan.job
    shards = [
        {"id": s.id, "rows": s.rows, "committed": s.id in plan.done, "pieces": [vars(piece) for piece in s.pieces]}
        for s in plan.shards
    ]
    return {
        "job": job.name,
        "generation": job.generation,
        "identity": job.identity,
        "model": {"id": job.model.id, "revision": plan.spec.model.revision, "commit": job.model.commit},
        "machine": plan.machine.model_dump(mode="json"),
        "files": sorted(plan.files),
        "rows": plan.rows,
        "output": job.output,
        "output_schema": {entry.name: str(entry.type) for entry in job.output_schema},
        "shards": shards,
        "shards_committed": len(plan.done),
        "complete": plan.complete,
        "conflict": plan.conflict,
    }


def task_as_data(task: type[Task]) -> dict[str, Any]:
    """A task as plain data."""
    return {
        "name": task.name,
        "aliases": list(task.aliases),
        "reads": {entry.name: str(entry.type) for entry in task.reads},
        "optional": {entry.name: str(entry.type) for entry in task.optional},
        "params": _params(task),
        "about": _about(task),
    }

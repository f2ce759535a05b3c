"""What people see: plans, reports and tasks as text on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfbatch.access import redact
from hfbatch.cli.template import short_job
from hfbatch.cli.text import bold, facts, fold, out, table, width
from hfbatch.kinds import describe
from hfbatch.spec import ActorRange
from hfbatch.tasks import about as about_task
from hfbatch.tasks.base import Task
from hfbatch.words import column_type, commit, count, size

if TYPE_CHECKING:
    from hfbatch.job import Step
    from hfbatch.planner import Plan
    from hfbatch.report import RunReport

_ADAPTED = "Adapted: transformers' own pipeline does the work, row by row, and its result is written as JSON."
_KINDS = {"string": "text", "object": "mapping"}
_BOOLEAN = ["true", "false"]


def report(report: RunReport) -> None:
    """A run in a dozen lines."""
    done_before = report.rows - report.rows_new
    errors = ", ".join(f"{code} {failed:,}" for code, failed in report.errors.items())
    rows = [
        ("outcome", report.outcome.replace("_", " ")),
        *_models(report),
        ("rows", f"{report.rows:,} in the output: {report.rows_new:,} new, {done_before:,} already committed"),
        ("errors", f"{report.rows_failed:,}" + (f" ({errors})" if errors else "")),
        *([("guardrails", report.guarded)] if report.guarded else []),
        ("shards", f"{report.shards:,}, {report.shards_new:,} new"),
        *_files(report),
        *_gates(report),
    ]
    if report.rows_new:
        rows += _speed(report) + _predicted(report)
    rows.append(("output", f"{report.output}/data/{'**/' if report.partition_by else ''}*.parquet"))
    out(bold(f"{report.job} {report.run_id}".rstrip()) + "\n" + facts(rows))


def _models(report: RunReport) -> list[tuple[str, str]]:
    """The model, or what each step did."""
    if report.steps:
        return [("steps", "\n".join(map(str, report.steps)))]
    return [("model", f"{report.model_id} @ {commit(report.model_revision)}")]


def _files(report: RunReport) -> list[tuple[str, str]]:
    """The input's files against what was committed before."""
    counts = {"new": report.files_new, "changed": report.files_changed, "already done": report.files_skipped}
    told = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    failed = f"; {report.files_failed:,} not committed" if report.files_failed else ""
    gone = f"; {report.files_removed:,} gone from the input, and their rows with them" if report.files_removed else ""
    return [("files", f"{report.files:,}: {told}{failed}{gone}")] if report.files else []


def _gates(report: RunReport) -> list[tuple[str, str]]:
    """Each gate with what was found and asked, those that are not passed first."""
    failed = [f"not passed: {gate}" for gate in report.gates if not gate.passed]
    told = [*failed, *(str(gate) for gate in report.gates if gate.passed)]
    if report.published_anyway:
        told.insert(0, "published anyway, as --publish-anyway said")
    return [("gates", "\n".join(told))] if told else []


def _speed(report: RunReport) -> list[tuple[str, str]]:
    took = report.seconds
    steps = ("read", "tokenise", "forward", "postprocess", "write")
    split = ", ".join(f"{step} {getattr(took, step):.1f}" for step in steps)
    gpu = f", GPU {size(report.peak_gpu_bytes)}" if report.peak_gpu_bytes else ""
    rates = f"{report.rows_per_s:,.1f} rows/s, {report.tokens_per_s:,.0f} tokens/s"
    batches = f"{count(report.batches, 'batch')} of at most {count(report.batch_tokens, 'token')}"
    return [
        ("speed", f"{rates} on {count(report.actors, 'actor')}"),
        (
            "padding",
            f"{report.padding_share:.1%} of {count(report.padded_tokens, 'token')}, in {batches}; {report.layout}",
        ),
        *([("reused", report.reuse)] if report.reuse else []),
        ("forward", f"{report.forward_share:.1%} of the time between the first and the last batch"),
        ("seconds", f"{took.total:.1f} in all: start {took.start:.1f} (model load {took.model_load:.1f}), {split}"),
        ("memory", f"peak {size(report.peak_memory_bytes)} a model process{gpu}"),
        ("written", size(report.bytes_written)),
    ]


def _predicted(report: RunReport) -> list[tuple[str, str]]:
    """What was expected of the run, beside what it took."""
    if report.predicted_s is None:
        return []
    by = {"plan": "by `plan --sample`", "former run": "by the run before", "first shards": "after the first shards"}
    off = report.predicted_s / report.seconds.total - 1
    told = f"{report.predicted_s:.1f} s {by.get(report.predicted_by, '')}; it took {report.seconds.total:.1f} s"
    return [("predicted", f"{told}, the prediction was {abs(off):.0%} {'over' if off > 0 else 'under'}")]


def plan(plan: Plan) -> None:
    """A plan on one screen."""
    job, written = plan.job, facts((entry.name, column_type(entry.type)) for entry in plan.job.output_schema)
    rows = [
        ("task", job.task),
        *(fact for step in job.steps for fact in _step(step)),
        ("input", f"{count(len(plan.files), 'file')}, {_rows(plan)}: {redact(', '.join(plan.spec.input.paths))}"),
        ("where", job.where or "all rows"),
        ("output", f"{job.output}/data/{'**/' if job.partition_by else ''}*.parquet"),
        ("columns", written),
        *([("gates", ", ".join(plan.spec.gates.model_dump(exclude_unset=True)))] if plan.spec.gates else []),
        *([("guardrails", ", ".join(job.guards.identity))] if job.guards else []),
        ("shards", f"{len(plan.shards):,}, {len(plan.done):,} committed"),
        ("generation", job.generation[:8]),
        ("machine", _machine(plan)),
        ("state", _state(plan)),
    ]
    out(bold(f"plan of {job.name}") + "\n" + facts(rows))


def _step(step: Step) -> list[tuple[str, str]]:
    """What one model does; of several under the step's name."""
    rows = [
        ("params", json.dumps(dict(step.params), ensure_ascii=False)),
        ("model", f"{step.model.id} @ {commit(step.model.commit)}"),
        ("dtype", step.dtype),
        ("reads", ", ".join(f"{name} from {column}" for name, column in step.reads.items())),
        *([("only where", step.where)] if step.where else []),
    ]
    return [("step", f"{step.name}: {step.task}"), *rows] if step.name else rows


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
    """One line a task; those that transformers' own pipelines do stand apart."""
    head = ("task", "what it does")
    rows = [(task.name, about_task(task).splitlines()[0].partition(": ")[2] + _also(task)) for task in found]
    native = [row for row, task in zip(rows, found, strict=True) if not task.adapted]
    adapted = [row for row, task in zip(rows, found, strict=True) if task.adapted]
    out(table(head, native))
    if adapted:
        out("\n" + bold(fold(_ADAPTED)) + "\n" + table(head, adapted))


def _also(task: type[Task]) -> str:
    return f" Also called {', '.join(task.aliases)}." if task.aliases else ""


def task(task: type[Task], name: str | None = None) -> None:
    """What a task reads and writes, its parameters, and a job file. `name`: how it was asked for."""
    parts = [fold(about_task(task))]
    if task.aliases or task.adapted:
        parts.append(fold("\n".join(filter(None, (_also(task).strip(), _ADAPTED if task.adapted else "")))))
    if rows := [(key, _default(task, key), _meaning(about)) for key, about in _params(task).items()]:
        parts.append(bold("params") + "\n" + table(("name", "default", "meaning"), rows))
    parts.append(bold("a job file") + "\n" + short_job(task, name, min(width() or 80, 100)).removesuffix("\n"))
    out("\n\n".join(parts))


def _params(task: type[Task]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = task.Params.model_json_schema().get("properties", {})
    return found


def _default(task: type[Task], key: str) -> str:
    info = task.Params.model_fields[key]
    if info.is_required():
        return "required"
    return json.dumps(info.get_default(call_default_factory=True), ensure_ascii=False).strip('"')


def _meaning(about: Mapping[str, Any]) -> str:
    """What a parameter does, and what it takes where its default or the words do not say that."""
    meaning, branches = str(about.get("description", "")), about.get("anyOf", [about])
    takes = [each for branch in branches for each in _takes(branch)]
    if takes == _BOOLEAN or all(each in meaning for each in takes):
        return meaning
    return f"{meaning} ({' | '.join(takes)})"


def _takes(about: Mapping[str, Any]) -> list[str]:
    """The words that a JSON schema allows, or the kind of value in words."""
    if "enum" in about or "const" in about:
        return [str(word) for word in about.get("enum", [about.get("const")])]
    if about.get("type") == "boolean":
        return _BOOLEAN
    return [_kind(about)] if about.get("type", "null") != "null" else []


def _kind(about: Mapping[str, Any]) -> str:
    """A JSON type in words, with its bounds."""
    if about["type"] == "array":
        return f"list of {_kind(about['items'])}s" if "type" in about.get("items", {}) else "list"
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = " and ".join(f"{sign} {about[key]}" for key, sign in signs.items() if key in about)
    return f"{_KINDS.get(about['type'], about['type'])} {bounds}".rstrip()


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """All of a plan as plain data."""
    job = plan.job
    models = [{"id": step.model.id, "revision": step.model.revision, "commit": step.model.commit} for step in job.steps]
    shards = [
        {"id": s.id, "rows": s.rows, "committed": s.id in plan.done, "pieces": [vars(piece) for piece in s.pieces]}
        for s in plan.shards
    ]
    return {
        "job": job.name,
        "generation": job.generation,
        "identity": job.identity,
        "model": models[0],
        "models": models,
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
        "adapted": task.adapted,
        "reads": {entry.name: describe(entry.type) for entry in task.reads},
        "optional": {entry.name: describe(entry.type) for entry in task.optional},
        "params": _params(task),
        "about": about_task(task),
        "job": short_job(task),
    }

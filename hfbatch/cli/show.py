"""What people see: plans, reports, tasks and states as text on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hfbatch.tasks.base import Task

if TYPE_CHECKING:
    from hfbatch.planner import Plan
    from hfbatch.report import RunReport

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def console() -> Console:
    """Stdout; wide enough when it is not a terminal that nothing is folded."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)


def size(nbytes: float) -> str:
    """Bytes for people."""
    for unit in _UNITS:
        if nbytes < 1024 or unit == _UNITS[-1]:
            return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"
        nbytes /= 1024
    raise AssertionError


def _facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console().print(table)


def report(report: RunReport) -> None:
    """A run in a dozen lines."""
    done_before = report.rows - report.rows_new
    errors = ", ".join(f"{code} {count:,}" for code, count in report.errors.items())
    rows = [
        ("outcome", report.outcome.replace("_", " ")),
        ("model", f"{report.model_id} @ {report.model_revision}"),
        ("rows", f"{report.rows:,} in the output: {report.rows_new:,} new, {done_before:,} already committed"),
        ("errors", f"{report.rows_failed:,}" + (f" ({errors})" if errors else "")),
        ("shards", f"{report.shards:,}, {report.shards_new:,} new"),
    ]
    if report.rows_new:
        rows += _speed(report)
    rows.append(("output", f"{report.output}/data/*.parquet"))
    _facts(f"{report.job} {report.run_id}".rstrip(), rows)


def _speed(report: RunReport) -> list[tuple[str, str]]:
    took = report.seconds
    split = (
        f"start {took.start:.1f} (model load {took.model_load:.1f}), read {took.read:.1f}, tokenise {took.tokenise:.1f}, "
        f"forward {took.forward:.1f}, postprocess {took.postprocess:.1f}, write {took.write:.1f}"
    )
    gpu = f", GPU {size(report.peak_gpu_bytes)}" if report.peak_gpu_bytes else ""
    return [
        ("speed", f"{report.rows_per_s:,.1f} rows/s, {report.tokens_per_s:,.0f} tokens/s on {report.actors} actor(s)"),
        ("padding", f"{report.padding_share:.1%} of {report.padded_tokens:,} tokens, in {report.batches:,} batches"),
        ("forward", f"{report.forward_share:.1%} of the time between the first and the last batch"),
        ("seconds", f"{took.total:.1f} in all: {split}"),
        ("memory", f"peak {size(report.peak_memory_bytes)} a model process{gpu}"),
        ("written", size(report.bytes_written)),
    ]


def head(plan: Plan, rows: int, as_json: bool) -> None:
    """The first rows of the output; on stderr where stdout is for JSON."""
    import pyarrow.parquet as pq

    from hfbatch.ledger import Ledger
    from hfbatch.store import open_store

    ledger, left = Ledger(open_store(plan.job.output)), rows
    table = Table(title=f"first {rows} rows", title_justify="left", title_style="bold")
    names = [name for name in plan.job.output_schema.names if name not in ("model_id", "parameters")]
    for name in names:
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=40)
    for receipt in ledger.receipts(plan.job.generation, [shard.id for shard in plan.shards[:rows]]):
        if receipt.data is None or left <= 0:
            continue
        with ledger.store.open_input(receipt.data) as stream:
            batch = next(pq.ParquetFile(stream).iter_batches(batch_size=left))
        for row in batch.to_pylist():
            table.add_row(*(_short(row[name]) for name in names))
        left -= len(batch)
    (Console(stderr=True) if as_json else console()).print(table)


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], float):
        return f"[{', '.join(f'{x:.3f}' for x in value[:3])}, … {len(value)}]"
    return "" if value is None else str(value).replace("\n", " ")[:80]


def plan(plan: Plan) -> None:
    """A plan on one screen."""
    job, todo = plan.job, plan.todo
    new_rows = sum(shard.rows for shard in todo)
    before = " before where" if job.where else ""
    actors = plan.machine.actors
    state = "complete; a run has nothing to do" if plan.complete else f"{len(todo):,} shards ({new_rows:,} rows) to do"
    columns = [f"{entry.name}: {_type(entry.type)}" for entry in job.output_schema]
    rows = [
        ("task", f"{job.task} {job.parameters}"),
        ("model", f"{job.model.id} @ {job.model.commit}"),
        ("precision", job.dtype),
        ("input", f"{len(plan.files):,} files, {plan.rows:,} rows{before}: {', '.join(plan.spec.input.paths)}"),
        ("reads", ", ".join(f"{name} <- {column}" for name, column in job.reads.items())),
        ("where", job.where or "all rows"),
        ("output", f"{job.output}/data/*.parquet"),
        ("columns", "\n".join(columns)),
        ("shards", f"{len(plan.shards):,}, {len(plan.done):,} committed"),
        ("generation", job.generation[:8]),
        ("machine", f"{plan.machine.address or 'a local Ray'}, actors {actors}"),
        ("state", state),
    ]
    _facts(f"plan of {job.name}", rows)


def _type(kind: Any) -> str:
    text = str(kind)
    return text if len(text) < 90 else text[:87] + "..."


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """All of a plan as plain data."""
    job = plan.job
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
        "shards": [
            {
                "id": shard.id,
                "rows": shard.rows,
                "committed": shard.id in plan.done,
                "pieces": [vars(piece) for piece in shard.pieces],
            }
            for shard in plan.shards
        ],
        "shards_committed": len(plan.done),
        "complete": plan.complete,
        "conflict": plan.conflict,
    }


def task_as_dict(task: type[Task]) -> dict[str, Any]:
    """A task as plain data."""
    columns = {entry.name: str(entry.type) for entry in task.reads}
    optional = {entry.name: str(entry.type) for entry in task.optional}
    return {
        "name": task.name,
        "aliases": list(task.aliases),
        "reads": columns,
        "optional": optional,
        "params": task.Params.model_json_schema().get("properties", {}),
        "about": _about(task),
    }


def tasks(found: Sequence[type[Task]]) -> None:
    """One line a task."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("task", "aliases", "what it does"):
        table.add_column(name, overflow="fold")
    for task in found:
        table.add_row(task.name, ", ".join(task.aliases), _about(task).splitlines()[0].partition(": ")[2])
    console().print(table)


def task(task: type[Task]) -> None:
    """What a task reads and writes, and its parameters."""
    out = console()
    out.print(_about(task), markup=False)
    table = Table(title="params", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in ("name", "default", "meaning"):
        table.add_column(name, overflow="fold")
    for name, info in task.Params.model_fields.items():
        table.add_row(name, str(info.default) if info.default is not None else "null", info.description or "")
    out.print(table)


def _about(task: type[Task]) -> str:
    return (sys.modules[task.__module__].__doc__ or "").strip()


def status(found: Mapping[str, Any]) -> None:
    """An output folder and its runs."""
    done, planned = found["rows_committed"], found["rows_planned"]
    _facts(
        found["output"],
        [
            ("state", "complete" if found["complete"] else "not complete: the same command resumes"),
            ("rows", f"{done:,} committed of {planned:,} planned, {found['rows_failed']:,} with an error"),
            ("shards", f"{found['shards_committed']:,} of {found['shards']:,}"),
            ("task", found["identity"].get("task", "")),
            ("model commit", found["identity"].get("model_commit", "")),
        ],
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ("run_id", "outcome", "rows_new", "rows_failed", "rows_per_s", "padding_share", "host")
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for run in found["runs"]:
        table.add_row(*("" if run[name] is None else str(run[name]).replace("_", " ") for name in names))
    console().print(table)

"""Reports and plans as HTML: a page that needs no network and runs no script, and cards for notebooks.

Whatever a template shows is escaped by jinja2; a page's own policy (its CSP) forbids every script and request besides.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from hfbatch import charts
from hfbatch.pictures import STEPS, pictures
from hfbatch.records import steps_in
from hfbatch.words import column_type, commit, count, duration, size

if TYPE_CHECKING:
    from hfbatch.examine import Examined
    from hfbatch.job import Step
    from hfbatch.planner import Plan
    from hfbatch.report import RunReport

GOOD = frozenset({"success", "nothing_to_do"})
_FLAWS = 20  # shown in a card


@dataclass(frozen=True)
class About:
    """What a page says beside the report; whatever is not known is left out."""

    identity: Mapping[str, Any] = field(default_factory=dict)  # all that affects a value, as job.Job has it
    started: float | None = None  # seconds since 1970
    host: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)  # settings that are not the default
    job_file: str = ""  # YAML that makes the same job again
    options: Sequence[str] = ()  # what `hfbatch run` needs beside it


def report_html(report: RunReport, about: About | None = None) -> str:
    """One file with all there is to see of a run."""
    about = about or About()
    began = "" if about.started is None else time.strftime(", %Y-%m-%d %H:%M UTC", time.gmtime(about.started))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=f"{report.job} {report.run_id}",
            version=report.versions.get("hfbatch", ""),
            report=report,
            good=report.outcome in GOOD,
            subtitle=f"Run {report.run_id or 'without an id'}{began}, with {report.model_id}",
            figures=_figures(report),
            charts=pictures(report),
            gates=[(gate, gate.note or gate.about) for gate in report.gates],
            errors=[(code, rows, report.examples.get(code, "")) for code, rows in report.errors.items()],
            numbers=_numbers(report),
            lineage=_lineage(report, about),
            machine=_machine(report, about),
            commands=_commands(report, about),
            job_file=about.job_file,
        )
    )


def page(title: str, content: Markup) -> str:
    """Any HTML as a page of the same looks. `content` is taken as it is; charts and `Markup.format` escape theirs."""
    from hfbatch import __version__

    return _environment().get_template("page.html.j2").render(title=title, content=content, version=__version__)


def card(
    title: str, state: str, facts: Sequence[tuple[str, str]], pictures: Sequence[Markup] = (), good: bool = True
) -> str:
    """Facts and charts for a notebook: one block, with its looks in it, on whatever background."""
    template = _environment().get_template("card.html.j2")
    return template.render(title=title, state=state, facts=facts, charts=pictures, good=good)


def report_card(report: RunReport) -> str:
    """A RunReport in a notebook."""
    facts = [
        *_models(report),
        ("rows", f"{report.rows:,} in the output, {report.rows_new:,} new"),
        ("failed", _failed(report)),
    ]
    if report.gates:
        passed = f"{sum(gate.passed for gate in report.gates)} of {len(report.gates)} passed"
        facts.append(("gates", passed + ", published anyway" * report.published_anyway))
    if report.rows_new:
        facts.append(("speed", f"{report.rows_per_s:,.1f} rows/s, {report.tokens_per_s:,.0f} tokens/s"))
    facts += [("time", duration(report.seconds.total)), ("output", f"{report.output}/data")]
    title = f"{report.job} {report.run_id}".rstrip()
    return card(title, _words(report.outcome), facts, pictures(report), report.outcome in GOOD)


def _models(report: RunReport) -> list[tuple[str, str]]:
    """The model, or what each step did."""
    if report.steps:
        return [("step", str(step)) for step in report.steps]
    return [("model", f"{report.model_id} @ {commit(report.model_revision)}")]


def plan_card(plan: Plan) -> str:
    """A Plan in a notebook."""
    job, left = plan.job, sum(shard.rows for shard in plan.todo)
    facts = [
        ("task", job.task),
        *(fact for step in job.steps for fact in _step_facts(step)),
        ("input", f"{count(len(plan.files), 'file')}, {count(plan.rows, 'row')}{' before where' * bool(job.where)}"),
        ("where", job.where or ""),
        ("writes", ", ".join(f"{entry.name} ({column_type(entry.type)})" for entry in job.output_schema)),
        ("output", f"{job.output}/data"),
    ]
    state = "complete" if plan.complete else f"{count(len(plan.todo), 'shard')} to do"
    rows = {"committed": float(plan.rows - left), "to do": float(left)}
    drawn = charts.stacked(rows, "Rows", about=count(len(plan.shards), "shard"))
    state = "a run would refuse" if plan.conflict else state
    facts += [("conflict", plan.conflict or "")]
    return card(f"Plan of {job.name}", state, [fact for fact in facts if fact[1]], [drawn], plan.conflict is None)


def _step_facts(step: Step) -> list[tuple[str, str]]:
    """What one model of a plan does."""
    named = f"{step.name}: " if step.name else ""
    params = ", ".join(f"{name} {value}" for name, value in step.params.items() if value is not None)
    reads = ", ".join(f"{name} from {column}" for name, column in step.reads.items())
    return [
        ("model", f"{named}{step.model.id} @ {commit(step.model.commit)}, {step.dtype}"),
        ("params", params and named + params),
        ("reads", f"{named}{reads}{f', where {step.where}' if step.where else ''}"),
    ]


def examined_card(found: Examined) -> str:
    """What `verify` found, in a notebook."""
    state = "complete and sound" if found.complete else "sound as far as it is"
    facts = [
        ("shards", f"{found.committed:,} of {found.shards:,} committed"),
        ("rows", f"{found.rows:,} in {size(found.nbytes)}"),
        *((flaw.place, f"{flaw.what}; {flaw.fix}") for flaw in found.flaws[:_FLAWS]),
    ]
    state = count(len(found.flaws), "flaw") if found.flaws else state
    return card(found.output, state, facts, good=not found.flaws)


def _figures(report: RunReport) -> list[dict[str, Any]]:
    """The headline."""
    took, expected = report.seconds, report.predicted_s
    share = report.rows_failed / report.rows if report.rows else 0.0
    return [
        _figure("rows in the output", f"{report.rows:,}", f"{report.rows_new:,} new"),
        _figure("failed", f"{report.rows_failed:,}", f"{share:.2%} of all rows", bad=report.rows_failed > 0),
        _figure("rows/s", f"{report.rows_per_s:,.1f}", f"{report.tokens_per_s:,.0f} tokens/s"),
        _figure("time", duration(took.total), f"{duration(expected)} predicted" if expected else "from call to end"),
        _figure("in the model", f"{report.forward_share:.1%}", f"of the time, on {count(report.actors, 'actor')}"),
    ]


def _figure(name: str, value: str, about: str, bad: bool = False) -> dict[str, Any]:
    return {"name": name, "value": value, "about": about, "bad": bad}


def _numbers(report: RunReport) -> list[tuple[str, str]]:
    took = report.seconds
    batches = f"{count(report.batches, 'batch')} of at most {count(report.batch_tokens, 'token')}"
    rows = [
        ("rows", f"{report.rows:,}: {report.rows_new:,} new, {report.rows - report.rows_new:,} committed before"),
        ("failed", _failed(report)),
        ("guardrails", report.guarded),
        ("shards", f"{report.shards:,}, {report.shards_new:,} new"),
        ("files", _files(report)),
        ("tokens", f"{report.tokens:,}, in {batches}"),
        ("padding", f"{report.padding_share:.1%} of {report.padded_tokens:,}; {report.layout}".removesuffix("; ")),
        ("reused", report.reuse),
        ("seconds", f"{took.total:,.1f} in all; start {took.start:,.1f}, model load {took.model_load:,.1f}"),
        ("predicted", _predicted(report)),
        ("steps", ", ".join(f"{step} {getattr(took, step):,.1f}" for step in STEPS)),
        ("memory", f"{size(report.peak_memory_bytes)} a model process at most"),
        ("GPU memory", size(report.peak_gpu_bytes) if report.peak_gpu_bytes else ""),
        ("written", size(report.bytes_written)),
    ]
    return [row for row in rows if row[1]]


def _lineage(report: RunReport, about: About) -> list[tuple[str, str]]:
    """What made the values: enough to make them again."""
    known, told = about.identity, list[tuple[str, str]]()
    for step in steps_in(known):
        named = f"{step['name']}: " if "name" in step else ""
        told += [(name, named + _value(step[name])) for name in ("task", "params", "dtype") if name in step]
        reads = (f"{name} from {column}" for name, column in step.get("input_columns", {}).items())
        told.append(("reads", ", ".join(reads)))
    rows = [
        *(_models(report) if report.steps else [("model", report.model_id), ("commit", report.model_revision)]),
        *told,
        ("where", str(known.get("where") or "")),
        *(("output", report.output), ("generation", report.generation)),
    ]
    return [row for row in rows if row[1]]


def _machine(report: RunReport, about: About) -> list[tuple[str, str]]:
    settings = ", ".join(f"{name} {_value(value)}" for name, value in about.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    rows = [("host", about.host), ("actors", f"{report.actors:,}"), ("settings", settings), ("versions", versions)]
    return [row for row in rows if row[1]]


def _commands(report: RunReport, about: About) -> dict[str, str]:
    """What to type, by purpose."""
    made = {verb: ["hfbatch", verb, report.output] for verb in ("errors", "retry", "verify")}
    made["verify"] += ["--rows", "100"]
    made["run"] = ["hfbatch", "run", "job.yaml", *about.options]
    return {purpose: shlex.join(words) for purpose, words in made.items()}


def _failed(report: RunReport) -> str:
    codes = ", ".join(f"{code} {rows:,}" for code, rows in report.errors.items())
    return f"{report.rows_failed:,}" + (f" ({codes})" if codes else "")


def _files(report: RunReport) -> str:
    states = ("new", "changed", "skipped", "failed", "removed")
    found = [(getattr(report, f"files_{state}"), state) for state in states]
    return (
        f"{report.files:,}: " + ", ".join(f"{files:,} {state}" for files, state in found if files)
        if report.files
        else ""
    )


def _predicted(report: RunReport) -> str:
    """What was expected of `seconds.total`; empty where nothing was."""
    if not report.predicted_s:
        return ""
    off = report.seconds.total / report.predicted_s - 1
    by = f" by the {report.predicted_by}" if report.predicted_by else ""
    return f"{duration(report.predicted_s)}{by}; it took {abs(off):.0%} {'more' if off > 0 else 'less'}"


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items() if each is not None)
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hfbatch"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

"""report.html: what a run wrote down of itself, read back from its output, as one page beside report.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hfbatch.errors import Problem, SpecError
from hfbatch.html import About, report_html
from hfbatch.ledger import Ledger
from hfbatch.report import RunReport
from hfbatch.status import known_output

REPORT, PAGE = "report.json", "report.html"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset("y n yes no on off true false null".split())  # which YAML takes for something else


def last_report(output: str) -> tuple[RunReport, About]:
    """What the last run on `output` that came to a report did. SpecError where there is none."""
    ledger, _ = known_output(output)
    for run_id in reversed(ledger.runs()):
        if report := read_report(ledger, run_id):
            return report, read_about(ledger, report)
    problem = Problem("OUTPUT", ledger.store.url(), "no run has come to its report yet", f"`hfbatch status {output}`")
    raise SpecError([problem])


def read_report(ledger: Ledger, run_id: str) -> RunReport | None:
    """The report of a run, also of one by an older hfbatch; None while there is none."""
    found = ledger.run_file(run_id, REPORT)
    return None if found is None else RunReport.model_validate(found)


def read_about(ledger: Ledger, report: RunReport) -> About:
    """What else the output knows of the run."""
    started = ledger.run_file(report.run_id, "started.json") or {}
    machine, spec = started.get("machine", {}), started.get("spec", {})  # of the first what is not the default
    trust = ["--trust-remote-code"] if spec.get("model", {}).get("trust_remote_code") else []
    return About(
        identity=ledger.identity(report.generation),
        started=started.get("started"),
        host=str(started.get("host", "")),
        machine=machine,
        job_file=job_file(spec, report.model_revision),
        options=[word for name, value in machine.items() for word in ("--set", f"{name}={_scalar(value)}")] + trust,
    )


def write_page(ledger: Ledger, report: RunReport) -> None:
    """Put report.html beside the report.json of the run."""
    text = report_html(report, read_about(ledger, report))
    ledger.store.put(f"_hfbatch/runs/{report.run_id}/{PAGE}", text.encode())


def job_file(spec: Mapping[str, Any], commit: str) -> str:
    """YAML that makes the job of `spec`, as started.json has it, again; its model pinned to `commit`."""
    if not spec:
        return ""
    model = dict(spec["model"])
    if not commit.startswith("sha256:"):  # of a local directory, which a job file names without one
        model["revision"] = commit
    return "\n".join(_lines({**spec, "model": model}))


def _lines(content: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Keys and values as YAML, two levels deep. What is not set is left out, but of params: null may mean something."""
    for name, value in content.items():
        if isinstance(value, Mapping) and not indent:
            kept = value if name == "params" else {key: each for key, each in value.items() if each not in (None, {})}
            if kept:
                yield f"{name}:"
                yield from _lines(kept, "  ")
        else:
            yield f"{indent}{_scalar(name)}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    """A plain word as it is, else JSON, which YAML holds; with `${` as a job file writes it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False).replace("${", "$${")

"""report.html: what a run wrote down of itself, read back from its output, as one page beside report.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfbatch.errors import Problem, SpecError
from hfbatch.html import About, report_html
from hfbatch.ledger import Ledger
from hfbatch.records import pinned
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
    models = [step.get("model") or {} for step in spec.get("steps") or [spec]]
    trust = ["--trust-remote-code"] if any(model.get("trust_remote_code") for model in models) else []
    return About(
        identity=ledger.identity(report.generation),
        started=started.get("started"),
        host=str(started.get("host", "")),
        machine=machine,
        job_file=job_file(spec, started.get("model_commits") or [report.model_revision], started.get("guard_commits")),
        options=[word for name, value in machine.items() for word in ("--set", f"{name}={_scalar(value)}")] + trust,
    )


def write_page(ledger: Ledger, report: RunReport) -> None:
    """Put report.html beside the report.json of the run."""
    text = report_html(report, read_about(ledger, report))
    ledger.store.put(f"_hfbatch/runs/{report.run_id}/{PAGE}", text.encode())


def job_file(spec: Mapping[str, Any], commits: Sequence[str], rules: Mapping[str, str] | None = None) -> str:
    """YAML that makes the job of `spec`, as started.json has it, again; its models pinned, see records.pinned."""
    return "\n".join(_lines(pinned(spec, commits, rules))) if spec else ""


def _lines(content: Mapping[str, Any], indent: str = "", whole: bool = False) -> Iterator[str]:
    """Keys and values as YAML. What is not set is left out, but of params (`whole`): null may mean something there."""
    for name, value in content.items():
        if not whole and (value in (None, {}) or (value == [] and not indent)):
            continue
        key, below = f"{indent}{_scalar(name)}:", f"{indent}  "
        if isinstance(value, Mapping) and value:
            if lines := list(_lines(value, below, whole or name == "params")):
                yield from (key, *lines)
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            yield key
            for each in value:
                first, *others = _lines(each, f"{below}  ", whole)
                yield from (f"{below}- {first.strip()}", *others)
        else:
            yield f"{key} {_scalar(value)}"


def _scalar(value: Any) -> str:
    """A plain word as it is, else JSON, which YAML holds; with `${` as a job file writes it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False).replace("${", "$${")

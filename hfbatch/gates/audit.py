"""Write, audit, publish: the step between them. A run that is whole in, its report with every gate out.

All shards of a run with gates stand aside until it is published, so readers of data/ see the last output, whole and
current, while the new one is audited and for as long as it does not pass. What passed is put down first, as
`_hfbatch/audits/<plan>.json`, and only then is anything of the last output touched: a run that is killed from there
on is finished by the next, whose gates could no longer be judged against a last output that is half gone.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch import logs
from hfbatch.errors import Damage, GateFailed, SpecError
from hfbatch.faults import point
from hfbatch.gates import sql as gate_sql
from hfbatch.gates.check import truncated_columns
from hfbatch.gates.golden import Agreement, GoldenProblem, read_golden
from hfbatch.gates.judge import Side, count, judged
from hfbatch.gates.spec import GatesSpec
from hfbatch.ledger import Ledger
from hfbatch.planner import Plan
from hfbatch.records import Agreed, Receipt, dump, load, staged_name
from hfbatch.report import Gate, RunReport


def audited(plan: Plan, ledger: Ledger, ruling: Agreed, receipts: Sequence[Receipt], report: RunReport) -> RunReport:
    """The report with what the gates found; its outcome is gates_failed where the run may not be published.

    Where it may, that is put down, and _SUCCESS is gone. Without gates: the report as it is.
    """
    point("before-audit")
    if plan.spec.gates is not None:
        verdict = _verdict(ledger, ruling)
        if verdict is None:
            report = _judge(plan, ledger, receipts, report)
            if report.outcome == "gates_failed":
                return report
            written = report.model_dump(include={"run_id", "gates", "published_anyway"})
            ledger.store.put(_name(ruling), dump(written))
        else:
            report = report.model_copy(update=verdict)
        if ledger.agreed() == ruling:  # else `publish` refuses, and what stands is another run's
            ledger.reopen()
    point("after-audit")
    return report


def refused(report: RunReport) -> GateFailed:
    """What to raise of a run that did not pass."""
    failed = [gate for gate in report.gates if not gate.passed]
    lines = "\n".join(f"  {gate}" for gate in failed)
    return GateFailed(
        f"{len(failed)} of {len(report.gates)} gates are not passed, so this is not published, and what was published "
        f"last stays as it is:\n{lines}\n"
        "the new rows stand aside in _hfbatch/staged, and nothing of them is inferred again: change `gates:` or the "
        "golden file and run the same command, or publish them all the same with --publish-anyway; the next run over "
        "another input, or with another model, takes their place"
    )


def _judge(plan: Plan, ledger: Ledger, receipts: Sequence[Receipt], report: RunReport) -> RunReport:
    gates = audit(plan, ledger, receipts)
    failed = [gate.name for gate in gates if not gate.passed]
    anyway = bool(failed) and plan.publish_anyway
    told = {"gates": len(gates), "failed": failed, "published_anyway": anyway}
    logs.event(report.run_id, "audited", logging.WARNING if failed else logging.INFO, **told)
    outcome = "gates_failed" if failed and not anyway else report.outcome
    return report.model_copy(update={"gates": gates, "published_anyway": anyway, "outcome": outcome})


def audit(plan: Plan, ledger: Ledger, receipts: Sequence[Receipt]) -> list[Gate]:
    """Every gate of the plan over the output that these receipts are of, in the order of the job file."""
    gates, job, store = plan.spec.gates, plan.job, ledger.store
    assert gates is not None
    standing = set(store.list("data"))
    objects = [r.data if r.data in standing else staged_name(r.data) for r in receipts if r.data]
    made = truncated_columns(job.output_schema, job.keep)
    now = Side(sum(r.rows for r in receipts), sum(r.failed for r in receipts), objects, job.output_schema, made)
    last = _last(ledger, standing)
    agreement = _agreement(plan, gates)
    count(store, gates, now, last, agreement)
    answers: dict[str, gate_sql.Answer] = {}
    if gates.queries:
        sides = [None if side is None or side.problem else side for side in (now, last)]
        tables = [side and gate_sql.table_of(store, side.objects, side.schema, job.partition_by) for side in sides]
        answers = {name: gate_sql.answer(query, *tables) for name, query in gates.queries.items()}
    return judged(gates, now, last, agreement, answers)


def _last(ledger: Ledger, standing: Collection[str]) -> Side | None:
    """What was published last; None where nothing ever was."""
    current = ledger.current()
    if current is None:
        return None
    manifest = ledger.run_file(str(current["run_id"]), "manifest.json")
    if manifest is None:
        return Side(0, 0, (), pa.schema([]), problem="the manifest of what was published last is gone")
    objects = [entry["data"] for entry in manifest["objects"] if entry["data"]]
    rows, gone = int(manifest["rows"]), [name for name in objects if name not in standing]
    if gone:
        problem = f"{len(gone):,} objects of what was published last are gone, such as {gone[0]}"
        return Side(rows, 0, (), pa.schema([]), problem=problem)
    return Side(rows, 0, objects, _schema_of(ledger, objects[0]) if objects else pa.schema([]))


def _schema_of(ledger: Ledger, name: str) -> pa.Schema:
    with ledger.store.open_input(name) as stream:
        return pq.read_schema(stream).remove_metadata()


def _agreement(plan: Plan, gates: GatesSpec) -> Agreement | None:
    if gates.golden is None:
        return None
    try:
        return Agreement(read_golden(gates.golden))
    except GoldenProblem as problem:
        loc = ("gates", "golden", problem.key)
        raise SpecError([plan.spec.origin.problem(loc, problem.message, problem.fix)]) from problem


def _verdict(ledger: Ledger, ruling: Agreed) -> dict[str, Any] | None:
    """What was written down when a run of this plan passed; None where none has. That it stands is what counts."""
    text = ledger.store.get(_name(ruling))
    if text is None:
        return None
    with suppress(Damage, KeyError, ValueError):
        written = load(text, _name(ruling))
        gates = [Gate.model_validate(gate) for gate in written["gates"]]
        return {"gates": gates, "published_anyway": bool(written["published_anyway"])}
    return {}


def _name(ruling: Agreed) -> str:
    return f"_hfbatch/audits/{ruling.number:09d}.json"

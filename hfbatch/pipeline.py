"""run(plan) -> RunReport. Start reading here: shards -> source -> preprocess -> predict -> postprocess -> sink.

Ray executes (passes.py); hfbatch commits (ledger.py). The driver compares the plan with the commit records and runs
what is missing again, so nothing that Ray loses or repeats can lose or double a row.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from hfbatch import faults, logs
from hfbatch.access import redact, redact_all
from hfbatch.budget import Budget
from hfbatch.errors import (
    ErrorBudgetExceeded,
    HfbatchError,
    Incomplete,
    InputChanged,
    Interrupted,
    StorageError,
    SystemicError,
    exit_code,
)
from hfbatch.forecast import expected
from hfbatch.gates.audit import audited, refused
from hfbatch.lease import Lease
from hfbatch.ledger import Ledger
from hfbatch.planner import Plan, check_no_conflict
from hfbatch.records import Agreed, Receipt
from hfbatch.remembered import note
from hfbatch.report import Progress, RunReport, make_report, versions
from hfbatch.stopping import Stopping, interruptible
from hfbatch.store import open_store
from hfbatch.tally import Snapshot


def run(plan: Plan, *, watch: Callable[[Progress], None] | None = None) -> RunReport:
    """Carry the plan out. `watch` is called about twice a second while it runs.

    Returns the report of a complete output. Raises HfbatchError otherwise: what is committed stays, and the same
    call resumes. In the main thread, SIGINT and SIGTERM end it so, once what is in the model is committed.
    """
    started = time.time()
    faults.check()
    check_no_conflict(plan)
    ledger = Ledger(open_store(plan.job.output))
    if plan.complete:
        report = _report(plan, ledger, "", "nothing_to_do", started)
        logs.tell_end(report)
        return report
    run_id, stopping = new_run_id(), Stopping(plan.machine.grace_s)
    log = logs.RunLog(ledger.store, run_id)
    with Lease(ledger.store, run_id, plan.job.name) as lease, log, _result(ledger, run_id), interruptible(stopping):
        logs.tell_plan(plan, run_id)
        ruling = _begin(plan, ledger, run_id)
        snapshot = _infer(plan, ruling, lease, stopping, watch)
        receipts = _reconcile(plan, ledger)
        _judge(plan, ledger, run_id, receipts, stopping.reason, snapshot, started)
        report = _report(plan, ledger, run_id, "success", started, receipts, snapshot)
        report = _audit(plan, ledger, ruling, receipts, report)
        ledger.publish(run_id, ruling, receipts, report.model_dump())
        logs.tell_end(report)
    _write_page(ledger, report)
    return report


def new_run_id() -> str:
    """Sorts by time, to a 256th of a second, and is unique without a clock: 20261120T020000-1f3a5c02."""
    now = time.time()
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{int(now % 1 * 256):02x}{secrets.token_hex(3)}"


@contextmanager
def _result(ledger: Ledger, run_id: str) -> Iterator[None]:
    """result.json says how the run ended, whatever becomes of the exit code on its way through other programs."""

    def write(outcome: str, code: int, message: str | None = None) -> None:
        ended = {"run_id": run_id, "outcome": outcome, "exit_code": code, "message": message, "ended": time.time()}
        ledger.write_run_file(run_id, "result.json", ended)

    try:
        yield
    except BaseException as error:
        logs.tell_failure(run_id, error)
        with suppress(StorageError):  # what ended the run is the news
            write(type(error).__name__, exit_code(error), redact(str(error)))
        raise
    write("success", 0)


def _begin(plan: Plan, ledger: Ledger, run_id: str) -> Agreed:
    """The output is ready for this run: the store can be trusted, the cut is agreed, _SUCCESS is gone.

    With gates it stays until they are passed: what it speaks of stands in data/ until then.
    """
    ledger.store.probe()
    about = {"job": plan.job.name, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    details = {"generation": plan.job.generation, "rows": plan.rows, "shards": len(plan.shards), "versions": versions()}
    # without `vars`, whose values stand where they are used: they may hold what a URL is signed with
    spec = redact_all(plan.spec.model_dump(mode="json", exclude={"vars"}))
    written = {"spec": spec, "model_commit": plan.job.model_commit, "bound": note(plan.question, plan.job)}
    written["model_commits"] = [step.model.commit for step in plan.job.steps]
    written["guard_commits"] = plan.job.guards.commits if plan.job.guards is not None else {}
    written["machine"] = redact_all(plan.machine.model_dump(mode="json", exclude_defaults=True))
    ledger.begin(run_id, plan.job.generation, plan.job.identity, {**about, **details, **written})
    ruling = ledger.agree(plan.job.generation, plan.shards, plan.agreed)
    if plan.spec.gates is None or not all(shard.staged for shard in plan.todo):
        ledger.reopen()
    logs.event(run_id, "started", plan=ruling.number, shards=len(plan.todo), **about)
    return ruling


def _infer(
    plan: Plan, ruling: Agreed, lease: Lease, stopping: Stopping, watch: Callable[[Progress], None] | None
) -> Snapshot:
    """Run what is not committed. Only here Ray is needed, and imported: a run with nothing to do is over at once."""
    if not plan.todo:
        return Snapshot()
    from hfbatch.passes import run_passes

    foreseen = expected(plan)
    snapshot = run_passes(plan, ruling, lease, stopping, watch)
    return replace(snapshot, foreseen=foreseen or snapshot.foreseen)


def _reconcile(plan: Plan, ledger: Ledger) -> list[Receipt]:
    """The receipts of all shards of the plan that are committed, in the plan's order."""
    faults.point("before-reconcile")
    committed = ledger.committed(plan.job.generation)
    receipts = ledger.receipts(plan.job.generation, (shard.id for shard in plan.shards if shard.id in committed))
    faults.point("after-reconcile")
    return receipts


def _judge(
    plan: Plan,
    ledger: Ledger,
    run_id: str,
    receipts: Sequence[Receipt],
    stopped: HfbatchError | None,
    snapshot: Snapshot,
    started: float,
) -> None:
    """Raise what keeps this run from publishing, with its report written first."""
    left = len(plan.shards) - len(receipts)
    problem = snapshot.fatal
    if problem is None and left:
        problem = stopped or _incomplete(plan, left, snapshot)
    if problem is None:
        problem = Budget(plan.job.errors).judge(receipts)
    if problem is None:
        return
    outcomes = {ErrorBudgetExceeded: "error_budget_exceeded", Interrupted: "interrupted"}
    outcome = outcomes.get(type(problem), "incomplete")
    report = _report(plan, ledger, run_id, outcome, started, receipts, snapshot)
    _write_report(ledger, report)
    raise problem


def _audit(plan: Plan, ledger: Ledger, ruling: Agreed, receipts: Sequence[Receipt], report: RunReport) -> RunReport:
    """The report with its gates. GateFailed, with the report written, where one keeps this run from publishing."""
    report = audited(plan, ledger, ruling, receipts, report)
    if report.outcome == "gates_failed":
        _write_report(ledger, report)
        raise refused(report)
    return report


def _write_report(ledger: Ledger, report: RunReport) -> None:
    ledger.write_run_file(report.run_id, "report.json", report.model_dump())
    _write_page(ledger, report)


def _write_page(ledger: Ledger, report: RunReport) -> None:
    """report.html beside report.json. The run is over, and how it ended does not hang on a picture of it."""
    from hfbatch.pages import write_page

    try:
        write_page(ledger, report)
    except Exception as error:
        why = f"{type(error).__name__}: {redact(str(error))}"
        logging.getLogger(__name__).warning("report.html not written: %s; try `hfbatch report OUT --html FILE`", why)


def _incomplete(plan: Plan, left: int, snapshot: Snapshot) -> HfbatchError:
    """What kept these shards: InputChanged, StorageError, Incomplete; SystemicError where nothing went through."""
    text = f"{left} of {len(plan.shards)} shards are not committed"
    if not snapshot.failures:
        return Incomplete(f"{text}; the same command continues")
    for failure in snapshot.failures:
        if isinstance(failure.error, InputChanged):
            return InputChanged(f"{text}; {failure.message.partition(': ')[2]}")
    said = [failure for failure in snapshot.failures if failure.step != "ray"]  # what Ray says comes of the others
    last = (said or snapshot.failures)[-1]
    if left < len(plan.shards):
        kind = StorageError if isinstance(last.error, StorageError) else Incomplete
        return kind(f"{text}; step {last.step}: {last.message}; the same command continues")
    return last.error or SystemicError(f"no shard could be committed; step {last.step}: {last.message}\n{last.trace}")


def _steps(plan: Plan) -> list[dict[str, str]]:
    """What the report names of each step."""
    return [
        {"name": step.name, "task": step.task, "model_id": step.model.id, "model_revision": step.model.commit}
        for step in plan.job.chain
    ]


def _report(
    plan: Plan,
    ledger: Ledger,
    run_id: str,
    outcome: str,
    started: float,
    receipts: Sequence[Receipt] | None = None,
    snapshot: Snapshot | None = None,
) -> RunReport:
    if receipts is None:
        receipts = ledger.receipts(plan.job.generation, (shard.id for shard in plan.shards))
    about = {
        "job": plan.job.name,
        "outcome": outcome,
        "output": plan.job.output,
        "generation": plan.job.generation,
        "model_id": plan.job.model_id,
        "model_revision": plan.job.model_commit,
        "partition_by": list(plan.job.partition_by),
        "steps": _steps(plan) if plan.spec.steps or len(plan.job.chain) > 1 else [],
        **plan.changes.as_counts(plan.shards, receipts, run_id),
    }
    if snapshot is not None and snapshot.foreseen is not None:
        about["predicted_s"], about["predicted_by"] = snapshot.foreseen
    return make_report(about, receipts, run_id, started, time.time())

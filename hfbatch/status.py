"""What an output folder says of itself: is it complete, how far is it, which runs made it, which is at work now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hfbatch.errors import Problem, SpecError, outcome_of
from hfbatch.lease import is_alive, read_holder
from hfbatch.ledger import Ledger
from hfbatch.records import Agreed
from hfbatch.store import open_store

# Of a run's report. rows and rows_failed are of the whole output, labels (label -> rows) of what the run committed.
_NUMBERS = (
    *("gates", "published_anyway"),
    *("rows", "rows_new", "rows_changed", "rows_skipped", "rows_failed", "rows_per_s", "padding_share", "labels"),
    *("files_new", "files_changed", "files_skipped", "files_failed", "files_removed"),
)


def known_output(output: str) -> tuple[Ledger, Agreed]:
    """The ledger of `output` and the plan that rules it. SpecError when no run ever wrote there."""
    ledger = Ledger(open_store(output))
    agreed = ledger.agreed()
    if agreed is None:
        raise no_output(ledger)
    return ledger, agreed


def no_output(ledger: Ledger) -> SpecError:
    """The folder is not one of hfbatch's."""
    problem = Problem("OUTPUT", ledger.store.url(), "holds no output of hfbatch", "name a job's output.path")
    return SpecError([problem])


def read_status(output: str, runs: int | None = None) -> dict[str, Any]:
    """The state of `output` as plain data, with its newest `runs` runs, the oldest first (default: all).

    SpecError when no run ever wrote there.
    """
    ledger, agreed = known_output(output)
    success = ledger.success()
    committed = ledger.committed(agreed.generation)
    receipts = ledger.receipts(agreed.generation, sorted(shard.id for shard in agreed.shards if shard.id in committed))
    live = _live(ledger)
    at_work = live["run_id"] if live else None
    ids = ledger.runs()
    with ThreadPoolExecutor(max_workers=16) as pool:
        told = list(pool.map(lambda run_id: _run(ledger, run_id, at_work), ids[-runs:] if runs else ids))
    return {
        "output": ledger.store.url(""),
        "complete": success is not None and success["plan"] == agreed.number,
        "published": (ledger.current() or {}).get("run_id"),
        "generation": agreed.generation,
        "identity": ledger.identity(agreed.generation),
        "shards": len(agreed.shards),
        "shards_committed": len(receipts),
        "rows_planned": sum(shard.rows for shard in agreed.shards),
        "rows_committed": sum(receipt.rows for receipt in receipts),
        "rows_failed": sum(receipt.failed for receipt in receipts),
        "live": live,
        "runs": told,
    }


def _live(ledger: Ledger) -> dict[str, Any] | None:
    """The run at work now, with its `progress` as report.Progress has it; None where there is none."""
    holder = read_holder(ledger.store)
    if not holder or not is_alive(holder):
        return None
    host = str(holder.get("host", "")).partition("/")[0]
    names = ("run_id", "job", "pid", "started", "renewed")  # the last two: seconds since 1970
    return {**{name: holder.get(name) for name in names}, "host": host, "progress": holder.get("progress") or None}


def _run(ledger: Ledger, run_id: str, at_work: str | None) -> dict[str, Any]:
    """A run's start (seconds since 1970) and end. `outcome` is as its report has it, the error's name where it came to
    none, `running`, or `killed` for one that could not say how it ended.
    """
    started, report = ledger.run_file(run_id, "started.json") or {}, ledger.run_file(run_id, "report.json") or {}
    result = ledger.run_file(run_id, "result.json")
    about = {name: started.get(name) for name in ("job", "host", "started", "generation", "model_commit")}
    if result is None:
        ended = {"outcome": "running" if run_id == at_work else "killed", "exit_code": None}
    else:
        ended = {"outcome": _outcome(str(result.get("outcome")), report), "exit_code": result.get("exit_code")}
    rows, failed = report.get("rows"), report.get("rows_failed")
    shares = {"error_share": round(failed / rows, 4) if rows and failed is not None else None}
    return {"run_id": run_id, **about, **ended, **{name: report.get(name) for name in _NUMBERS}, **shares}


def _outcome(result: str, report: dict[str, Any]) -> str:
    if result == "success" or report.get("outcome") in (None, "success"):  # what went wrong came after the report
        return outcome_of(result)
    return str(report["outcome"])

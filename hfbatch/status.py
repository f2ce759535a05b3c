"""What an output folder says of itself: is it complete, how far is it, which runs made it."""

from __future__ import annotations

from typing import Any

from hfbatch.errors import Problem, SpecError
from hfbatch.ledger import Ledger
from hfbatch.store import open_store


def read_status(output: str) -> dict[str, Any]:
    """The state of `output` as plain data. SpecError when no run ever wrote there."""
    ledger = Ledger(open_store(output))
    agreed = ledger.agreed()
    if agreed is None:
        problem = Problem("OUTPUT", ledger.store.url(""), "holds no output of hfbatch", "name a job's output.path")
        raise SpecError([problem])
    success = ledger.success()
    committed = ledger.committed(agreed.generation)
    receipts = ledger.receipts(agreed.generation, sorted(shard.id for shard in agreed.shards if shard.id in committed))
    return {
        "output": ledger.store.url(""),
        "complete": success is not None and success["generation"] == agreed.generation,
        "generation": agreed.generation,
        "identity": ledger.identity(agreed.generation),
        "shards": len(agreed.shards),
        "shards_committed": len(receipts),
        "rows_planned": sum(shard.rows for shard in agreed.shards),
        "rows_committed": sum(receipt.rows for receipt in receipts),
        "rows_failed": sum(receipt.failed for receipt in receipts),
        "runs": [_run(ledger, run_id) for run_id in ledger.runs()],
    }


def _run(ledger: Ledger, run_id: str) -> dict[str, Any]:
    """A run's start, and its end if it came to one: `outcome` is None while it is at work or when it was killed."""
    started, ended = ledger.run_file(run_id, "started.json") or {}, ledger.run_file(run_id, "report.json") or {}
    names = ("outcome", "rows_new", "rows_failed", "rows_per_s", "padding_share")
    about = {name: started.get(name) for name in ("job", "host", "started")}  # started: seconds since 1970
    return {"run_id": run_id, **about, **{name: ended.get(name) for name in names}}

"""Watch a run from the driver: progress for people, and the error budget that ends it early."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray

from hfbatch.cluster import Failure, Snapshot
from hfbatch.errors import ErrorBudgetExceeded
from hfbatch.ledger import Receipt
from hfbatch.planner import Plan
from hfbatch.report import Progress
from hfbatch.spec import ErrorsSpec

INTERVAL_S = 0.5
JUDGED_FROM = 1000  # rows: a fraction of fewer says little


class Budget:
    """How many rows may fail."""

    def __init__(self, errors: ErrorsSpec) -> None:
        self.errors = errors

    def exceeded(self, rows: int, failed: int, final: bool) -> str | None:
        """Why `failed` of `rows` are too many, or None. Before the end a fraction is judged from 1,000 rows on."""
        if self.errors.max_failed_rows is not None and failed > self.errors.max_failed_rows:
            return f"{failed:,} rows failed, errors.max_failed_rows is {self.errors.max_failed_rows:,}"
        if rows and (final or rows >= JUDGED_FROM) and failed / rows > self.errors.max_failed_fraction:
            allowed = self.errors.max_failed_fraction
            return f"{failed:,} of {rows:,} rows failed ({failed / rows:.2%}), errors.max_failed_fraction is {allowed}"
        return None

    def judge(self, receipts: Iterable[Receipt]) -> ErrorBudgetExceeded | None:
        """The final verdict on all committed rows."""
        receipts = list(receipts)
        rows, failed = sum(receipt.rows for receipt in receipts), sum(receipt.failed for receipt in receipts)
        reason = self.exceeded(rows, failed, final=True)
        if reason is None:
            return None
        codes = sorted({code for receipt in receipts for code in receipt.errors})
        return ErrorBudgetExceeded(
            f"{reason}; codes: {', '.join(codes)}. The rows are committed with their `error`; to accept them, raise "
            "the budget and run again (nothing is inferred twice)"
        )


class Watch:
    """A thread that reads the tally twice a second, shows progress and stops the run when the budget is spent."""

    def __init__(
        self, tally: Any, plan: Plan, done: Sequence[Receipt], show: Callable[[Progress], None] | None
    ) -> None:
        self.tally, self.plan, self.show = tally, plan, show
        self.budget = Budget(plan.job.errors)
        self.rows_before = sum(receipt.rows for receipt in done)
        self.failed_before = sum(receipt.failed for receipt in done)
        self.todo_rows = sum(shard.rows for shard in plan.todo)
        self._first: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hfbatch-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def snapshot(self) -> Snapshot:
        """What the workers have told so far."""
        snapshot: Snapshot = ray.get(self.tally.snapshot.remote())
        return snapshot

    def _loop(self) -> None:
        while not self._done.wait(INTERVAL_S):
            try:
                snapshot = self.snapshot()
            except ray.exceptions.RayError:
                return  # the tally is gone, and so is the run
            self._judge(snapshot)
            if self.show is not None:
                self.show(self.progress(snapshot))

    def _judge(self, snapshot: Snapshot) -> None:
        rows = self.rows_before + int(snapshot.total("rows"))
        failed = self.failed_before + int(snapshot.total("errors"))
        reason = self.budget.exceeded(rows, failed, final=False)
        if reason is not None and snapshot.fatal is None:
            error = ErrorBudgetExceeded(f"{reason}; stopped early. What is committed stays")
            ray.get(self.tally.fail.remote(pickle.dumps(Failure("budget", str(error), "", error))))

    def progress(self, snapshot: Snapshot) -> Progress:
        """How far the run is. Rates count from the first batch."""
        rows, now = snapshot.total("sequences"), time.monotonic()
        if rows and self._first is None:
            self._first = now
        span = now - self._first if self._first is not None else 0.0
        rows = min(max(rows, snapshot.total("rows")), self.todo_rows)
        rate = rows / span if span > 1 else 0.0
        padded = snapshot.total("padded_tokens")
        return Progress(
            phase="running" if rows else "loading",
            rows_done=self.rows_before + int(rows),
            rows_total=self.rows_before + self.todo_rows,
            rows_per_s=round(rate, 1),
            tokens_per_s=round(snapshot.total("tokens") / span, 1) if span > 1 else 0.0,
            padding_share=round(1 - snapshot.total("tokens") / padded, 4) if padded else 0.0,
            errors=self.failed_before + int(snapshot.total("errors")),
            eta_s=round((self.todo_rows - rows) / rate, 1) if rate else None,
        )

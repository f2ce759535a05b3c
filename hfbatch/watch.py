"""Watch a run from the driver: progress for people, and the error budget that ends it early."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from hfbatch.budget import Budget
from hfbatch.errors import ErrorBudgetExceeded, Incomplete, Locked
from hfbatch.lease import Lease
from hfbatch.logs import EVERY_S, event
from hfbatch.planner import Plan
from hfbatch.records import Receipt
from hfbatch.report import Progress
from hfbatch.stopping import Stopping
from hfbatch.tally import Failure, Snapshot

INTERVAL_S = 0.5
STALLED, SILENT_S = 2, 1800.0  # times row_timeout_s, and at least so long, without a word: a model may load meanwhile


class Watch:
    """A thread that reads the tally twice a second, shows progress and stops the run when the budget is spent."""

    def __init__(
        self,
        tally: Any,
        plan: Plan,
        done: Sequence[Receipt],
        lease: Lease,
        stopping: Stopping,
        show: Callable[[Progress], None] | None,
    ) -> None:
        self.tally, self.plan, self.show = tally, plan, show
        self.lease, self.stopping = lease, stopping
        self.budget = Budget(plan.job.errors)
        self.rows_before = sum(receipt.rows for receipt in done)
        self.failed_before = sum(receipt.failed for receipt in done)
        self.todo_rows = sum(shard.rows for shard in plan.todo)
        self._first: float | None = None
        self._logged = float("-inf")
        self.foreseen: tuple[float, str] | None = None  # as in Snapshot, once two shards are through
        self._passed: tuple[float, float] | None = None  # when the first was: the time, and its rows
        self._heard, self._heard_at = 0, time.monotonic()
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
                self._judge(snapshot)
                self._see_to_the_end(snapshot)
            except ray.exceptions.RayError:
                return  # the tally is gone, and so is the run
            self._show(snapshot)

    def _see_to_the_end(self, snapshot: Snapshot) -> None:
        """Ask for an end where one is due; and once one is asked for, let nothing new begin, and call time."""
        runtime = self.plan.machine.max_runtime
        if self.lease.lost:
            self.stopping.request(
                Locked(f"{self.plan.job.output}: another run has taken the lease; this one gives way")
            )
        elif runtime is not None and time.time() - self.lease.started > runtime:
            self.stopping.request(Incomplete(f"machine.max_runtime of {runtime:g} s is over; the same command resumes"))
        elif (silent := self._silent_s(snapshot)) is not None:
            told = f"no worker was heard of for {silent:.0f} s; has the cluster lost CPUs or GPUs that it waits for?"
            self.stopping.request(Incomplete(f"{told} The same command goes on with what the cluster has then"))
        if self.stopping.reason is None:
            return
        busy = ray.get(self.tally.drain.remote())
        if self.stopping.overdue or not busy:
            ray.get(self.tally.stop.remote())
            self.stopping.end()
            self._done.set()

    def _silent_s(self, snapshot: Snapshot) -> float | None:
        """Seconds without a word once that is too long: every process that could be slow has a watchdog of its own."""
        limit, now = self.plan.machine.row_timeout_s, time.monotonic()
        if snapshot.heard != self._heard:
            self._heard, self._heard_at = snapshot.heard, now
        silent = now - self._heard_at
        return silent if snapshot.heard and limit is not None and silent > max(STALLED * limit, SILENT_S) else None

    def _show(self, snapshot: Snapshot) -> None:
        """A display that fails must not take the error budget, or the run, with it."""
        progress = self.progress(snapshot)
        self.lease.progress = progress.model_dump()
        if time.monotonic() - self._logged >= EVERY_S:
            self._logged = time.monotonic()
            event(self.lease.run_id, "progress", **progress.model_dump())
        self._foresee(snapshot)
        if self.show is not None:
            try:
                self.show(progress)
            except Exception:
                logging.getLogger(__name__).exception("showing progress failed; the run goes on without it")
                self.show = None

    def _foresee(self, snapshot: Snapshot) -> None:
        """How long the whole run takes, from its pace behind the first shard, during which all was still new."""
        now, rows = time.time(), snapshot.total("rows")
        if self.foreseen is not None or not rows:
            return
        if self._passed is None:
            self._passed = (now, rows)
        elif rows > self._passed[1]:
            pace = (now - self._passed[0]) / (rows - self._passed[1])
            left = max(0.0, self.todo_rows - rows) * pace
            self.foreseen = (round(now - self.lease.started + left, 1), "first shards")

    def _judge(self, snapshot: Snapshot) -> None:
        rows = self.rows_before + int(snapshot.total("rows"))
        failed = self.failed_before + int(snapshot.total("errors"))
        reason = self.budget.exceeded(rows, failed, final=False)
        if reason is not None and snapshot.fatal is None:
            error = ErrorBudgetExceeded(f"{reason}; stopped early. What is committed stays")
            ray.get(self.tally.fail.remote(pickle.dumps(Failure("budget", str(error), "", error, fatal=True))))

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

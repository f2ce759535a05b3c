"""What a run does as JSON lines: into `_hfbatch/runs/<run_id>/log.jsonl`, and with HFBATCH_LOG=json on stderr too.

    {"ts": "2026-11-21T02:00:03.120Z", "level": "info", "event": "shard_committed", "run_id": "...", "rows": 16384, ...}

Events of a run: planned, started, shard_committed, progress (every 30 s), error_budget, interrupted, finished; of a
command on stderr: said, failed; and `log` with a `message` for what hfbatch's modules log besides. They go through the
standard library's logger `hfbatch.events`, so a program that sets its level to INFO gets them in its own handlers. No
secret of a URL is written. An object cannot be appended to, so the log is put whole, twice a minute and at the end; one
that cannot be written ends no run.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hfbatch.access import redact, redact_all
from hfbatch.errors import ErrorBudgetExceeded, GateFailed, Interrupted, exit_code, outcome_of

if TYPE_CHECKING:
    from hfbatch.planner import Plan
    from hfbatch.report import RunReport
    from hfbatch.store import Store

VARIABLE = "HFBATCH_LOG"
EVERY_S = 30.0  # between two writes of the log, and between two `progress` events
LAST_S = 5.0  # the last of it may take as long: a store that hangs does not hold up the end of a run

_events = logging.getLogger("hfbatch.events")
_all = logging.getLogger("hfbatch")


def event(run_id: str, name: str, level: int = logging.INFO, /, **fields: Any) -> None:
    """Tell it to the log of run `run_id`, and to whoever listens to the logger `hfbatch.events`."""
    extra = {"event": name, "run_id": run_id, "fields": fields}
    record = _events.makeRecord(_events.name, level, "", 0, name, (), None, extra=extra)
    if _events.isEnabledFor(level):
        _events.handle(record)
    else:  # nobody asked for events, but the run's own log is always written
        for handler in _all.handlers:
            if isinstance(handler, RunLog):
                handler.handle(record)


def tell_plan(plan: Plan, run_id: str) -> None:
    """`planned`: what the run is of, and what of it is new, changed and done."""
    job, counts = plan.job, plan.changes.as_counts(plan.shards, (), run_id)
    names = ("files", "files_new", "files_changed", "files_skipped", "files_removed")
    model = {"model_id": job.model_id, "model_revision": job.model_commit, "generation": job.generation}
    shards = {"rows": plan.rows, "shards": len(plan.shards), "shards_skipped": len(plan.done)}
    event(
        run_id, "planned", job=job.name, output=job.output, **model, **shards, **{name: counts[name] for name in names}
    )


def tell_end(report: RunReport) -> None:
    """`finished`, of a run that ended well."""
    told = {name: value for name, value in report if name.startswith(("rows", "files", "shards"))}
    event(report.run_id, "finished", outcome=report.outcome, exit_code=0, **told, seconds=report.seconds.total)


def tell_failure(run_id: str, error: BaseException) -> None:
    """`finished`, of a run that did not; before it `error_budget` or `interrupted` where it was that."""
    told = {"message": str(error), "exit_code": exit_code(error)}
    known = {ErrorBudgetExceeded: "error_budget", Interrupted: "interrupted", KeyboardInterrupt: "interrupted"}
    known |= {GateFailed: "gates_failed"}
    if name := next((name for kind, name in known.items() if isinstance(error, kind)), None):
        event(run_id, name, logging.WARNING, **told)
    event(run_id, "finished", logging.ERROR, outcome=outcome_of(type(error)), **told)


class JsonLines(logging.Formatter):
    """A record as one JSON object; `run_id` stands in for records that have none."""

    def __init__(self, run_id: str = "") -> None:
        super().__init__()
        self.run_id = run_id

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        own: Mapping[str, Any] | None = getattr(record, "fields", None)
        line = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "run_id": getattr(record, "run_id", self.run_id),
            **redact_all(dict(_described(record) if own is None else own)),
        }
        return json.dumps(line, ensure_ascii=False, default=lambda value: redact(str(value)))


def _described(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    """What a plain record says."""
    yield "logger", record.name
    yield "message", record.getMessage()
    if record.exc_info:
        yield "trace", "".join(traceback.format_exception(*record.exc_info))


class RunLog(logging.Handler):
    """Holds the lines of one run and puts them into its folder, in a thread of its own: a slow store delays no run."""

    def __init__(self, store: Store, run_id: str) -> None:
        super().__init__()
        self.store, self.run_id, self.name_in_store = store, run_id, f"_hfbatch/runs/{run_id}/log.jsonl"
        self.setFormatter(JsonLines(run_id))
        self._lines, self._written, self._told = list[str](), 0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="hfbatch-log", daemon=True)

    def __enter__(self) -> RunLog:
        _all.addHandler(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        _all.removeHandler(self)
        self._over.set()
        self._thread.join(timeout=LAST_S)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, unless another run of this process said it."""
        if getattr(record, "run_id", self.run_id) == self.run_id:
            self._lines.append(self.format(record))

    def _keep(self) -> None:
        while not self._over.wait(EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = list(self._lines)
        if len(lines) == self._written:
            return
        try:
            self.store.put(self.name_in_store, "".join(f"{line}\n" for line in lines).encode())
            self._written = len(lines)
        except Exception:  # whatever it is, it is the log's alone: what is committed does not rest on it
            if not self._told:
                self._told = True
                _all.warning("the run's log could not be written; the run goes on", exc_info=True)


def wanted() -> bool:
    """Whether stderr is to have JSON lines instead of words for people."""
    return os.environ.get(VARIABLE, "").strip().lower() == "json"


@contextmanager
def on_stderr() -> Iterator[None]:
    """Inside, events and what hfbatch logs are JSON lines on stderr, where HFBATCH_LOG=json asks for it."""
    if not wanted():
        yield
        return
    handler, before = logging.StreamHandler(sys.stderr), (_all.level, _all.propagate)
    handler.setFormatter(JsonLines())
    _all.addHandler(handler)
    _all.setLevel(logging.INFO)
    _all.propagate = False
    try:
        yield
    finally:
        _all.removeHandler(handler)
        _all.setLevel(before[0])
        _all.propagate = before[1]

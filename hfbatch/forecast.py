"""How long a run will take: the tokens that a sample promises, at a speed that was measured, never assumed.

The speed is that of a former run of this generation on such a machine, else of one actor that is started for it
(trial.py). A forecast is kept in the user's cache, outside the output, until the run that it speaks of takes it up:
the run's report then holds what was predicted beside what it took.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hfbatch.errors import HfbatchError
from hfbatch.job import canonical
from hfbatch.ledger import Ledger
from hfbatch.planner import Plan
from hfbatch.report import RunReport
from hfbatch.sample import Look, draw, look_at
from hfbatch.spec import Machine
from hfbatch.store import open_store

LEAST_ROWS = 256  # of a run that is to say how fast the next one will be
_RUNS = 5  # the newest that are asked: each is two small objects to read
_KEPT = 100  # forecasts in the cache
_NO_MATTER = {"cost_per_hour", "grace_s", "max_runtime", "row_timeout_s"}  # of a machine, for its speed


@dataclass(frozen=True)
class Speed:
    """What a run starts and works with."""

    start_s: float  # from the call of `run` to the first batch
    end_s: float  # from the last batch to the report
    tokens_per_s: float  # of all actors together
    rows_per_s: float
    layout: str  # as in RunReport, as the next one
    batch_tokens: int  # 0: not known
    source: str  # "run 2026...", "trial"


class Forecast(BaseModel):
    """When a run will be over, if it is started now."""

    model_config = ConfigDict(frozen=True)

    seconds: float  # of the run, from its call to its end
    spread_s: float  # how far the tokens alone may put it off, with 95 % certainty
    start_s: float  # of `seconds`: until the first batch
    tokens_per_s: float
    layout: str
    source: str  # what the speed was taken from: "run <id>" or "trial"
    cost: float | None  # in the currency of the machine file's cost_per_hour


def look_ahead(plan: Plan, rows: int, *, timed: bool = True) -> tuple[Look, Forecast | None]:
    """Draw a sample of `plan`, tokenise it, and say how long a run would take; None where nothing tells its speed.

    `timed`: where no former run does, start an actor and measure, which takes Ray and a few seconds. The forecast is
    kept for the run.
    """
    started, sample = time.time(), draw(plan, rows)
    speed = former_speed(plan)
    if speed is None and timed and sample.waiting and len(sample.table):
        from hfbatch.trial import trial  # Ray

        speed = trial(plan, sample.table, started)
    look = look_at(plan, sample, speed.batch_tokens if speed else 0)
    if not sample.waiting or speed is None:
        return look, None
    made = forecast(look, speed, plan.machine)
    keep(plan, made)
    return look, made


def forecast(look: Look, speed: Speed, machine: Machine) -> Forecast:
    """The forecast of a run over what `look` has seen, at `speed`."""
    seconds = speed.start_s + look.tokens / speed.tokens_per_s + speed.end_s
    return Forecast(
        seconds=round(seconds, 1),
        spread_s=round(look.tokens_spread / speed.tokens_per_s, 1),
        start_s=round(speed.start_s, 1),
        tokens_per_s=round(speed.tokens_per_s, 1),
        layout=speed.layout,
        source=speed.source,
        cost=None if machine.cost_per_hour is None else round(machine.cost_per_hour * seconds / 3600, 4),
    )


def former_speed(plan: Plan) -> Speed | None:
    """That of the newest run of this generation that was on this host, or on this cluster, with such a machine."""
    ledger = Ledger(open_store(plan.job.output))
    for run_id in reversed(ledger.runs()[-_RUNS:]):
        started = ledger.run_file(run_id, "started.json") or {}
        here = plan.machine.address is not None or started.get("host") == socket.gethostname()
        if not here or started.get("generation") != plan.job.generation or not _alike(started, plan.machine):
            continue
        with suppress(ValidationError):
            report = RunReport.model_validate(ledger.run_file(run_id, "report.json") or {})
            if report.rows_new >= LEAST_ROWS and report.tokens and report.rows_per_s:
                return _speed_of(report)
    return None


def _speed_of(report: RunReport) -> Speed:
    took = report.seconds
    return Speed(
        start_s=took.start,
        end_s=max(0.0, took.total - took.start - report.tokens / report.tokens_per_s),
        tokens_per_s=report.tokens_per_s,
        rows_per_s=report.rows_per_s,
        layout=report.layout,
        batch_tokens=report.batch_tokens,
        source=f"run {report.run_id}",
    )


def _alike(started: dict[str, object], machine: Machine) -> bool:
    """Whether a run had a machine that is as fast as `machine`."""
    with suppress(ValidationError):
        had = Machine.model_validate(started.get("machine"))
        return had.model_dump(exclude=_NO_MATTER) == machine.model_dump(exclude=_NO_MATTER)
    return False


def expected(plan: Plan) -> tuple[float, str] | None:
    """The seconds that the run of `plan` will take, and who said so (RunReport.predicted_by): "plan" for `look_ahead`,
    else "former run", by its rows a second. None where neither can.
    """
    if (kept := take(plan)) is not None:
        return kept, "plan"
    try:
        speed = former_speed(plan)
    except HfbatchError:  # what is wrong with the output is told by who needs it
        return None
    if speed is None:
        return None
    rows = sum(shard.rows for shard in plan.todo)
    return round(speed.start_s + rows / speed.rows_per_s + speed.end_s, 1), "former run"


def keep(plan: Plan, made: Forecast) -> None:
    """Put a forecast where the run of this very plan finds it; best effort."""
    place = _place(plan)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"seconds": made.seconds}))
        kept = sorted(place.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-_KEPT]:
            file.unlink(missing_ok=True)


def take(plan: Plan) -> float | None:
    """The seconds that `keep` was given for this plan, which are forgotten with it."""
    place = _place(plan)
    try:
        seconds = float(json.loads(place.read_text())["seconds"])
        place.unlink(missing_ok=True)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return seconds


def _place(plan: Plan) -> Path:
    """Another one once a shard more is committed, or the machine is another."""
    left = [shard.id for shard in plan.todo]
    about = [open_store(plan.job.output).url(), plan.job.generation, left, plan.machine.model_dump(mode="json")]
    name = hashlib.sha256(canonical(about).encode()).hexdigest()[:32]
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hfbatch" / "forecasts" / f"{name}.json"

"""One actor, started as a run would start it, and rows of a sample through it: what starting takes, tokens a second.

On the device, with the threads and beside the Ray that the run will have. Nothing is written but to memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from hfbatch import columns as col
from hfbatch.cluster import Pool, connected
from hfbatch.errors import HfbatchError, SystemicError
from hfbatch.forecast import Speed
from hfbatch.job import Job
from hfbatch.planner import Plan
from hfbatch.preprocess import Start
from hfbatch.spec import Machine
from hfbatch.startup import uncollected

SECONDS = 10.0  # of measuring, about
FIRST = 16  # rows; each part has twice the last one's, so that the largest says most


@dataclass(frozen=True)
class Pace:
    """What one actor did with the rows."""

    tokens_per_s: float
    rows_per_s: float
    layout: str
    batch_tokens: int  # 0: not found yet


def trial(plan: Plan, rows: pa.Table, started: float | None = None) -> Speed:
    """Start and measure. `rows`: a block as the source gives it; `started`: when a run would have begun; default: now.

    Raises what a run would that cannot start: SpecError for weights that do not serve, SystemicError.
    """
    started = time.time() if started is None else started
    with connected(plan.machine) as pool:
        actor: Any = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus)(_Actor).remote()
        _answer(actor.load.remote(plan.job, plan.machine, pool))
        start_s = time.time() - started
        pace: Pace = _answer(actor.measure.remote(rows))
        ended = time.time()
        ray.kill(actor)
    actors = pool.size.max
    return Speed(
        start_s=start_s,
        end_s=time.time() - ended,
        tokens_per_s=actors * pace.tokens_per_s,
        rows_per_s=actors * pace.rows_per_s,
        layout=pace.layout,
        batch_tokens=pace.batch_tokens,
        source="trial",
    )


def _answer(call: Any) -> Any:
    """What an actor gives, or what it raised as it was raised there."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, HfbatchError):
            raise cause from error
        raise SystemicError(f"a trial of the model failed, as a run would: {cause!r}") from error
    except ray.exceptions.RayError as error:
        raise SystemicError(f"a trial of the model failed, as a run would: Ray: {error}") from error


class _Actor:
    """What Ray starts."""

    def load(self, job: Job, machine: Machine, pool: Pool) -> None:
        """The model, ready."""
        with uncollected():
            from hfbatch.chain import Chain  # torch, which only this process needs

            job = job.without_reuse()
            start = Start(job)
            staged = not (pool.cpu_steps_in_actor or start.preprocess.task.streams)
            self.before = start if staged else None
            self.chain = Chain(job, machine, pool.threads, staged=staged, gpu=pool.gpus > 0)

    def measure(self, rows: pa.Table) -> Pace:
        """Send `rows` through it, at most for some seconds."""
        ready = rows if self.before is None else self.before(rows)  # by other processes, in a run
        tokens_per_s, rows_per_s = pace_of(self.chain, ready)
        engine = next(part.engine for part in self.chain.parts if part.step in self.chain.steps)
        return Pace(tokens_per_s, rows_per_s, self.chain.layout, int(engine.budget) if engine.tuner.settled else 0)


def pace_of(step: Callable[[pa.Table], pa.Table], rows: pa.Table, seconds: float = SECONDS) -> tuple[float, float]:
    """(tokens, rows) a second, over parts of `rows` in an order of chance, each as large as all before it.

    Only the last counts, which is as good as half of them all: before it every shape is new, and the size of a batch
    still being found. Ends with the rows, or before a part that would take it past `seconds`.
    """
    order, start, spent = np.random.default_rng(0).permutation(len(rows)), 0, 0.0
    while True:
        index = np.sort(order[start : 2 * start or FIRST])
        began = time.perf_counter()
        made = step(col.part(rows, index))
        took = max(time.perf_counter() - began, 1e-9)
        start, spent = start + len(index), spent + took
        if start == len(rows) or spent + 2 * took > seconds:
            return max(_tokens(made), 1.0) / took, len(index) / took


def _tokens(made: pa.Table) -> float:
    """Of the first model: those of the others are not known before."""
    stats = col.ticket_of(made).stats
    return float(next(iter(stats.get("steps", {"": stats}).values()))["tokens"])

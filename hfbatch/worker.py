"""What an actor of the pool does with blocks: one is in the models, and the next is made ready for them meanwhile.

Ray calls the actor from several threads for that. They take turns: in the line, where a block becomes model inputs, and
in the models. The driver is told at each turn, so that it knows over which shard a process died.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray

from hfbatch import tasks
from hfbatch.cluster import Pool, throttled
from hfbatch.columns import errors_so_far, ticket_of
from hfbatch.errors import SystemicError
from hfbatch.job import Job
from hfbatch.metrics import Metrics
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Start
from hfbatch.spec import Machine
from hfbatch.startup import uncollected
from hfbatch.tally import DeviceLost, Stopped
from hfbatch.watchdog import Watchdog

RETRIES = 2  # of a block whose process died, in one pass; Ray Data's default, for tasks and actors, is for ever


@dataclass(frozen=True)
class Run:
    """What the stages need to know."""

    job: Job
    machine: Machine
    id: str
    plan: int  # number of the agreed plan
    proven: bool  # results committed before this run show that the code works
    budgets: Mapping[str, Mapping[str, int]]  # step -> device -> tokens of a batch, as earlier runs found them


def prepares(job: Job, pool: Pool) -> bool:
    """Whether the step before the model runs beside it: on CPUs, and where inputs are too large to send."""
    return pool.cpu_steps_in_actor or tasks.find(job.chain[0].task).streams


def calls_at_once(run: Run, pool: Pool) -> int:
    """How many blocks an actor has in hand: two where one can be made ready while the other is in the model.

    Not where large inputs are made a few rows at a time anyway, where a block is to know the results of the one
    before, and where what is compiled stays with a thread.
    """
    first = tasks.find(run.job.chain[0].task)
    alone = first.streams or run.job.remembers or len(run.job.chain) > 1 or run.machine.compile
    return 2 if pool.cpu_steps_in_actor and not alone else 1


class Worker:
    """A callable of blocks that keeps the models of a job resident; over a shard that a process died of, in a child."""

    def __init__(self, run: Run, pool: Pool, tally: Any) -> None:
        """Raises what loading the models does; SystemicError where too many processes died of it."""
        self.run, self.tally = run, tally
        self._line, self._models = threading.Lock(), threading.Lock()
        self._ahead, self._watchdog = calls_at_once(run, pool) > 1, Watchdog(run.machine.row_timeout_s)
        with uncollected():
            self._load(pool)

    def _load(self, pool: Pool) -> None:
        from hfbatch.chain import Chain  # torch, which only this process needs

        run, tally = self.run, self.tally
        _refuse_to_load_for_ever(ray.get(tally.load.remote()), pool)
        self.metrics = Metrics(run.job.name, run.job.task)
        report = self.metrics.beside(throttled(tally, f"{socket.gethostname()}:{os.getpid()}"))
        staged = not prepares(run.job, pool)
        self.chain = Chain(run.job, run.machine, pool.threads, staged=staged, report=report, gpu=pool.gpus > 0)
        self.chain.recall(run.budgets)
        if run.proven or ray.get(tally.works.remote()):
            self.chain.prove()
        self.finish = Finish(run.job, run.id) if pool.cpu_steps_in_actor else None
        ray.get(tally.loaded.remote())

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with what the models made of it. Raises what Chain does; Stopped where the run is to end."""
        with self._line:
            ready = self._made_ready(block) if self._ahead and self._models.locked() else None
            self._models.acquire()
        try:
            if ready is not None and ray.get(self.tally.stopped.remote("predict")):
                raise Stopped
            return self._through_models(block if ready is None else ready, ready is not None)
        finally:
            self._models.release()

    @cached_property
    def _start(self) -> Start:
        """The line's, with a task of its own: a tokenizer may not be set up by one thread while another uses it."""
        return Start(self.run.job, self.run.job.chain[0].make_task(own=True))

    def _made_ready(self, block: pa.Table) -> pa.Table | None:
        """The block with model inputs; None where a process died over it, or beside it, as both are suspects then."""
        shard = ticket_of(block).shard
        with self._entered(shard) as died, self._watchdog:
            ready = None if died else self._start(block)
        ray.get(self.tally.leave.remote(shard))
        return ready

    def _through_models(self, block: pa.Table, ready: bool) -> pa.Table:
        shard = ticket_of(block).shard
        with self._entered(shard) as died:
            made = self.chain(block, died > 0, ready)
            ticket = ticket_of(made)
            if self.finish is not None:
                with self.chain.last.watchdog:
                    made = self.finish(made)
        self.metrics.record(self.chain.meter)
        errors = made["error"] if self.finish is not None else errors_so_far(made)
        self.metrics.record_errors(errors.drop_null().to_pylist())
        ray.get(self.tally.leave.remote(shard, (ticket.rows + ticket.carried, int(ticket.stats["errors"]))))
        return made

    @contextmanager
    def _entered(self, shard: str) -> Iterator[int]:
        """Work on a shard is under way inside; gives how many processes died over it. Who comes through says so."""
        died = ray.get(self.tally.enter.remote(shard))
        try:
            yield died
        except (SystemExit, DeviceLost):
            raise  # this process ends of it, which is to be counted
        except BaseException:
            ray.get(self.tally.leave.remote(shard))
            raise


def _refuse_to_load_for_ever(begun: int, pool: Pool) -> None:
    """SystemicError once each actor may have died RETRIES times over it: Ray begins anew each time, without end.

    `begun`: loads since the last that came through. As many as the pool has actors may be under way.
    """
    if begun > pool.size.max * (1 + RETRIES):
        raise SystemicError(
            f"{begun - pool.size.max} processes or more died while they loaded the model, and none came through; was "
            "there too little memory for it? Take fewer actors a node, or larger nodes, and run the same command again"
        )

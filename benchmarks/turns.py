"""Take turns: every route on the same rows, one at a time, over and over, so that what disturbs the machine hits all.

A route runs for about as long as it is given, on rows that are spread over the corpus's lengths; those of a slow route
are among those of a faster one. Runs that cannot be cut stand between two turns of all the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.corpora import GOLDEN, spread
from benchmarks.machine import BusyShare
from benchmarks.setting import Ran, Route, Setting
from benchmarks.worker import RouteFailed, Worker


@dataclass(frozen=True)
class Record:
    """One turn of one route, without its values."""

    route: str
    repeat: int
    rows: int
    seconds: float
    wall: float | None
    tokens: int
    padded: int
    flops_per_s: float
    peak_bytes: int
    busy: float | None  # share of a GPU's time
    notes: dict[str, Any]


@dataclass
class Outcome:
    """All turns, the values by route and row, and which routes could not run, with the reason."""

    records: list[Record] = field(default_factory=list)
    values: dict[str, dict[int, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, route: str, repeat: int, ran: Ran, busy: float | None) -> None:
        """Keep a turn; of a row that a route saw more than once, its first value."""
        known = self.values.setdefault(route, {})
        for row, value in zip(ran.rows, ran.values, strict=True):
            known.setdefault(row, value)
        counts = (ran.tokens, ran.padded, ran.flops_per_s, ran.peak_bytes, busy, ran.notes)
        self.records.append(Record(route, repeat, len(ran.rows), ran.seconds, ran.wall, *counts))


class Turns:
    """Workers, and whose turn it is."""

    def __init__(self, setting: Setting, routes: Sequence[Route], seconds: float) -> None:
        """`seconds`: about how long a turn of a route is."""
        self.setting, self.seconds, self.outcome = setting, seconds, Outcome()
        self.parts = [route for route in routes if not route.whole]
        self.wholes = [route for route in routes if route.whole]
        self.lengths = setting.lengths()
        self.order = spread(self.lengths)
        self.workers: dict[str, Worker] = {}
        self.rows: dict[str, int] = {}  # of a turn

    def run(self, repeats: int) -> Outcome:
        """`repeats` times: all parts, the first whole run, all parts again, the other whole runs."""
        with ExitStack() as stack:
            for route in self.parts:
                self._start(route, stack)
            for repeat in range(repeats):
                self._all_parts(repeat, 2 * repeat)
                for number, route in enumerate(self.wholes):
                    self._whole(route, repeat)
                    if number == 0:
                        self._all_parts(repeat, 2 * repeat + 1)
        return self.outcome

    def chosen(self, count: int, turn: int) -> list[int]:
        """`count` rows in random order: the first of those that a route with a larger count gets in the same turn."""
        start = int((turn * GOLDEN) % 1.0 * len(self.order))
        rows = np.roll(self.order, -start)[:count]
        return np.random.default_rng(turn).permutation(rows).tolist()

    def _start(self, route: Route, stack: ExitStack) -> None:
        """Start its process, warm it up, and see how many rows fill a turn."""
        try:
            worker = stack.enter_context(Worker(route, self.setting))
            few = min(len(self.order), max(1, route.least // 4))
            ran = worker.run(self.chosen(few, 0))
        except RouteFailed as error:
            self._fail(route, error)
            return
        fitting = int(len(ran.rows) / ran.seconds * self.seconds)
        self.rows[route.name] = min(len(self.order), max(route.least, -(-fitting // 32) * 32))
        self.workers[route.name] = worker
        tell(f"{route.name}: {self.rows[route.name]} rows a turn")

    def _all_parts(self, repeat: int, turn: int) -> None:
        for route in self.parts:
            worker = self.workers.get(route.name)
            if worker is not None:
                self._turn(worker, repeat, self.chosen(self.rows[route.name], turn))

    def _whole(self, route: Route, repeat: int) -> None:
        if route.name in self.outcome.failed:
            return
        rows = list(range(len(self.order))) if route.share == 1 else self.chosen(int(len(self.order) * route.share), 0)
        try:
            with Worker(route, self.setting) as worker:
                self._turn(worker, repeat, rows)
        except RouteFailed as error:
            self._fail(route, error)

    def _turn(self, worker: Worker, repeat: int, rows: list[int]) -> None:
        route = worker.route
        try:
            with BusyShare() as busy:
                ran = worker.run(rows)
        except RouteFailed as error:
            self.workers.pop(route.name, None)
            self._fail(route, error)
            return
        self.outcome.add(route.name, repeat, ran, busy.share)
        done = (
            f"{ran.flops_per_s / 1e9:,.0f} GFLOP/s" if ran.flops_per_s else f"{len(ran.rows) / ran.seconds:,.1f} rows/s"
        )
        tell(f"{repeat + 1}: {route.name}: {len(ran.rows)} rows, {ran.seconds:.1f} s, {done}")

    def _fail(self, route: Route, error: RouteFailed) -> None:
        self.outcome.failed[route.name] = str(error).splitlines()[-1]
        tell(str(error))


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)

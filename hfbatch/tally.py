"""What workers tell the driver while they run, and how it asks them to stop. Plain Python; Ray makes an actor of it.

It outlives the workers, and so knows over which shard one of them died: work on it was entered and never left.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from hfbatch.errors import HfbatchError


@dataclass
class Meter:
    """What one actor has done since it began."""

    rows: int = 0
    sequences: int = 0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    forward_s: float = 0.0
    batch_s: float = 0.0  # of every batch from its start to its results; more than forward_s where batches overlap
    errors: int = 0

    def __add__(self, other: Meter) -> Meter:
        return Meter(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    def __sub__(self, other: Meter) -> Meter:
        return Meter(**{name: getattr(self, name) - getattr(other, name) for name in vars(self)})


Report: TypeAlias = Callable[[Meter], None] | None


@dataclass(frozen=True)
class Failure:
    """An exception in a worker."""

    step: str
    message: str  # its type and text
    trace: str
    error: HfbatchError | None = None  # the exception itself, if it is one of ours
    fatal: bool = False  # no other shard can escape it


@dataclass
class Snapshot:
    """What the workers have told so far: meters by worker, failures, in the order they came."""

    meters: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    heard: int = 0  # how often workers have spoken of shards since the first one was in a model
    foreseen: tuple[float, str] | None = None  # seconds of the whole run, and how they were known beforehand

    def total(self, name: str) -> float:
        """Sum over workers."""
        return sum(meter.get(name, 0) for meter in self.meters.values())

    @property
    def fatal(self) -> HfbatchError | None:
        """The first failure that ends the run."""
        return next((failure.error for failure in self.failures if failure.fatal), None)


class Tally:
    """Workers report to it, the driver reads it and asks them to stop through it."""

    def __init__(self) -> None:
        self._snapshot, self._stopped, self._draining = Snapshot(), False, False
        self._busy = set[str]()  # shards between the model and their commit
        self._entered: Counter[str] = Counter()  # shard -> how often work on it began that has not ended
        self._results: dict[str, tuple[int, int]] = {}  # shard -> (rows, errors)
        self._loading = 0

    def load(self) -> int:
        """A process begins to load the model; returns how many have since one last came through with it."""
        self._loading += 1
        return self._loading

    def loaded(self) -> None:
        """A process has loaded the model."""
        self._loading = 0

    def enter(self, shard: str) -> int:
        """A process begins to work on a shard; returns how many have died over it."""
        self._snapshot.heard += 1
        self._busy.add(shard)
        self._entered[shard] += 1
        return self._entered[shard] - 1

    def leave(self, shard: str, result: tuple[int, int] | None = None) -> None:
        """Work on a shard is over, whatever came of it. `result`: its rows and errors, counted once however often."""
        self._snapshot.heard += 1
        self._entered[shard] = max(0, self._entered[shard] - 1)
        if result is None:
            self._busy.discard(shard)
        else:
            old = self._results.get(shard, (0, 0))
            total = self._snapshot.meters.setdefault("shards", {"rows": 0, "errors": 0})
            total["rows"] += result[0] - old[0]
            total["errors"] += result[1] - old[1]
            self._results[shard] = result

    def finish(self, shard: str) -> None:
        """A shard that left with a result is committed, or could not be."""
        self._snapshot.heard += 1
        self._busy.discard(shard)

    def works(self) -> bool:
        """Whether any row has had a result in this run."""
        return any(rows > errors for rows, errors in self._results.values())

    def update(self, worker: str, meter: dict[str, float]) -> bool:
        """Take a worker's running totals; True: stop."""
        self._snapshot.heard += 1
        self._snapshot.meters[worker] = meter
        return self._stopped

    def fail(self, failure: bytes) -> None:
        """Take a pickled Failure; a fatal one stops everybody."""
        loaded: Failure = pickle.loads(failure)
        self._snapshot.failures.append(loaded)
        self._stopped = self._stopped or loaded.fatal

    def stop(self) -> None:
        """Ask all workers to stop at their next batch."""
        self._stopped = True

    def stopped(self, step: str = "write") -> bool:
        """Whether workers are asked to stop, before they begin `step`."""
        return self._stopped or (self._draining and step != "write")

    def drain(self) -> bool:
        """Let no new shard into the model. True while shards are on their way from there to their commit."""
        self._draining = True
        return bool(self._busy)

    def snapshot(self) -> Snapshot:
        """All that was reported."""
        return self._snapshot


class DeviceLost(Exception):
    """No later batch of this process can succeed; another process has to take its place."""


class Stopped(Exception):
    """The driver asked this worker to stop; its shard stays uncommitted."""

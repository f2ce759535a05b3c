"""What workers tell the driver while they run, and how it asks them to stop. Plain Python; Ray makes an actor of it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

from hfbatch.errors import HfbatchError


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
        self._snapshot, self._stopped = Snapshot(), False

    def update(self, worker: str, meter: dict[str, float]) -> bool:
        """Take a worker's running totals; True: stop."""
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

    def stopped(self) -> bool:
        """Whether workers are asked to stop."""
        return self._stopped

    def snapshot(self) -> Snapshot:
        """All that was reported."""
        return self._snapshot


class Stopped(Exception):
    """The driver asked this worker to stop; its shard stays uncommitted."""

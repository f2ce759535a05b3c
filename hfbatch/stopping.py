"""How a run is asked to end early: by a signal, by max_runtime, by another run that took its lease.

A request drains: what is in the model gets committed, within `grace_s`, and nothing new begins. A second signal does
not wait. Either way the same command resumes.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hfbatch.errors import HfbatchError, Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether, why and until when a run is ending. Asked by the watch's thread, told by the main thread's signals."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.reason: HfbatchError | None = None
        self._since = 0.0
        self._over = self._waiting = False

    def request(self, reason: HfbatchError) -> None:
        """Ask the run to drain; the first reason stands."""
        if self.reason is None:
            self._since = time.monotonic()
            self.reason = reason

    @property
    def overdue(self) -> bool:
        """Whether the grace period is over."""
        return self.reason is not None and time.monotonic() - self._since > self.grace_s

    def end(self) -> None:
        """Make the main thread leave `waiting`; for another thread to call. Elsewhere the pass has to end by itself."""
        self._over = True
        main = threading.main_thread().ident
        if main is not None and signal.getsignal(signal.SIGTERM) == self.told:
            signal.pthread_kill(main, signal.SIGTERM)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What `end` ends."""
        self._waiting = True
        try:
            yield
        except Drained:
            pass
        finally:
            self._waiting = False

    def told(self, number: int, _frame: Any) -> None:
        """The handler of the signals: the first is a request, a second does not wait."""
        if self._over:
            self._over = False
            if self._waiting:
                raise Drained
        elif self.reason is None:
            self.request(Interrupted(number))
        else:
            raise Interrupted(number)


class Drained(Exception):
    """Nothing is left to wait for."""


@contextmanager
def interruptible(stopping: Stopping) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM are requests. Only the main thread may set handlers; in others nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stopping.told) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

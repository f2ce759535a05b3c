"""A process that is silent for too long is ended, even when a library holds the interpreter's lock and never returns.

The clock is a C thread of faulthandler: it needs no lock of Python's, writes where every thread stands to stderr and
leaves with status 1. Starting it costs 70 microseconds, so it is not started anew for every batch: it runs a
twentieth longer than asked for, and is renewed once that twentieth has passed. A process has one such clock: it runs
to the end that comes first, where several threads are at work.
"""

from __future__ import annotations

import faulthandler
import math
import threading
import time

SLACK = 0.05  # of the limit
STDERR = 2  # the descriptor: sys.stderr may be anything
_ends: dict[int, float] = {}  # of contexts that are open, by their watchdog: when the process is ended, by `monotonic`
_one_at_a_time = threading.Lock()


class Watchdog:
    """A context around work; outside it a process may do nothing for as long as it likes.

    Each of several threads has its own; those of one do not nest.
    """

    def __init__(self, seconds: float | None) -> None:
        """The longest time from the beginning to the end, or to the next `renew`; None: no limit."""
        self.seconds = seconds
        self._renewable = math.inf  # when a start of the clock is worth its price; outside the context: never

    def __enter__(self) -> None:
        self._renewable = -math.inf
        self.renew()

    def __exit__(self, *_: object) -> None:
        self._renewable = math.inf
        if self.seconds is not None:
            _set(id(self), None)

    def renew(self, least: float = 0.0) -> None:
        """Another piece of work begins: from now on there are `seconds` again. Outside the context: nothing.

        `least`: for this piece, if that is more; the next renewal gives `seconds` as ever.
        """
        now = time.monotonic()
        if self.seconds is not None and self._renewable < math.inf and (least or now >= self._renewable):
            _set(id(self), now + max(self.seconds, least) * (1 + SLACK))
            self._renewable = now if least else now + self.seconds * SLACK


def _set(own: int, end: float | None) -> None:
    """The clock for all that is under way, of which `own` may go on until `end`, or is over."""
    with _one_at_a_time:
        if end is None:
            del _ends[own]
        else:
            _ends[own] = end
        if _ends:
            left = max(min(_ends.values()) - time.monotonic(), 1e-3)
            faulthandler.dump_traceback_later(left, exit=True, file=STDERR)
        else:
            faulthandler.cancel_dump_traceback_later()

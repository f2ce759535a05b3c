"""Room: how much large work (images, sounds) may be in hand at once, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Room:
    """Lets work in while all of it together costs at most `size`; what costs more on its own goes alone."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0  # taken: the cost of what is in hand
        self._changed = Condition()

    @contextmanager
    def take(self, cost: int) -> Iterator[None]:
        """Wait until there is room for `cost`; it is taken until the block ends. Not to be nested."""
        with self._changed:
            self._changed.wait_for(lambda: not self.taken or self.taken + cost <= self.size)
            self.taken += cost
        try:
            yield
        finally:
            with self._changed:
                self.taken -= cost
                self._changed.notify_all()

"""A call that fails, for tests of what is tried again and what is not."""

from __future__ import annotations

from collections.abc import Callable


def failing(calls: list[int], error: Exception, times: int = 1 << 30) -> Callable[..., str]:
    """A function that fails so many times, and counts its calls."""

    def call(*_: object) -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return call

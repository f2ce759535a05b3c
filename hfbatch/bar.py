"""How far a call is, as a bar: in a terminal on stderr, in a notebook below its cell; elsewhere nothing is shown.

In a notebook the bar is output like any other: it needs no widgets, and its last state stays in the file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_EVERY_S = 0.25  # a notebook is told what has changed


class Bar:
    """What a call tells of itself, for rich to draw."""

    def __init__(self, title: str, rows: int, changed: Callable[[], None] = lambda: None) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[says]}"),
        )
        self.drawn = Progress(*columns, console=Console(stderr=True))
        self.changed = changed
        self.says, self._rows, self._done, self._failed = "", rows, 0, 0
        self._since: float | None = None  # when rows began to go through
        self._task = self.drawn.add_task(title, total=rows, says="")

    def wait(self, phase: str) -> None:
        """What is done before rows can go through: "loading the model"."""
        self._since = None
        self._say(phase)

    def tell(self, done: int, failed: int | None = None) -> None:
        """Rows that are done by now, and those of them that failed; None: as before."""
        self._since = self._since or time.monotonic()
        self._done, self._failed = done, self._failed if failed is None else failed
        self._say(words(done, self._rows, self._failed, time.monotonic() - self._since))

    def _say(self, says: str) -> None:
        self.says = says
        self.drawn.update(self._task, completed=self._done, says=says)
        self.changed()


def words(done: int, rows: int, failed: int, seconds: float) -> str:
    """Rate, time left (in the end: taken) and errors."""
    rate = done / seconds if seconds else 0.0
    pieces = [f"{rate:,.{int(rate < 10)}f} rows/s"] if rate else []
    if done == rows:
        pieces.append(f"{seconds:,.1f} s")
    elif rate:
        pieces.append(f"{(rows - done) / rate:,.0f} s left")
    return ", ".join([*pieces, *([f"{failed:,} failed"] if failed else [])])


@contextmanager
def shown(title: str, rows: int, wanted: bool = True) -> Iterator[Bar]:
    """A Bar, shown where there is somewhere to show it. Its last state stays."""
    bar = Bar(title, rows)
    console = bar.drawn.console
    if wanted and rich.get_console().is_jupyter:
        with _in_notebook(bar):
            yield bar
    elif wanted and console.is_terminal and not console.is_dumb_terminal:
        with bar.drawn:
            yield bar
    else:
        yield bar


@contextmanager
def _in_notebook(bar: Bar) -> Iterator[None]:
    """The bar as an output of the cell, updated a few times a second."""
    drawn: Any = bar.drawn

    def bundle() -> dict[str, str]:
        return {**drawn._repr_mimebundle_((), ()), "text/plain": bar.says}

    show: Any = sys.modules["IPython"].display.display
    handle, last = show(bundle(), raw=True, display_id=True), time.monotonic()

    def changed() -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            handle.update(bundle(), raw=True)

    bar.changed = changed
    try:
        yield
    finally:
        handle.update(bundle(), raw=True)

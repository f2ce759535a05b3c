"""Progress on stderr: one live line on a terminal, one plain line every 30 s elsewhere; none beside JSON lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from hfbatch import logs
from hfbatch.words import clock as clock_words

if TYPE_CHECKING:
    from hfbatch.planner import Plan
    from hfbatch.report import Progress

PLAIN_EVERY_S = 30.0
_BAR = 20  # columns
_PHASES = {"starting": "starting", "loading": "loading the model", "publishing": "publishing"}

Clock = Callable[[], float]


@contextmanager
def watching(
    plan: Plan, console: Console | None = None, clock: Clock = time.monotonic
) -> Iterator[Callable[[Progress], None]]:
    """Gives what `pipeline.run` takes as `watch`."""
    console = console or Console(stderr=True, highlight=False)
    if not plan.todo or logs.wanted():
        yield lambda progress: None
    elif console.is_terminal and not console.is_dumb_terminal:
        line = _LiveLine(plan.job.name, clock)
        with Live(line, console=console, transient=True, redirect_stdout=False, vertical_overflow="crop"):
            yield line.show
    else:
        yield _plain(plan.job.name, console, clock)


def words(progress: Progress, elapsed: float, width: int | None = None) -> str:
    """Rows, rates, padding, errors and the time left; without the least of them where `width` columns do not do."""
    rows = f"{progress.rows_done:,}/{progress.rows_total:,} rows"
    if progress.phase in _PHASES or not progress.rows_per_s:
        return f"{_PHASES.get(progress.phase, progress.phase)}, {rows}, {clock_words(elapsed)}"
    pieces = {"rows": rows, "rate": f"{progress.rows_per_s:,.0f} rows/s"}
    if progress.tokens_per_s:
        pieces["tokens"] = f"{progress.tokens_per_s:,.0f} tokens/s"
        pieces["padding"] = f"padding {progress.padding_share:.1%}"
    pieces["errors"] = f"{progress.errors:,} error{'' if progress.errors == 1 else 's'}"
    if progress.eta_s is not None:
        pieces["left"] = f"{clock_words(progress.eta_s)} left"
    for least in ("padding", "tokens", "rate"):
        if width is not None and len(", ".join(pieces.values())) > width:
            pieces.pop(least, None)
    return ", ".join(pieces.values())


class _LiveLine:
    """The line as it should stand now; rich asks for it four times a second, so that the clock moves."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.clock, self.began = name, clock, clock()
        self.progress: Progress | None = None

    def show(self, progress: Progress) -> None:
        """What `pipeline.run` calls."""
        self.progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.text(options.max_width), no_wrap=True, overflow="ellipsis")

    def text(self, width: int) -> str:
        """Name, bar and words, or as much of them as has room in one line."""
        elapsed = self.clock() - self.began
        if self.progress is None:
            return f"{self.name}  starting, {clock_words(elapsed)}"
        full = words(self.progress, elapsed)
        for line in (f"{self.name}  {_bar(self.progress)}  {full}", f"{self.name}  {full}"):
            if cell_len(line) <= width:
                return line
        return words(self.progress, elapsed, width)


def _bar(progress: Progress) -> str:
    share = progress.rows_done / progress.rows_total if progress.rows_total else 0.0
    filled = min(_BAR, int(share * _BAR))
    return f"[{'#' * filled}{'-' * (_BAR - filled)}]"


def _plain(name: str, console: Console, clock: Clock) -> Callable[[Progress], None]:
    began = clock()
    last = began - PLAIN_EVERY_S

    def show(progress: Progress) -> None:
        nonlocal last
        now = clock()
        if now - last >= PLAIN_EVERY_S:
            last = now
            console.print(f"{name}: {words(progress, now - began)}", markup=False, soft_wrap=True)

    return show

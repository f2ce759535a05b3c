"""Progress on stderr: one live line on a terminal, one plain line every 30 s elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from hfbatch.planner import Plan
    from hfbatch.report import Progress

PLAIN_EVERY_S = 30.0


@contextmanager
def watching(plan: Plan, console: Console | None = None) -> Iterator[Callable[[Progress], None]]:
    """Gives what `pipeline.run` takes as `watch`."""
    console = console or Console(stderr=True, highlight=False)
    if not plan.todo:
        yield lambda progress: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
        with Bar(*columns, console=console, transient=True) as bar:
            job = bar.add_task(plan.job.name, total=plan.rows, line="starting")
            yield _on_terminal(bar, job)
    else:
        yield _plain(plan.job.name, console)


def line(progress: Progress) -> str:
    """Rows, rates, padding, errors and the time left."""
    if not progress.rows_per_s:
        return f"{progress.phase}, {progress.rows_done:,} of {progress.rows_total:,} rows"
    eta = "" if progress.eta_s is None else f", {_clock(progress.eta_s)} left"
    return (
        f"{progress.rows_done:,} of {progress.rows_total:,} rows, {progress.rows_per_s:,.0f} rows/s, "
        f"{progress.tokens_per_s:,.0f} tokens/s, padding {progress.padding_share:.1%}, {progress.errors:,} errors{eta}"
    )


def _on_terminal(bar: Bar, job: TaskID) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        bar.update(job, completed=progress.rows_done, total=progress.rows_total, line=line(progress))

    return show


def _plain(name: str, console: Console) -> Callable[[Progress], None]:
    last = time.monotonic() - PLAIN_EVERY_S

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_EVERY_S:
            last = time.monotonic()
            console.print(f"{name}: {line(progress)}", markup=False, soft_wrap=True)

    return show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

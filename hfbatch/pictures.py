"""The charts of a report: one for each thing that it has numbers for, in the order a reader asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from hfbatch import charts
from hfbatch.words import brief, count, duration

if TYPE_CHECKING:
    from hfbatch.report import RunReport

STEPS = ("read", "tokenise", "forward", "postprocess", "write")


def pictures(report: RunReport) -> list[Markup]:
    """The charts that a report has numbers for."""
    drawn, new = list[Markup](), f"of the {count(report.shards_new, 'shard')} this run wrote"
    if len(report.curve) > 1:
        rates = throughput(report.curve)
        drawn.append(charts.line(rates, "Throughput", about="rows/s since the first batch", unit="rows/s"))
    took = {"start": report.seconds.start} | {step: getattr(report.seconds, step) for step in STEPS}
    if report.rows_new and any(took.values()):
        on = f"seconds; after the start summed over {count(report.actors, 'actor')}"
        show = charts.bars(took, "Where the time went", about=on, show=lambda seconds, _: duration(seconds))
        drawn.append(show)
    if report.token_lengths:
        counts, edges = trimmed(report.token_lengths)
        drawn.append(charts.histogram(counts, edges, "Token lengths", about="sequences by their tokens"))
    if report.padded_tokens:
        parts = {"tokens": float(report.tokens), "padding": float(report.padded_tokens - report.tokens)}
        drawn.append(
            charts.stacked(parts, "Padding", about=report.layout, colours=(charts.MAIN, charts.SOFT), show=_tokens)
        )
    if report.labels:
        values = {label: float(rows) for label, rows in report.labels.items()}
        drawn.append(charts.bars(values, "Labels", about=f"rows {new}"))
    if report.scores:
        edges = [f"{bin / len(report.scores):.2g}" for bin in range(len(report.scores) + 1)]
        drawn.append(charts.histogram(report.scores, edges, "Scores", about=f"rows {new}"))
    if report.errors:
        errors = {code: float(rows) for code, rows in report.errors.items()}
        drawn.append(charts.bars(errors, "Errors", about="failed rows of the whole output", colour=charts.BAD))
    return drawn


def throughput(curve: Sequence[tuple[float, int]], most: int = 60) -> list[tuple[float, float]]:
    """(seconds, rows/s): the slope of `curve` in at most that many equal parts of the time, each at its middle.

    The first and the last value stand at the ends, so that the line has the length of the run.
    """
    total = curve[-1][0]
    if total <= 0:
        return []
    parts = min(most, max(len(curve) - 1, 2))
    times = np.linspace(0, total, parts + 1)
    finished = np.interp(times, [seconds for seconds, _ in curve], [rows for _, rows in curve])
    rates = np.diff(finished) / (total / parts)
    middles = (times[:-1] + times[1:]) / 2
    inner = [(float(time), float(rate)) for time, rate in zip(middles, rates, strict=True)]
    return [(0.0, inner[0][1]), *inner, (total, inner[-1][1])]


def trimmed(bins: Sequence[int]) -> tuple[list[int], list[str]]:
    """Token lengths without the empty bins before the first: the counts, and the edges in words."""
    first = next((i for i, rows in enumerate(bins) if rows), 0)
    edges = [0, *(2**i for i in range(len(bins)))][first:]
    words = [brief(edge) if edge < 1024 else f"{edge // 1024}k" for edge in edges]
    return list(bins[first:]), [*words[:-1], "more" if len(bins) > 15 else words[-1]]


def _tokens(value: float, total: float) -> str:
    return f"{value:,.0f} ({value / total:.1%})"

"""Turns to figures: rates, ratios by repeat and their medians, shares of the limit, agreement of values.

All ratios compare turns of one repeat, which lie minutes apart; the median is over repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.benches import Gate
from benchmarks.turns import Outcome, Record


@dataclass(frozen=True)
class Ratio:
    """A gate and how it came out; `by_repeat` are the ratios, `against` the route they are to."""

    gate: Gate
    against: str
    by_repeat: list[float]

    @property
    def median(self) -> float:
        """Of the repeats."""
        return median(self.by_repeat)

    @property
    def passed(self) -> bool:
        """As it is shown: at two decimals."""
        return round(self.median, 2) >= self.gate.least


@dataclass(frozen=True)
class Agreement:
    """A route's values beside the reference's, on the rows that both had."""

    rows: int
    cosine: float | None = None  # the smallest, of vectors
    equal: int = 0  # rows with the same labels, answer or text
    difference: float = 0.0  # the largest, of the scores of equal ones

    def __str__(self) -> str:
        if not self.rows:
            return ""
        if self.cosine is not None:
            return f"cosine {self.cosine:.6f}"
        return f"{self.equal} of {self.rows}" + (f", ±{self.difference:.0e}" if self.difference else "")


def rate(records: Sequence[Record], route: str, repeat: int | None = None) -> float:
    """Rows per second of a route in one repeat, all its turns together; without `repeat` the median of them."""
    mine = [r for r in records if r.route == route and r.rows]
    if repeat is None:
        repeats = sorted({r.repeat for r in mine})
        return median(rate(records, route, number) for number in repeats) if repeats else 0.0
    mine = [r for r in mine if r.repeat == repeat]
    return sum(r.rows for r in mine) / sum(r.seconds for r in mine) if mine else 0.0


def ratios(records: Sequence[Record], gates: Sequence[Gate]) -> list[Ratio]:
    """What can be judged: gates of which both sides ran."""
    found = []
    for gate in gates:
        names = _routes(records, gate.route)
        rated = {name: rate(records, name) for name in names}
        if rated and rate(records, gate.ours):
            best = max(rated, key=lambda name: rated[name])
            both = sorted(_repeats(records, gate.ours) & _repeats(records, best))
            found.append(Ratio(gate, best, [rate(records, gate.ours, n) / rate(records, best, n) for n in both]))
    return found


def limit_shares(records: Sequence[Record], flops_a_row: float) -> dict[str, list[float]]:
    """Of each route and repeat: FLOPs on real tokens per second, over the rate of bare matrix products in it."""
    found: dict[str, list[float]] = {}
    for repeat in sorted(_repeats(records, "gemm")):
        limit = median(r.flops_per_s for r in records if r.route == "gemm" and r.repeat == repeat)
        for route in dict.fromkeys(r.route for r in records if r.rows and r.repeat == repeat):
            found.setdefault(route, []).append(rate(records, route, repeat) * flops_a_row / limit)
    return found


def agreement(outcome: Outcome, route: str, reference: str) -> Agreement:
    """How a route's values compare with the reference's."""
    made, right = outcome.values.get(route, {}), outcome.values.get(reference, {})
    shared = sorted(made.keys() & right.keys())
    pairs = [(made[row], right[row]) for row in shared]
    if not pairs or route == reference:
        return Agreement(0)
    if isinstance(pairs[0][0], np.ndarray):
        return Agreement(len(pairs), min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs))
    equal = [(a[1], b[1]) for a, b in pairs if a[0] == b[0]]
    return Agreement(len(pairs), None, len(equal), max((abs(a - b) for a, b in equal), default=0.0))


def spread_of(values: Sequence[float]) -> str:
    """The median, and from least to most where there are several."""
    text = f"{median(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f} to {max(values):.2f})"


def last_note(records: Sequence[Record], route: str, name: str) -> Any:
    """A note of a route's last turn that has it; None without."""
    return next((r.notes[name] for r in reversed(records) if r.route == route and name in r.notes), None)


def _routes(records: Sequence[Record], name: str) -> list[str]:
    """The route of this name, else those whose names begin so."""
    names = list(dict.fromkeys(r.route for r in records if r.rows))
    return [name] if name in names else [known for known in names if known.startswith(name)]


def _repeats(records: Sequence[Record], route: str) -> set[int]:
    return {r.repeat for r in records if r.route == route}

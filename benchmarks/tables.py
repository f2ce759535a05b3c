"""Figures as Markdown, for RESULTS.md, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from benchmarks.benches import OURS, Bench
from benchmarks.figures import Ratio, agreement, last_note, limit_shares, rate, ratios, spread_of
from benchmarks.setting import Setting
from benchmarks.turns import Outcome


class Result:
    """A benchmark that ran."""

    def __init__(
        self, bench: Bench, setting: Setting, outcome: Outcome, lengths: np.ndarray, flops_a_row: float | None
    ) -> None:
        """`flops_a_row`: of the model on real tokens, where they are known."""
        self.bench, self.setting, self.outcome, self.lengths = bench, setting, outcome, lengths
        records = outcome.records
        self.ratios = ratios(records, bench.gates)
        self.shares = limit_shares(records, flops_a_row) if flops_a_row else {}
        for gate in bench.limits:
            if OURS in self.shares:
                self.ratios.append(Ratio(gate, gate.route, self.shares[OURS]))

    def markdown(self) -> str:
        """Two tables: the routes, and hfbatch beside them."""
        about = f"{len(self.lengths):,} rows, {self.setting.dtype} on {self.setting.device}"
        if self.lengths.max(initial=0) > 1:
            half, tail = np.quantile(self.lengths, [0.5, 0.95])
            about += f"; tokens a row: mean {self.lengths.mean():.0f}, half {half:.0f}, 95 % {tail:.0f} or fewer"
        names = list(dict.fromkeys(r.route for r in self.outcome.records if r.rows))
        table = _table(_HEAD, [self._row(name) for name in names])
        parts = [f"### {self.setting.bench}: {self.setting.model}\n\n{about}.\n", table, self._limit(), self._ours()]
        gates = [
            [r.gate.what, r.against, spread_of(r.by_repeat), f"{r.gate.least:g}", "yes" if r.passed else "**no**"]
            for r in self.ratios
        ]
        parts.append(_table(["hfbatch over", "route", "ratio", "at least", "reached"], gates) if gates else "")
        parts += [f"Did not run: {name}: {why}" for name, why in self.outcome.failed.items()]
        return "\n".join(part for part in parts if part) + "\n"

    def json(self) -> dict[str, Any]:
        """Everything but the values."""
        gates = [
            {**asdict(r.gate), "against": r.against, "by_repeat": r.by_repeat, "passed": r.passed} for r in self.ratios
        ]
        return {
            "setting": asdict(self.setting),
            "rows": len(self.lengths),
            "mean_tokens": float(self.lengths.mean()),
            "records": [asdict(record) for record in self.outcome.records],
            "ratios": gates,
            "limit_shares": self.shares,
            "agreement": {name: str(self._agrees(name)) for name in self.outcome.values},
            "failed": self.outcome.failed,
        }

    def _agrees(self, route: str) -> Any:
        return agreement(self.outcome, route, self.bench.reference)

    def _row(self, name: str) -> list[str]:
        mine = [r for r in self.outcome.records if r.route == name and r.rows]
        padded, tokens = sum(r.padded for r in mine), sum(r.tokens for r in mine)
        walls, busy = [r.wall for r in mine if r.wall], [r.busy for r in mine if r.busy is not None]
        speed, share = rate(self.outcome.records, name), self.shares.get(name)
        counts = self.lengths.max(initial=0) > 1
        return [
            name,
            f"{mine[-1].rows:,}",
            f"{speed:,.1f}",
            f"{speed * self.lengths.mean():,.0f}" if counts else "",
            f"{1 - tokens / padded:.1%}" if padded else "",
            f"{median(share):.0%}" if share else "",
            "reference" if name == self.bench.reference else str(self._agrees(name)),
            f"{max(r.peak_bytes for r in mine) / 2**20:,.0f} MiB",
            f"{median(r.seconds for r in mine):.1f}",
            f"{median(walls):.1f}" if walls else "",
            f"{median(busy):.0%}" if busy else "",
        ]

    def _limit(self) -> str:
        limits = [r.flops_per_s for r in self.outcome.records if r.flops_per_s]
        if not limits:
            return ""
        middle, least, most = (value / 1e9 for value in (median(limits), min(limits), max(limits)))
        return f"\nGEMM limit: {middle:,.0f} GFLOP/s, from {least:,.0f} to {most:,.0f}.\n"

    def _ours(self) -> str:
        forward = last_note(self.outcome.records, OURS, "forward_share")
        if forward is None:
            return ""
        start, shards = (last_note(self.outcome.records, OURS, name) for name in ("start_s", "shards"))
        return (
            f"\nhfbatch: forward share {forward:.1%} (of 95 %), {shards} shards, {start:.1f} s until the first batch.\n"
        )


_HEAD = [
    "route",
    "rows a turn",
    "rows/s",
    "real tokens/s",
    "padding",
    "of the limit",
    "values",
    "peak memory",
    "steady s",
    "wall s",
    "GPU busy",
]


def machine_lines(machine: dict[str, Any]) -> str:
    """The head of a report: what it was measured on."""
    told = {name: ", ".join(value) if isinstance(value, list) else value for name, value in machine.items()}
    return "; ".join(f"{name} {value}" for name, value in told.items() if value) + ".\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Columns that are empty in all rows are left out."""
    kept = [number for number in range(len(head)) if any(row[number] for row in rows)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line[number] for number in kept) + " |" for line in lines) + "\n"

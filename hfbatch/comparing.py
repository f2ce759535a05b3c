"""Two outputs in, a Comparison out: where two models, or two generations of one, agree over the same rows.

Streamed: what is kept are counts, and the rows that differ most. Only columns that a task wrote are compared, under
the same name and of the same type, and only where neither row failed; what failed is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from hfbatch.access import redact
from hfbatch.comparison import Comparison, Labels, Scores, Subject, Values, Vectors
from hfbatch.errors import Problem, SpecError
from hfbatch.pairing import Pair, Side, by_key, by_place, changed_files
from hfbatch.records import lineage_in, steps_in
from hfbatch.tallies import Rows, ScoreTally, Tally, VectorTally, tallies_for
from hfbatch.words import column_type

_SHOWN_CHARS = 200  # of a row's text


def compare_outputs(a: str, b: str, *, on: str | None = None, top: int = 10) -> Comparison:
    """Compare what is committed of two outputs. `on`: a column that tells rows apart, where the inputs are not the same
    files; `top`: how many of the rows that differ most are told, for each column.

    SpecError (2) where no run ever wrote, or no row is in both; Damage (6) for an object that is gone or torn.
    """
    one, other = Side(a), Side(b)
    shared, skipped = _shared(one, other)
    text = _text_column(one)
    counting = _Counting({name: one.schema.field(name).type for name in shared}, text, top)
    columns = [*shared, "error", *([text] if text else [])]
    for pair in by_place(one, other, columns) if on is None else by_key(one, other, on, columns):
        counting.add(pair)
    if not counting.rows and one.rows and other.rows:
        where = "file, content and row" if on is None else f"{on!r}"
        fix = "name a column that tells rows apart: --on id" if on is None else "name another column"
        raise SpecError([Problem("OUT_A OUT_B", "", f"no row is in both, going by {where}", fix)])
    return counting.result(one, other, on, skipped)


def _shared(a: Side, b: Side) -> tuple[list[str], dict[str, str]]:
    """The columns to compare; and why others are not."""
    behind = lineage_in(a.identity) | lineage_in(b.identity)
    kept, found, skipped = a.kept | b.kept | behind, list[str](), dict[str, str]()
    for name in dict.fromkeys([*a.schema.names, *b.schema.names]):
        if name in kept:
            continue
        there = [name in side.schema.names for side in (a, b)]
        if not all(there):
            skipped[name] = f"only in {'a' if there[0] else 'b'}"
        elif (kind := a.schema.field(name).type) != (other := b.schema.field(name).type):
            skipped[name] = f"{column_type(kind)} in a, {column_type(other)} in b"
        else:
            found.append(name)
    return found, skipped


def _text_column(side: Side) -> str | None:
    """The first column of text that the model read and the output kept, to show which row is which."""
    read = (name for step in steps_in(side.identity) for name in step.get("input_columns", {}).values())
    there = (name for name in read if name in side.schema.names)
    return next((name for name in there if pa.types.is_string(side.schema.field(name).type)), None)


class _Counting:
    """All counts of two outputs; grows with every pair of tables."""

    def __init__(self, columns: Mapping[str, pa.DataType], text: str | None, top: int) -> None:
        self.text, self.rows = text, 0
        self.failures = Counter[tuple[str, str]]()
        self.tallies: list[Tally] = [
            tally for name, kind in columns.items() for tally in tallies_for(name, kind, list(columns), top)
        ]

    def add(self, pair: Pair) -> None:
        """Rows of both."""
        codes = [_codes(table) for table in (pair.a, pair.b)]
        good = np.flatnonzero([not (one or other) for one, other in zip(*codes, strict=True)])
        self.failures.update(both for both in zip(*codes, strict=True) if any(both))
        self.rows += len(pair.a)

        def about(row: int) -> tuple[str, str | None]:
            at = int(good[row])
            shown = pair.a[self.text][at].as_py() if self.text else None
            return redact(pair.place(at)), None if shown is None else shown[:_SHOWN_CHARS]

        if len(good):
            index = pa.array(good)
            rows = Rows(pair.a.take(index), pair.b.take(index), about)
            for tally in self.tallies:
                tally.add(rows)

    def result(self, a: Side, b: Side, on: str | None, skipped: Mapping[str, str]) -> Comparison:
        """Everything."""
        found = [tally.result() for tally in self.tallies]
        tops = [tally.top.rows for tally in self.tallies if isinstance(tally, ScoreTally | VectorTally)]
        return Comparison(
            a=_subject(a),
            b=_subject(b),
            on=on,
            rows=self.rows,
            only_a=a.rows - self.rows,
            only_b=b.rows - self.rows,
            changed_files=[redact(path) for path in changed_files(a, b)] if on is None else [],
            failed_a=sum(rows for (code, _), rows in self.failures.items() if code),
            failed_b=sum(rows for (_, code), rows in self.failures.items() if code),
            errors=[(one, other, rows) for (one, other), rows in self.failures.most_common()],
            labels=[each for each in found if isinstance(each, Labels)],
            scores=[each for each in found if isinstance(each, Scores)],
            vectors=[each for each in found if isinstance(each, Vectors)],
            values=[each for each in found if isinstance(each, Values)],
            changes=[change for rows in tops for _, change in rows],
            skipped=dict(skipped),
        )


def _codes(table: pa.Table) -> list[str]:
    """The error code of each row; none is an empty text."""
    return ["" if error is None else str(error).partition(":")[0] for error in table["error"].to_pylist()]


def _subject(side: Side) -> Subject:
    identity: Mapping[str, Any] = side.identity
    steps, spec = steps_in(identity), side.about.get("spec") or {}
    models = [step.get("model") or {} for step in spec.get("steps") or [spec]]
    params = {step.get("name", ""): step.get("params", {}) for step in steps}
    return Subject(
        output=side.url,
        task=", ".join(str(step.get("task", "")) for step in steps),
        model_id=", ".join(dict.fromkeys(str(model.get("id", "")) for model in models)),
        model_revision=", ".join(dict.fromkeys(str(step.get("model_commit", "")) for step in steps)),
        params=dict(params.get("", params)),
        complete=side.complete,
        rows=side.rows,
    )

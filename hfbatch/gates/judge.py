"""Gates and an output in, what each gate found out: one pass over the columns that they name, of it and of the last.

Streamed, a few objects at a time; what is kept is bounded (shift.py). An object that both outputs have is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch.access import redact
from hfbatch.errors import Damage
from hfbatch.gates.golden import Agreement
from hfbatch.gates.shift import Labels, Numbers, TooManyLabels, as_text, compared, jensen_shannon, psi, tally_of
from hfbatch.gates.spec import Bounds, GatesSpec, QuerySpec, at_least, at_most
from hfbatch.gates.sql import Answer
from hfbatch.objects import UNREADABLE
from hfbatch.report import Gate
from hfbatch.store import Store

AT_ONCE = 8  # objects that are read at the same time
_ABOUT_CHARS, _MISSING_KEYS = 300, 3
_NO_LAST = "no last run"


class Column:
    """What is counted of one column."""

    def __init__(self, kind: pa.DataType, values: bool) -> None:
        """`values`: labels or numbers too, and not the nulls alone."""
        self.rows = self.nulls = 0
        self.values = tally_of(kind) if values else None
        self.problem = ""

    def add(self, column: pa.ChunkedArray) -> None:
        """Some more rows."""
        self.rows += len(column)
        self.nulls += column.null_count
        if isinstance(self.values, Numbers):
            self.values.add(column.drop_null().to_numpy())
        elif isinstance(self.values, Labels) and not self.problem:
            counts = as_text(column.drop_null()).value_counts()
            try:
                self.values.add({entry["values"]: entry["counts"] for entry in counts.to_pylist()})
            except TooManyLabels as error:
                self.problem = str(error)


@dataclass
class Side:
    """An output: its objects, and what is counted of them."""

    rows: int
    failed: int
    objects: Sequence[str]  # names in the store
    schema: pa.Schema
    truncated: Sequence[str] = ()  # columns that say whether a row's text was cut
    problem: str = ""  # why nothing of it can be counted
    columns: dict[str, Column] = field(default_factory=dict)


def count(store: Store, gates: GatesSpec, now: Side, last: Side | None, agreement: Agreement | None) -> None:
    """Fill in the columns of both sides, and the agreement. StorageError, Damage where an object cannot be read."""
    values = {*gates.mean, *gates.quantile, *gates.label_share, *gates.shift}
    values |= set(now.truncated) if gates.truncated_share is not None else set()
    now.columns = {name: Column(now.schema.field(name).type, name in values) for name in {*values, *gates.null_share}}
    if last is not None and not last.problem:
        alike = [name for name in gates.shift if name in last.schema.names]
        last.columns = {name: Column(last.schema.field(name).type, True) for name in alike}
    golden = [gates.golden.key, gates.golden.label] if gates.golden else []
    wanted: dict[str, dict[str, None]] = {}  # object -> columns, in order
    for side, more in ((now, golden), (last, [])):
        if side is not None and (side.columns or more):
            for name in side.objects:
                wanted.setdefault(name, {}).update(dict.fromkeys([*side.columns, *more]))
    both = {id(side): frozenset(side.objects) for side in (now, last) if side is not None}
    for name, table in _tables(store, wanted):
        for side in (now, last):
            if side is not None and name in both[id(side)]:
                for column, counts in side.columns.items():
                    counts.add(table[column])
        if agreement is not None and golden and name in both[id(now)]:
            agreement.add(table[golden[0]], table[golden[1]])


def _tables(store: Store, wanted: Mapping[str, Mapping[str, None]]) -> Iterator[tuple[str, pa.Table]]:
    """Each object with its columns; AT_ONCE of them are in memory, and no more."""

    def read(name: str) -> pa.Table:
        try:
            with store.open_input(name) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
                return file.read(columns=list(wanted[name]))
        except UNREADABLE as error:
            raise Damage(f"{store.url(name)}: is damaged ({error}); `hfbatch repair` makes it again") from error

    names = list(wanted)
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            yield from zip(part, pool.map(read, part), strict=True)


def judged(
    gates: GatesSpec, now: Side, last: Side | None, agreement: Agreement | None, answers: Mapping[str, Answer]
) -> list[Gate]:
    """Every gate with its value, in the order of GatesSpec, once `count` has counted. `answers`: what SQL gave."""
    return [
        *_rows(gates, now, last),
        *_shares(gates, now),
        *_numbers(gates, now),
        *_labels(gates, now),
        *_shifts(gates, now, last),
        *_golden(gates, agreement),
        *(_sql(name, query, answers[name]) for name, query in gates.queries.items()),
    ]


def _gate(name: str, value: float | None, bounds: Bounds, note: str = "", about: str = "") -> Gate:
    """A gate that is passed where its value lies within the bounds."""
    low = -float("inf") if bounds.min is None else bounds.min
    high = float("inf") if bounds.max is None else bounds.max
    passed = value is not None and low <= value <= high
    note = note or ("" if value is not None else "there are no values")
    return Gate(name=name, value=value, min=bounds.min, max=bounds.max, passed=passed, note=note, about=about)


def _waived(name: str, bounds: Bounds, note: str) -> Gate:
    """A gate that has nothing to compare with, and so holds nothing back."""
    return Gate(name=name, value=None, min=bounds.min, max=bounds.max, passed=True, note=note)


def _rows(gates: GatesSpec, now: Side, last: Side | None) -> Iterator[Gate]:
    if gates.min_rows is not None:
        yield _gate("min_rows", now.rows, Bounds(min=gates.min_rows))
    if gates.rows_against_last is not None:
        name, bounds = "rows_against_last", at_least(gates.rows_against_last)
        if last is not None and last.problem:
            yield _gate(name, None, bounds, last.problem)
        elif last is None or not last.rows:
            yield _waived(name, bounds, "the last run has no rows" if last else _NO_LAST)
        else:
            yield _gate(name, now.rows / last.rows, bounds, f"{now.rows:,} rows, {last.rows:,} in the last run")


def _shares(gates: GatesSpec, now: Side) -> Iterator[Gate]:
    if gates.error_share is not None:
        yield _gate("error_share", now.failed / now.rows if now.rows else 0.0, at_most(gates.error_share))
    if gates.truncated_share is not None:
        for name in now.truncated:
            column = now.columns[name]
            assert isinstance(column.values, Labels)
            cut = column.values.counts["true"] / now.rows if now.rows else 0.0
            more = f".{name}" if len(now.truncated) > 1 else ""
            yield _gate(f"truncated_share{more}", cut, at_most(gates.truncated_share))
    for name, bound in gates.null_share.items():
        yield _gate(f"null_share.{name}", now.columns[name].nulls / now.rows if now.rows else 0.0, at_most(bound))


def _numbers(gates: GatesSpec, now: Side) -> Iterator[Gate]:
    for name, bound in gates.mean.items():
        numbers = now.columns[name].values
        assert isinstance(numbers, Numbers)
        yield _gate(f"mean.{name}", numbers.mean, at_least(bound))
    for name, asked in gates.quantile.items():
        numbers = now.columns[name].values
        assert isinstance(numbers, Numbers)
        for share, bound in asked.items():
            yield _gate(f"quantile.{name}.{share}", numbers.quantile(float(share)), at_least(bound))


def _labels(gates: GatesSpec, now: Side) -> Iterator[Gate]:
    for name, asked in gates.label_share.items():
        column = now.columns[name]
        assert isinstance(column.values, Labels)
        for label, bound in asked.items():
            value = None if column.problem else column.values.share(label)
            yield _gate(f"label_share.{name}.{label}", value, at_most(bound), column.problem)


def _shifts(gates: GatesSpec, now: Side, last: Side | None) -> Iterator[Gate]:
    for name, asked in gates.shifts.items():
        measures = (("psi", asked.psi, psi), ("jensen_shannon", asked.jensen_shannon, jensen_shannon))
        for measure, bound, of in measures:
            if bound is None:
                continue
            full, bounds = f"shift.{name}.{measure}", at_most(bound)
            why, waived = _incomparable(name, now, last)
            if waived:
                yield _waived(full, bounds, why)
            elif why:
                yield _gate(full, None, bounds, why)
            else:
                assert last is not None
                yield _gate(full, of(*compared(*(side.columns[name].values for side in (now, last)))), bounds)  # type: ignore[arg-type]


def _incomparable(name: str, now: Side, last: Side | None) -> tuple[str, bool]:
    """Why a column cannot be compared with the last run's, and whether that holds nothing back; "" where it can."""
    if last is None:
        return _NO_LAST, True
    if last.problem:
        return last.problem, False
    mine, other = now.columns[name], last.columns.get(name)
    if other is None or type(other.values) is not type(mine.values):
        return f"the last run has no such column {name!r}", True
    if mine.problem or other.problem:
        return mine.problem or other.problem, False
    assert mine.values is not None
    assert other.values is not None
    if not other.values.rows:
        return "the last run has no values there", True
    return ("" if mine.values.rows else "there are no values"), False


def _golden(gates: GatesSpec, agreement: Agreement | None) -> Iterator[Gate]:
    if gates.golden is None or agreement is None:
        return
    lost, note = agreement.missing, ""
    if lost:
        some = ", ".join(map(repr, lost[:_MISSING_KEYS])) + (", ..." if lost[_MISSING_KEYS:] else "")
        what = f"{len(lost):,} of {len(agreement.golden):,} golden rows are not in the output"
        note = f"{what}: {gates.golden.key} {some}; put their inputs under input.path too"
    about = redact(gates.golden.path)
    measures = (("accuracy", gates.golden.min_accuracy, agreement.accuracy), ("f1", gates.golden.min_f1, agreement.f1))
    for name, least, value in measures:
        if least is not None:
            gate = _gate(f"golden.{name}", value, Bounds(min=least), note, about)
            yield gate.model_copy(update={"passed": gate.passed and not lost})


def _sql(name: str, query: str | QuerySpec, answer: Answer) -> Gate:
    value, note = answer
    text = redact(query if isinstance(query, str) else query.query)
    about, full = text if len(text) <= _ABOUT_CHARS else f"{text[:_ABOUT_CHARS]}…", f"sql.{name}"
    if value is None and note == _NO_LAST:
        bounds = {} if isinstance(query, str) else {"min": query.min, "max": query.max}
        return Gate(name=full, value=None, passed=True, note=note, about=about, **bounds)
    if isinstance(query, QuerySpec):
        return _gate(full, None if value is None else float(value), query, redact(note), about)
    return Gate(name=full, value=value, passed=value is True, note=redact(note), about=about)

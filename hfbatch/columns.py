"""The columns hfbatch adds to a block on its way from source to sink, and the ticket that says whose rows they are.

No step trusts Ray's order or block borders: every row carries its number, every block the ticket of its shard, and
the sink compares both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.errors import RowError
from hfbatch.histograms import summed
from hfbatch.sequences import Array, Sequences

T = TypeVar("T")

ROW = "_hfbatch_row"  # int64: the row's number in its shard, before `where`
TICKET = "_hfbatch_ticket"  # dictionary<string>: a Ticket as JSON, the same in all rows
ERROR = "_hfbatch_error"  # string: null, or "code: message"
INPUT = "_hfbatch_in."  # + name: model inputs and what else preprocess made
OUTPUT = "_hfbatch_out."  # + name: what forward made
IDLE = "_hfbatch_idle"  # bool, where a step leaves rows out: those that it does
MADE = "_hfbatch_made."  # + name of the output's column: what a step made
SEEN = "_hfbatch_seen."  # + name of a dataset's column: as the models see it, where a rule changes it
NOTES = "_hfbatch_notes"  # list of guards.apply.NOTE: what rules did to the row; null for nothing
WITHHELD = "_hfbatch_withheld"  # bool: a rule keeps the row from the models that follow, and its predictions back
REVIEW = "_hfbatch_review"  # bool: a prediction is not sure; null where there is none
FAILED = "_hfbatch_failed"  # string: the first error that a row had in the steps so far
HASH = "_hfbatch_hash"  # of what the step at hand reads of a row; null where it is not to be inferred; see reuse.py
SAME = "_hfbatch_same"  # int64: number of the row that has the same result, which may stand in KNOWN; null: inferred
KNOWN = "_hfbatch_known."  # + name: results of committed objects, for the rows that are their own SAME
TOKENS = "_hfbatch_tokens"  # int32: what the row cost in the step at hand
KNOWS = "_hfbatch_knows."  # + a step's name: what the object is to know of a row (known.py)
RAN = "_hfbatch_ran"  # string: the last run that inferred results the row has; null: this one; empty: none so far
EMPTY_ROW = -1  # the row number of the one row that stands for a shard without rows


@dataclass(frozen=True)
class Ticket:
    """What the source says of a shard's rows, and what each step adds of its own work."""

    shard: str
    rows: int  # in the block: all but those that are carried over
    digest: str  # over the numbers of all rows of the shard, in order
    pieces: Sequence[
        tuple[str, str, int, int]
    ]  # (file, fingerprint, first row, row after the last): what numbers count
    stats: Mapping[str, Any] = field(default_factory=dict)  # seconds, tokens, bytes, counts; see report.py
    carried: int = 0  # rows whose results the sink takes from `base`
    base: str | None = None  # see shards.Shard, as the next three
    retry: bool = False
    staged: bool = False
    folder: str = ""

    def on(self, table: pa.Table) -> pa.Table:
        """`table` with this ticket in every row."""
        ticket = pa.DictionaryArray.from_arrays(np.zeros(len(table), dtype=np.int8), [json.dumps(asdict(self))])
        return with_column(table, TICKET, ticket)

    def plus(self, **stats: Any) -> Ticket:
        """The same ticket with more stats, added to those of the same name."""
        return replace(self, stats={**self.stats, **stats, **total([self.stats, stats])})

    def place(self, row: int) -> str:
        """Where row number `row` was read: file and row, counted from 0."""
        for path, _, start, stop in self.pieces:
            if row < stop - start:
                return f"{path} row {start + row}"
            row -= stop - start
        raise IndexError(f"shard {self.shard} has no such row")


def ticket_of(table: pa.Table) -> Ticket:
    """The one ticket of a block. AssertionError when rows of two shards met in it."""
    texts = table[TICKET].unique().to_pylist()
    if len(texts) != 1:
        raise AssertionError(f"a block holds rows of {len(texts)} shards")
    return Ticket(**json.loads(texts[0]))


def part(table: pa.Table, rows: Array) -> pa.Table:
    """The rows `rows` (indices) of a block, with a ticket for them alone."""
    ticket = replace(ticket_of(table), rows=len(rows), stats={})
    return ticket.on(table.take(pa.array(rows)))


def total(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers in the stats of parts of a block, for all of it: sums, but extremes of peaks, budgets and times."""
    made: dict[str, Any] = {}
    for stats in parts:
        for name, value in stats.items():
            if not isinstance(value, str | Mapping):
                extreme: Callable[[Any, Any], Any] = max if name.startswith("peak_") else _added
                combine = {"first_s": min, "last_s": max, "budget": max}.get(name, extreme)
                made[name] = combine(made[name], value) if name in made else value
    return made


def _added(one: Any, other: Any) -> Any:
    return summed([one, other]) if isinstance(one, list) else one + other


def errors_so_far(table: pa.Table) -> pa.ChunkedArray:
    """(rows,) string: the first error that each row had in the steps that are done, or has in the one at hand."""
    return pc.coalesce(table[FAILED], table[ERROR]) if FAILED in table.column_names else table[ERROR]


def bare(table: pa.Table) -> pa.Table:
    """`table` with a ticket that has no stats yet."""
    return replace(ticket_of(table), stats={}).on(table)


def idle(table: pa.Table) -> Array:
    """(rows,) bool: which rows the step at hand leaves out."""
    if IDLE not in table.column_names:
        return np.zeros(len(table), dtype=bool)
    return np.asarray(table[IDLE].to_numpy())


def digest(rows: Array) -> str:
    """A fingerprint of row numbers in order."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).tobytes()).hexdigest()[:16]


def keys(ticket: Ticket, rows: Array) -> Array:
    """(rows,) uint64: what tells a row apart from all others of the dataset, whatever shard, batch or run it is in.

    Made of the file's path and the row's number in the file, mixed as splitmix64 does.
    """
    made, first = np.zeros(len(rows), dtype=np.uint64), 0
    for path, _, start, stop in ticket.pieces:
        own = (rows >= first) & (rows < first + stop - start)
        file = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest())
        made[own] = np.uint64(file) + (rows[own] - first + start).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        first += stop - start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        made = (made ^ (made >> np.uint64(shift))) * np.uint64(factor)
    return made ^ (made >> np.uint64(31))


def with_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """`table` with `name` added or replaced."""
    position = table.schema.get_field_index(name)
    return table.append_column(name, column) if position < 0 else table.set_column(position, name, column)


def sequences_of(table: pa.Table, *prefixes: str) -> Sequences:
    """The Sequences that stand in `table` under `prefixes`."""
    names = [(name, prefix) for name in table.column_names for prefix in prefixes if name.startswith(prefix)]
    return Sequences.from_arrow({name.removeprefix(prefix): _one(table[name]) for name, prefix in names})


def with_sequences(table: pa.Table, prefix: str, sequences: Sequences) -> pa.Table:
    """`table` with the columns of `sequences` under `prefix`, and their errors in the error column."""
    for name, column in sequences.to_arrow(len(table)).items():
        table = with_column(table, prefix + name, column)
    return with_errors(table, sequences.errors)


def with_errors(table: pa.Table, errors: Mapping[int, RowError]) -> pa.Table:
    """`table` with `errors` (row index -> error) written into the error column; earlier errors stay."""
    if not errors:
        return table
    texts = table[ERROR].to_pylist()
    for row, error in errors.items():
        texts[row] = texts[row] or str(error)
    return with_column(table, ERROR, pa.array(texts, pa.string()))


def isolate(work: Callable[[Array], T], rows: Array, code: str) -> tuple[list[tuple[Array, T]], dict[int, RowError]]:
    """Run `work` on `rows`; where it raises, halve until the rows that do it are found.

    Returns (rows, result) for the parts that went through, in order, and an error for each row that did not.
    """
    if not len(rows):
        return [], {}
    try:
        return [(rows, work(rows))], {}
    except RowError as error:
        if len(rows) == 1:
            return [], {int(rows[0]): error}
    except BaseException as error:  # whatever a task or a library raises is that row's fault once it stands alone
        if not is_fault(error):
            raise
        if len(rows) == 1:
            return [], {int(rows[0]): RowError(code, describe(error))}
    middle = len(rows) // 2
    left, left_errors = isolate(work, rows[:middle], code)
    right, right_errors = isolate(work, rows[middle:], code)
    return left + right, left_errors | right_errors


def is_fault(error: BaseException) -> bool:
    """Whether an exception is one of the code at work: an Exception, or a panic of a library written in Rust."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"  # as pyo3 calls it; no Exception


def describe(error: BaseException) -> str:
    """An exception as one short line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

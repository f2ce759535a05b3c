"""Rows in, the same rows with ragged model inputs out. Runs on CPU, as a stage or beside the model; never pads.

Rows are checked before the task sees them: a null, text that is not UTF-8, a path that may not be read, or whatever
the task raises becomes that row's error, and the others go on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from hfbatch import columns as col
from hfbatch import kinds
from hfbatch.errors import RowError
from hfbatch.guards.apply import Guardrails
from hfbatch.guards.passages import utf8
from hfbatch.limit import matches
from hfbatch.media import read_media
from hfbatch.reuse import Reuse, reuse_of
from hfbatch.sequences import Array, Sequences, concat
from hfbatch.tasks.base import KEY, Task

if TYPE_CHECKING:
    from hfbatch.job import Job, Step


def begun(step: Step, block: pa.Table) -> pa.Table:
    """The block with the rows marked that `step` leaves out.

    A rule withholds them, `where` does not hold, or an earlier step made nothing.
    """
    if not col.ticket_of(block).rows:
        return block
    idle = np.zeros(len(block), dtype=bool)
    if col.WITHHELD in block.column_names:
        idle |= np.asarray(block[col.WITHHELD])
    for name in step.reads.values():
        if name in step.sources:
            idle |= np.asarray(block[step.place_of(name)].is_null())
    if step.where is not None:
        names = {name.removeprefix(col.MADE): name for name in block.column_names if name.startswith(col.MADE)}
        names = {name: name for name in block.column_names} | names
        named = pa.table({name: block[place] for name, place in names.items()}).combine_chunks()
        chosen = matches(named.to_batches()[0], step.where, named.schema)
        idle[np.setdiff1d(np.arange(len(block)), chosen)] = True
    return col.with_column(block, col.IDLE, pa.array(idle)) if idle.any() else block


class Preprocess:
    """A callable of blocks; holds the task with its tokenizer."""

    def __init__(self, step: Step, reuse: Reuse | None = None, task: Task | None = None) -> None:
        """`reuse`: what leaves out rows whose result is there already. `task`: another than the process's."""
        self.step, self.reuse = step, reuse
        self.task = task or step.make_task()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Adds the `_hfbatch_in.*` columns; errors go into the error column."""
        started = time.perf_counter()
        ticket = col.ticket_of(table)
        if ticket.rows:  # else its one row only stands for the shard
            rows, errors = task_rows(self.step, table)
            if self.task.keyed:
                rows = rows.append_column(KEY, pa.array(col.keys(ticket, table[col.ROW].to_numpy())))
            idle = col.idle(table)
            errors = {row: error for row, error in errors.items() if not idle[row]}
            good = np.setdiff1d(np.flatnonzero(~idle), list(errors))
            if self.reuse is not None:
                table, good = self.reuse(table, rows, good, self.task)
            parts, failed = col.isolate(lambda index: self._sequences(rows.take(index)), good, "preprocess_failed")
            table = col.with_sequences(table, col.INPUT, _join(parts))
            table = col.with_errors(table, {**errors, **failed})
        return ticket.plus(tokenise_s=time.perf_counter() - started).on(table)

    def _sequences(self, rows: pa.Table) -> Sequences:
        """What the task makes of `rows`. AssertionError unless it accounts for each of them, in order."""
        made = self.task.preprocess(rows)
        known = np.union1d(made.row, list(made.errors))
        if not np.array_equal(known, np.arange(len(rows))) or (np.diff(made.row) < 0).any():
            raise AssertionError(f"task {self.task.name} lost, added or shuffled rows")
        return made


class Start:
    """A callable of blocks, from the source: the rules for the input, and preprocess of the first step."""

    def __init__(self, job: Job, task: Task | None = None) -> None:
        """`task`: see Preprocess."""
        first = job.chain[0]
        self.rails, self.preprocess = Guardrails(job), Preprocess(first, reuse_of(job, first), task)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Adds what Preprocess does."""
        return self.preprocess(begun(self.preprocess.step, self.rails.before(0, table)))


def task_rows(step: Step, table: pa.Table, *, media: bool = True) -> tuple[pa.Table, dict[int, RowError]]:
    """The columns the task reads, under the task's names and as their kinds (kinds.py); and what is wrong with a row.

    That is a null, bytes that are not UTF-8 (which become an empty text), media that cannot be had. `media=False`
    leaves those out, for who does not need them again.
    """
    rows, errors = {}, dict[int, RowError]()
    for entry in step.given:
        name, column = entry.name, table[step.place_of(step.reads[entry.name])].combine_chunks()
        if pa.types.is_null(column.type) and entry.type not in (kinds.ANY, *kinds.MEDIA):
            column = column.cast(entry.type)
        for null in np.flatnonzero(np.asarray(column.is_null())):
            errors.setdefault(int(null), RowError("null_input", f"{name} is null"))
        if entry.type in kinds.MEDIA:
            if not media:
                continue
            column, unread = read_media(name, column, entry.type, step.media_prefixes)
            errors |= {row: error for row, error in unread.items() if row not in errors}
        elif entry.type in (kinds.TEXT, kinds.ANY) and (kinds.is_text(column.type) or kinds.is_bytes(column.type)):
            column, broken = utf8(column)
            for row in broken:
                errors.setdefault(row, RowError("bad_utf8", f"{name} is not UTF-8 text"))
        rows[name] = column
    return (pa.table(rows) if rows else table.select([])), errors


def _join(parts: list[tuple[Array, Sequences]]) -> Sequences:
    """The sequences of several takes of rows as one, under the rows' own numbers."""
    errors = {int(index[row]): error for index, part in parts for row, error in part.errors.items()}
    full = [(index, part) for index, part in parts if len(part)]
    if not full:
        return Sequences(np.zeros(0, dtype=np.int64), {}, errors)
    columns = {name: concat([part.columns[name] for _, part in full]) for name in full[0][1].columns}
    return Sequences(np.concatenate([index[part.row] for index, part in full]), columns, errors)

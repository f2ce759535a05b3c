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
from hfbatch.media import read_media
from hfbatch.sequences import Array, Sequences, concat
from hfbatch.tasks.base import KEY

if TYPE_CHECKING:
    from hfbatch.job import Job


class Preprocess:
    """A callable of blocks; holds the task with its tokenizer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.task = job.make_task()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Adds the `_hfbatch_in.*` columns; errors go into the error column."""
        started = time.perf_counter()
        ticket = col.ticket_of(table)
        if ticket.rows:  # else its one row only stands for the shard
            rows, errors = task_rows(self.job, table)
            if self.task.keyed:
                rows = rows.append_column(KEY, pa.array(col.keys(ticket, table[col.ROW].to_numpy())))
            good = np.setdiff1d(np.arange(len(table)), list(errors))
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


def task_rows(job: Job, table: pa.Table, *, media: bool = True) -> tuple[pa.Table, dict[int, RowError]]:
    """The columns the task reads, under the task's names and as their kinds (kinds.py); and what is wrong with a row.

    That is a null, bytes that are not UTF-8 (which become an empty text), media that cannot be had. `media=False`
    leaves those out, for who does not need them again.
    """
    rows, errors = {}, dict[int, RowError]()
    for entry in job.given:
        name, column = entry.name, table[job.reads[entry.name]].combine_chunks()
        if pa.types.is_null(column.type) and entry.type not in (kinds.ANY, *kinds.MEDIA):
            column = column.cast(entry.type)
        for null in np.flatnonzero(np.asarray(column.is_null())):
            errors.setdefault(int(null), RowError("null_input", f"{name} is null"))
        if entry.type in kinds.MEDIA:
            if not media:
                continue
            column, unread = read_media(name, column, entry.type, job.media_prefixes)
            errors |= {row: error for row, error in unread.items() if row not in errors}
        elif entry.type in (kinds.TEXT, kinds.ANY) and (kinds.is_text(column.type) or kinds.is_bytes(column.type)):
            column, broken = _utf8(column)
            for row in broken:
                errors.setdefault(row, RowError("bad_utf8", f"{name} is not UTF-8 text"))
        rows[name] = column
    return (pa.table(rows) if rows else table.select([])), errors


def _utf8(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """`column` as text, and the rows whose bytes are not UTF-8 (they become empty)."""
    try:
        text = column.cast(pa.large_string())
        text.validate(full=True)
        return text, []
    except pa.ArrowInvalid:
        values, broken = column.cast(pa.large_binary()).to_pylist(), []
    for row, value in enumerate(values):
        try:
            values[row] = None if value is None else value.decode()
        except UnicodeDecodeError:
            values[row] = ""
            broken.append(row)
    return pa.array(values, pa.large_string()), broken


def _join(parts: list[tuple[Array, Sequences]]) -> Sequences:
    """The sequences of several takes of rows as one, under the rows' own numbers."""
    errors = {int(index[row]): error for index, part in parts for row, error in part.errors.items()}
    full = [(index, part) for index, part in parts if len(part)]
    if not full:
        return Sequences(np.zeros(0, dtype=np.int64), {}, errors)
    columns = {name: concat([part.columns[name] for _, part in full]) for name in full[0][1].columns}
    return Sequences(np.concatenate([index[part.row] for index, part in full]), columns, errors)

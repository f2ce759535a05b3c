"""Rows in, the same rows with ragged model inputs out. Runs on CPU, as a stage or beside the model; never pads.

Rows are checked before the task sees them: a null, text that is not UTF-8, or whatever the task raises becomes that
row's error, and the others go on.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from hfbatch import columns as col
from hfbatch.errors import RowError
from hfbatch.sequences import Sequences, scatter
from hfbatch.tasks.base import Task

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
        rows = task_rows(self.job, self.task, table)
        rows, errors = _valid(rows)
        good = np.array([i for i in range(len(table)) if i not in errors and ticket.rows], dtype=np.int64)
        parts, failed = col.isolate(lambda index: self.task.preprocess(rows.take(index)), good, "preprocess_failed")
        sequences = _join(parts)
        table = col.with_sequences(table, col.INPUT, Sequences(sequences.row, sequences.columns, sequences.errors))
        table = col.with_errors(table, {**errors, **failed})
        return ticket.plus(tokenise_s=time.perf_counter() - started).on(table)


def task_rows(job: Job, task: Task, table: pa.Table) -> pa.Table:
    """The columns the task reads, under the task's names."""
    return pa.table({name: table[column] for name, column in job.reads.items()})


def _valid(rows: pa.Table) -> tuple[pa.Table, dict[int, RowError]]:
    """The rows as the task's types, and an error for each row that has a null or text that is not UTF-8."""
    errors: dict[int, RowError] = {}
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        for null in np.flatnonzero(np.asarray(column.is_null())):
            errors.setdefault(int(null), RowError("null_input", f"{name} is null"))
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_binary(column.type):
            column, broken = _utf8(column)
            for row in broken:
                errors.setdefault(row, RowError("bad_utf8", f"{name} is not UTF-8 text"))
        rows = col.with_column(rows, name, column)
    return rows, errors


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


def _join(parts: list[tuple[np.ndarray, Sequences]]) -> Sequences:
    """The sequences of several takes of rows as one, under the rows' own numbers."""
    errors = {int(index[row]): error for index, part in parts for row, error in part.errors.items()}
    full = [(index, part) for index, part in parts if len(part)]
    if not full:
        return Sequences(np.zeros(0, dtype=np.int64), {}, errors)
    starts = np.concatenate([[0], np.cumsum([len(part) for _, part in full])])
    spans = [np.arange(start, stop) for start, stop in pairwise(starts)]
    names = {name: part.columns[name] for _, part in full for name in part.columns}
    columns = {
        name: scatter(
            [(span, part.columns[name]) for span, (_, part) in zip(spans, full, strict=True)], int(starts[-1])
        )
        for name in names
    }
    return Sequences(np.concatenate([index[part.row] for index, part in full]), columns, errors)

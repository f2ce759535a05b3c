"""A block over which a process died, run in a child process: the row that kills gets an error, the others results.

Before every forward the child says which rows are in it. When it dies, or is silent for too long, those rows are
suspects: the others run on in a new child, the suspects one by one. A row that is alone when the child dies is the
one. So a row costs at most two children, and nothing goes on for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from hfbatch import columns as col
from hfbatch.errors import HfbatchError, RowError, SystemicError
from hfbatch.model import Predict
from hfbatch.preprocess import Preprocess
from hfbatch.sequences import Array, Sequences, concat
from hfbatch.tally import DeviceLost, Meter
from hfbatch.verdict import errors_in

if TYPE_CHECKING:
    from hfbatch.job import Step
    from hfbatch.reuse import Reuse
    from hfbatch.spec import Machine

CHUNK = 1024  # rows a child is sent at once: what is repeated when it dies
TICK_S = 0.5  # how often a wait asks whether the run was stopped
_MARKS = (col.HASH, col.SAME, col.KNOWN, col.TOKENS)
ORPHAN_S = 60  # what a child that hangs with nobody to kill it gets beyond the limit

Parts: TypeAlias = list[tuple[Array, pa.Table]]  # (rows of a table, what was made of them)


class Died(Exception):
    """A child ended, or was ended, in the middle of a table. `rows` are those last announced, as indices of it."""

    def __init__(self, how: str, rows: Array) -> None:
        self.how, self.rows = how, rows
        super().__init__(how)


class Isolated:
    """What `predict` does, done in child processes. Its own model gives way to theirs."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict

    def __call__(self, table: pa.Table) -> pa.Table:
        """As `predict(table)`; a row that kills its process has the error `crashed_worker`.

        SystemicError when a child dies before it is ready, which is no row's fault.
        """
        if not col.ticket_of(table).rows:
            return self.predict(table)
        started = time.time()
        self.predict.engine.release()
        made, crashed = self._run(table)
        return self._joined(table, made, crashed, started)

    def _run(self, table: pa.Table) -> tuple[Parts, dict[int, RowError]]:
        """(rows, their results) of all that came through, and the errors of the rows that kill."""
        made, crashed, child = Parts(), dict[int, RowError](), None
        todo = deque(np.array_split(np.arange(len(table)), range(CHUNK, len(table), CHUNK)))
        try:
            while todo:
                rows = todo.popleft()
                child = child or Child(self.predict)
                try:
                    made.append((rows, child.ask(col.part(table, rows))))
                except Died as death:
                    child.end()
                    child = None
                    if len(rows) == 1:
                        crashed[int(rows[0])] = RowError("crashed_worker", death.how)
                        continue
                    suspects = rows[np.unique(death.rows)]
                    others = np.setdiff1d(rows, suspects)
                    todo.extendleft(([others] if len(others) else []) + np.split(suspects, len(suspects)))
        finally:
            if child is not None:
                child.end()
        return made, crashed

    def _joined(self, table: pa.Table, made: Parts, crashed: dict[int, RowError], started: float) -> pa.Table:
        """`table` with what `predict` would have added, and the ticket of one that did all of the work."""
        stats, errors = col.total([col.ticket_of(part).stats for _, part in made]), dict(crashed)
        for rows, part in made:
            errors |= {int(rows[row]): error for row, error in errors_in(part).items()}
        for name in ("rows", "errors"):
            stats[name] = stats.get(name, 0) + len(crashed)
        self.predict.engine.meter += Meter(**{name: stats.get(name, 0) for name in vars(Meter())})
        result = table.drop_columns([name for name in table.column_names if name.startswith(col.INPUT)])
        result = _with_marks(result, made)
        for prefix in (col.INPUT, col.OUTPUT):
            parts = [(rows, sequences) for rows, part in made if len(sequences := col.sequences_of(part, prefix))]
            result = col.with_sequences(result, prefix, _join(parts))
        stats |= {"first_s": started, "last_s": time.time()}
        return col.ticket_of(table).plus(**stats, actor=self.predict.worker).on(col.with_errors(result, errors))


class Child:
    """A process with a Predict like the one given, told about by messages: ready, rows, done, failed."""

    def __init__(self, like: Predict) -> None:
        """Started, but not yet ready: loading takes what it takes, as it does in an actor."""
        limit = like.machine.row_timeout_s
        changes = {
            "max_batch_tokens": like.engine.budget,  # with what was learned of memory
            "compile": False,  # a few rows, and each child would begin anew
            "row_timeout_s": None if limit is None else limit + ORPHAN_S,
        }
        machine = like.machine.model_copy(update=changes)
        self.like, self.limit = like, limit
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks, and a device that is in use
        self.pipe, theirs = context.Pipe()
        before = None if like.preprocess is None else (like.preprocess.reuse,)
        what = (theirs, like.step, machine, like.threads, before, like.gpu)
        self.process = context.Process(target=_serve, args=what, name="hfbatch-isolated", daemon=True)
        self.process.start()
        theirs.close()
        try:
            self._hear(None)
        except Died as death:
            self.end()
            raise SystemicError(
                "a process died over a shard, and the one started to find the row that did it died before it was "
                f"ready: {death.how}; free memory or devices for it, then run the same command again"
            ) from None
        except BaseException:
            self.end()
            raise

    def ask(self, table: pa.Table) -> pa.Table:
        """What Predict makes of `table`. Raises Died, or what Predict raised."""
        rows = np.arange(len(table))
        try:
            self.pipe.send(table)
            while True:
                about, content = self._hear(self.limit)
                if about == "done":
                    return content
                rows = content
        except DeviceLost as lost:
            raise Died(str(lost), rows) from None
        except (BrokenPipeError, ConnectionResetError):
            raise Died(self._how(), rows) from None
        except Died as death:
            raise Died(death.how, rows) from None

    def end(self) -> None:
        """No such process any more, whatever it was doing."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _hear(self, limit: float | None) -> tuple[str, Any]:
        """The next message; Died without rows when there will be none. Raises what the message or the report says."""
        asked = time.monotonic()
        while not self.pipe.poll(TICK_S if limit is None else min(TICK_S, limit)):
            self.like.engine.tell()  # raises when the run is stopped
            if limit is not None and time.monotonic() - asked > limit:
                raise Died(f"no answer in {limit:g} s", np.arange(0))
        try:
            about, content = self.pipe.recv()
        except (EOFError, OSError):
            raise Died(self._how(), np.arange(0)) from None
        if about == "failed":
            raise content
        return about, content

    def _how(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exited with {code}"
        known = -code in set(signal.Signals)
        return f"killed by {signal.Signals(-code).name if known else f'signal {-code}'}"


def _serve(
    pipe: Connection, step: Step, machine: Machine, threads: int, before: tuple[Reuse | None] | None, gpu: bool | None
) -> None:
    """The child: tables in, results out, until it is ended or has nobody to answer to.

    `before`: what its Preprocess reuses; None: it has none.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        preprocess = None if before is None else Preprocess(step, *before)
        predict = Predict(step, machine, threads, preprocess, gpu=gpu)
        predict.unproven = False  # a few rows, and picked ones
        predict.engine.announce = lambda rows: pipe.send(("rows", rows))
        pipe.send(("ready", None))
        while True:
            pipe.send(("done", predict(pipe.recv())))
    except Exception as error:
        ours = isinstance(error, HfbatchError | DeviceLost)
        pipe.send(("failed", error if ours else RuntimeError(f"{col.describe(error)}\n{traceback.format_exc()}")))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _with_marks(table: pa.Table, made: Parts) -> pa.Table:
    """`table` with what the parts say of rows beside sequences and errors (see columns.SAME); null where rows died."""
    marks = [part.select([name for name in part.column_names if name.startswith(_MARKS)]) for _, part in made]
    if not any(part.column_names for part in marks):
        return table
    whole = pa.concat_tables(marks, promote_options="default")
    source = np.full(len(table), -1, dtype=np.int64)
    source[np.concatenate([rows for rows, _ in made])] = np.arange(len(whole))
    for name in whole.column_names:
        table = col.with_column(table, name, whole[name].take(pa.array(source, mask=source < 0)))
    return table


def _join(parts: list[tuple[Array, Sequences]]) -> Sequences:
    """The sequences of several takes of rows as one, under the rows' own numbers, in their order."""
    if not parts:
        return Sequences(np.zeros(0, dtype=np.int64), {})
    row = np.concatenate([rows[part.row] for rows, part in parts])
    columns = {name: concat([part.columns[name] for _, part in parts]) for name in parts[0][1].columns}
    return Sequences(row, columns).take(np.argsort(row, kind="stable"))

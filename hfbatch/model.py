"""Blocks of model inputs in, the same with results out. Where nearly all of the first rows fail alike, that is the end.

How a batch goes through the model, and what becomes of one that does not, is engine.py's.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from hfbatch import columns as col
from hfbatch.engine import Engine, Work
from hfbatch.errors import RowError
from hfbatch.faults import point
from hfbatch.histograms import length_bins
from hfbatch.layout import input_lengths
from hfbatch.preprocess import Preprocess
from hfbatch.results import Results
from hfbatch.sequences import SHAPE, Array, Sequences
from hfbatch.streaming import joined, windows
from hfbatch.tally import Meter, Report
from hfbatch.verdict import LEAST, SAMPLE, errors_in, refuse_common_fault, rows_judged, sample_first
from hfbatch.watchdog import Watchdog

if TYPE_CHECKING:
    from hfbatch.job import Step
    from hfbatch.spec import Machine


class Predict:
    """A callable of blocks that keeps one model resident; what an actor of the pool runs."""

    def __init__(
        self,
        step: Step,
        machine: Machine,
        threads: int,
        preprocess: Preprocess | None = None,
        report: Report = None,
        gpu: bool | None = None,
    ) -> None:
        """With `preprocess`, blocks come raw and become token ids here. `report` is called after every batch.

        `gpu`: whether a GPU was reserved for this process; None: take one if it is there.
        """
        started = time.perf_counter()
        self.step, self.machine, self.threads, self.gpu = step, machine, threads, gpu
        torch.set_num_threads(threads)
        self.engine = Engine(step, machine, gpu, report)
        self.preprocess = preprocess
        self.task, self.worker = step.make_task(), f"{socket.gethostname()}:{os.getpid()}"
        self.watchdog = Watchdog(machine.row_timeout_s)
        self.engine.renew = self.watchdog.renew
        self.unproven = True  # the first rows still have to show that the code works
        self._place: Callable[[int], str] = "row {}".format
        self.load_s = time.perf_counter() - started

    def __call__(self, table: pa.Table, ready: bool = False) -> pa.Table:
        """Takes the `_hfbatch_in.*` columns of the model away, adds the `_hfbatch_out.*` ones.

        `ready`: they are there already, although this has a `preprocess`.

        SystemicError when nearly all of the first rows fail alike; DeviceLost when no later batch could succeed.
        """
        torch.set_num_threads(self.threads)  # OpenMP counts per thread, and Ray calls from others than built this
        if self.engine.model is None:
            started = time.perf_counter()
            self.engine.load()
            self.load_s = time.perf_counter() - started
        ticket = col.ticket_of(table)
        if ticket.base is not None:
            self.unproven = False  # rows that failed where others went through: no sample of the data
        preprocess = None if ready else self.preprocess
        with self.watchdog:
            if preprocess is not None and self.task.streams and ticket.rows:
                made = windows(table, preprocess, self.engine.announce)
                return joined(table, [self._window(*window) for window in made])
            return self._predicted(self._preprocessed(table, preprocess))

    def _window(self, first: int, rows: pa.Table) -> pa.Table:
        """The results of some rows of a block, which are there as model inputs; `first` is their place in it."""
        self.watchdog.renew()
        self.engine.first = first
        self._judge_sample(rows, errors_in(rows.slice(0, SAMPLE)))
        return self._predicted(rows)

    def _preprocessed(self, table: pa.Table, preprocess: Preprocess | None) -> pa.Table:
        self.engine.first = 0
        sample = table.slice(0, SAMPLE if self.unproven else 0)
        if len(sample) and col.ticket_of(table).rows:
            self._judge_sample(table, errors_in(sample if preprocess is None else preprocess(sample)))
        return table if preprocess is None else preprocess(table)

    def _judge_sample(self, table: pa.Table, errors: dict[int, RowError]) -> None:
        """Refuse what made the first rows of `table` fail alike before the model saw them."""
        ticket, numbers = col.ticket_of(table), table[col.ROW]
        self._place = lambda row: ticket.place(numbers[row].as_py())
        if self.unproven:
            refuse_common_fault(min(len(table), SAMPLE), errors, self._place)

    def _predicted(self, table: pa.Table) -> pa.Table:
        ticket, before, started = col.ticket_of(table), Meter(**vars(self.engine.meter)), time.time()
        sequences = col.sequences_of(table, col.INPUT)
        point("before-inference", ticket.shard)
        outputs, errors = self.predict(sequences)
        point("after-inference", ticket.shard)
        self.engine.meter.rows += ticket.rows
        self.engine.meter.errors += len(table) - table[col.ERROR].null_count + len(errors)
        self.engine.tell()
        ticket = ticket.plus(
            **vars(self.engine.meter - before),
            actor=self.worker,
            load_s=self.load_s,
            first_s=started,
            last_s=time.time(),
            token_lengths=length_bins(input_lengths(sequences, self.task)),
            **self.engine.about(),
        )
        self.load_s = 0.0
        task = self.task
        spent = (*task.inputs, *(name + SHAPE for name in task.inputs), *task.host, "length")
        table = table.drop_columns([col.INPUT + name for name in spent if name in sequences.columns])
        table = col.with_errors(col.with_sequences(table, col.OUTPUT, outputs), errors)
        if col.HASH in table.column_names:
            tokens = np.bincount(sequences.row, input_lengths(sequences, task), len(table)).astype(np.int32)
            table = col.with_column(table, col.TOKENS, pa.array(tokens))
        return ticket.on(table)

    def predict(self, sequences: Sequences) -> tuple[Sequences, dict[int, RowError]]:
        """Results for each sequence, in order, and errors by row. A row that fails in part has no results at all."""
        work = Work(sequences, input_lengths(sequences, self.task), sequences.shapes())
        self.engine.settle_layout(sequences)
        for part in sample_first(sequences.row) if self.unproven else [np.arange(len(sequences))]:
            self.engine.run(work, part)
            if self.unproven:
                self._judge(sequences.row, part, work.results)
        return work.results.of(sequences)

    def _judge(self, row: Array, sample: Array, results: Results) -> None:
        """Settle with the first rows, once there are enough of them, whether the code works."""
        errors = {int(row[index]): error for index, error in sorted(results.errors.items())}
        rows = len(np.unique(row[sample]))
        refuse_common_fault(rows, errors, self._place)
        self.unproven = rows_judged(rows, errors) < LEAST

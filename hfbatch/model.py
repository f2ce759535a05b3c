"""Load a model once, then turn sequences into results: batch by tokens, lay out, forward, restore the order.

What goes wrong in a batch is found: out of memory halves it and lowers the budget for the rest, any other exception
is bisected to the sequence that raises it, and a result that is not finite is tried once more in float32; if it is
not finite then, it is an error, not a prediction. Where nearly all of the first rows fail alike, that is the end.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from hfbatch import columns as col
from hfbatch.batch import halve, pack_by_length, padded_tokens
from hfbatch.errors import RowError
from hfbatch.faults import point
from hfbatch.layout import PaddedBatch, input_lengths
from hfbatch.loading import device_for, load_model
from hfbatch.precision import in_float32, is_float32
from hfbatch.preprocess import Preprocess
from hfbatch.results import Results, to_numpy
from hfbatch.sequences import SHAPE, Array, Column, Sequences
from hfbatch.streaming import joined, windows
from hfbatch.tally import DeviceLost, Meter, Report
from hfbatch.verdict import LEAST, SAMPLE, errors_in, refuse_common_fault, rows_judged, sample_first
from hfbatch.watchdog import Watchdog

if TYPE_CHECKING:
    from hfbatch.job import Job
    from hfbatch.spec import Machine


class Predict:
    """A callable of blocks that keeps one model resident; what an actor of the pool runs."""

    def __init__(
        self,
        job: Job,
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
        self.job, self.machine, self.threads, self.gpu = job, machine, threads, gpu
        torch.set_num_threads(threads)
        self.device = device_for(gpu)
        self.preprocess = preprocess
        self.task, self.worker = job.make_task(), f"{socket.gethostname()}:{os.getpid()}"
        default = self.task.batch_tokens[self.device.type == "cuda"]
        self.budget = default if machine.max_batch_tokens == "auto" else machine.max_batch_tokens
        self.max_rows = machine.max_batch_rows
        self.watchdog = Watchdog(machine.row_timeout_s)
        self.announce: Callable[[Array], None] | None = None  # called before every forward, with the rows in it
        self.unproven = True  # the first rows still have to show that the code works
        self._place: Callable[[int], str] = "row {}".format
        self._first = 0  # row of the block that the rows at hand begin with
        self.meter, self.report = Meter(), report
        self.model: Any = self._load()
        self.load_s = time.perf_counter() - started

    def _load(self) -> Any:
        model = load_model(self.job, self.task, self.device)
        self.task.loaded(model)
        return torch.compile(model, dynamic=True) if self.machine.compile else model

    def release(self) -> None:
        """Give the model up, and its memory; the next block loads it again."""
        self.model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes the `_hfbatch_in.*` columns of the model away, adds the `_hfbatch_out.*` ones.

        SystemicError when nearly all of the first rows fail alike; DeviceLost when no later batch could succeed.
        """
        torch.set_num_threads(self.threads)  # OpenMP counts per thread, and Ray calls from others than built this
        if self.model is None:
            started = time.perf_counter()
            self.model, self.load_s = self._load(), time.perf_counter() - started
        ticket = col.ticket_of(table)
        if ticket.base is not None:
            self.unproven = False  # rows that failed where others went through: no sample of the data
        with self.watchdog:
            if self.preprocess is not None and self.task.streams and ticket.rows:
                made = windows(table, self.preprocess, self.announce)
                return joined(table, [self._window(*window) for window in made])
            return self._predicted(self._preprocessed(table))

    def _window(self, first: int, rows: pa.Table) -> pa.Table:
        """The results of some rows of a block, which are there as model inputs; `first` is their place in it."""
        self.watchdog.renew()
        self._first = first
        self._judge_sample(rows, errors_in(rows.slice(0, SAMPLE)))
        return self._predicted(rows)

    def _preprocessed(self, table: pa.Table) -> pa.Table:
        self._first = 0
        sample = table.slice(0, SAMPLE if self.unproven else 0)
        if len(sample) and col.ticket_of(table).rows:
            self._judge_sample(table, errors_in(sample if self.preprocess is None else self.preprocess(sample)))
        return table if self.preprocess is None else self.preprocess(table)

    def _judge_sample(self, table: pa.Table, errors: dict[int, RowError]) -> None:
        """Refuse what made the first rows of `table` fail alike before the model saw them."""
        ticket, numbers = col.ticket_of(table), table[col.ROW]
        self._place = lambda row: ticket.place(numbers[row].as_py())
        if self.unproven:
            refuse_common_fault(min(len(table), SAMPLE), errors, self._place)

    def _predicted(self, table: pa.Table) -> pa.Table:
        ticket, before, started = col.ticket_of(table), Meter(**vars(self.meter)), time.time()
        sequences = col.sequences_of(table, col.INPUT)
        point("before-inference", ticket.shard)
        outputs, errors = self.predict(sequences)
        point("after-inference", ticket.shard)
        self.meter.rows += ticket.rows
        self.meter.errors += len(table) - table[col.ERROR].null_count + len(errors)
        if self.report is not None:
            self.report(self.meter)
        ticket = ticket.plus(
            **vars(self.meter - before),
            actor=self.worker,
            load_s=self.load_s,
            first_s=started,
            last_s=time.time(),
            **_peaks(self.device),
        )
        self.load_s = 0.0
        task = self.task
        spent = (*task.inputs, *(name + SHAPE for name in task.inputs), *task.host, "length")
        table = table.drop_columns([col.INPUT + name for name in spent if name in sequences.columns])
        table = col.with_errors(col.with_sequences(table, col.OUTPUT, outputs), errors)
        return ticket.on(table)

    def predict(self, sequences: Sequences) -> tuple[Sequences, dict[int, RowError]]:
        """Results for each sequence, in order, and errors by row. A row that fails in part has no results at all."""
        lengths, shapes = input_lengths(sequences, self.task), sequences.shapes()
        results = Results()
        for part in sample_first(sequences.row) if self.unproven else [np.arange(len(sequences))]:
            kinds = None if shapes is None else shapes[part]
            for batch in pack_by_length(lengths[part], self.budget, self.max_rows, kinds):
                self._run(sequences, part[batch], lengths, results)
            self._try_again(sequences, lengths, shapes, results)
            if self.unproven:
                self._judge(sequences.row, part, results)
        return results.of(sequences)

    def _judge(self, row: Array, sample: Array, results: Results) -> None:
        """Settle with the first rows, once there are enough of them, whether the code works."""
        errors = {int(row[index]): error for index, error in sorted(results.errors.items())}
        rows = len(np.unique(row[sample]))
        refuse_common_fault(rows, errors, self._place)
        self.unproven = rows_judged(rows, errors) < LEAST

    def _run(self, sequences: Sequences, batch: Array, lengths: Array, results: Results) -> None:
        """One batch, halved as often as it must be."""
        by_tokens = True
        if len(batch) == 1 or padded_tokens(batch, lengths) <= self.budget:
            outputs = self._attempt(sequences.take(batch))
            if not isinstance(outputs, RowError):
                results.keep(batch, outputs)
                return self._count(batch, lengths)
            if len(batch) == 1:
                results.errors[int(batch[0])] = outputs
                return None
            by_tokens = outputs.code == "out_of_memory"
            if by_tokens:
                self.budget = max(1, padded_tokens(batch, lengths) // 2)
        middle = len(batch) // 2  # the way to one bad row among n is 2 log2(n) batches, whatever their lengths
        for half in halve(batch, lengths) if by_tokens else (batch[:middle], batch[middle:]):
            self._run(sequences, half, lengths, results)
        return None

    def _try_again(self, sequences: Sequences, lengths: Array, shapes: Array | None, results: Results) -> None:
        """What was not finite once more, in float32; where that is what it was in, without padding."""
        left, results.broken = set(results.broken), []
        if not left:
            return
        bad = np.array(sorted(left))
        most = 1 if is_float32(self.model) else self.max_rows
        try:
            with in_float32(self.model) as model:
                kinds = None if shapes is None else shapes[bad]
                for chosen in pack_by_length(lengths[bad], max(1, self.budget // 2), most, kinds):
                    outputs = self._attempt(sequences.take(bad[chosen]), model)
                    if not isinstance(outputs, RowError):
                        results.keep(bad[chosen], outputs)
                        left -= set(bad[chosen].tolist()) - set(results.broken)
        except Exception as error:  # no room for the weights in float32
            if not _is_out_of_memory(error):
                raise
        results.broken = []
        for index in left:
            results.errors[index] = RowError("non_finite", "the model's result has NaN or infinite values")

    def _attempt(self, batch: Sequences, model: Any = None) -> dict[str, Column] | RowError:
        """The results of `batch`, or why there are none. Raises only when the device itself is lost."""
        try:
            return self._forward(batch, self.model if model is None else model)
        except DeviceLost:
            raise
        except RowError as error:  # a task's own finding; as a copy, for this one holds the batch by its traceback
            failure = RowError(error.code, error.message)
        except BaseException as error:
            if not col.is_fault(error):
                raise
            failure = RowError("out_of_memory" if _is_out_of_memory(error) else "forward_failed", col.describe(error))
        if self.device.type == "cuda":  # only now: the exception held the batch's tensors through its traceback
            try:
                torch.cuda.synchronize(self.device)
            except Exception as error:  # it raises again what no later batch escapes, such as a device assert
                raise DeviceLost(f"{self.device} is lost to this process: {col.describe(error)}") from error
            torch.cuda.empty_cache()
        return failure

    def _forward(self, batch: Sequences, model: Any) -> dict[str, Column]:
        if self.announce is not None:
            self.announce(batch.row + self._first)
        self.watchdog.renew()
        started = time.perf_counter()
        with torch.inference_mode():
            outputs = self.task.forward(
                model, PaddedBatch(batch, self.task, self.device, getattr(model, "dtype", None))
            )
            columns = to_numpy(outputs)
        self.meter.forward_s += time.perf_counter() - started
        for name, column in columns.items():
            if len(column) != len(batch):
                raise AssertionError(f"{self.task.name} gave {len(column)} of {name} for {len(batch)} sequences")
        return columns

    def _count(self, batch: Array, lengths: Array) -> None:
        self.meter.batches += 1
        self.meter.sequences += len(batch)
        self.meter.tokens += int(lengths[batch].sum())
        self.meter.padded_tokens += padded_tokens(batch, lengths)
        if self.report is not None:
            self.report(self.meter)


def _is_out_of_memory(error: BaseException) -> bool:
    said = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # the CPU allocator, CUDA, its libraries
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def _peaks(device: torch.device) -> dict[str, float]:
    """Bytes: the most memory this process, and its device, have held."""
    peaks = {"peak_rss": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}
    if device.type == "cuda":
        peaks["peak_gpu"] = float(torch.cuda.max_memory_allocated(device))
    return peaks

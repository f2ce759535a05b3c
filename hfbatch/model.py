"""Load a model once, then turn sequences into results: batch by tokens, lay out, forward, restore the order.

What goes wrong in a batch is found: out of memory halves it and lowers the budget for the rest, any other exception
is bisected to the sequence that raises it, and a result that is not finite is an error, not a prediction.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from hfbatch import columns as col
from hfbatch.batch import halve, pack_by_length, padded_tokens
from hfbatch.errors import RowError, SpecError, SystemicError
from hfbatch.layout import PaddedBatch, input_lengths
from hfbatch.preprocess import Preprocess
from hfbatch.sequences import Array, Column, Ragged, Sequences, scatter, take
from hfbatch.tasks.base import Flat, Outputs, Task

if TYPE_CHECKING:
    from hfbatch.job import Job
    from hfbatch.spec import Machine

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384  # on CPU more tokens outgrow the cache: 8k is a third slower


def _device(gpu: bool | None) -> torch.device:
    """Where the model goes. A GPU that was reserved and cannot be used is an error, not a reason for the CPU."""
    if gpu and not torch.cuda.is_available():
        raise SystemicError(
            f"Ray reserved a GPU for the model, but torch {torch.__version__} cannot use one; install a CUDA build of "
            "torch, or write gpus_per_actor: 0"
        )
    return torch.device("cuda" if torch.cuda.is_available() and gpu is not False else "cpu")


def load_model(job: Job, task: Task, device: torch.device) -> Any:
    """The checkpoint on `device`, ready for inference. SpecError when it has no weights for this task's head."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    auto_model = getattr(transformers, task.auto_model)
    model, loading = auto_model.from_pretrained(
        job.fetch_model(),
        dtype=getattr(torch, job.dtype),
        attn_implementation=job.attn_implementation,
        trust_remote_code=job.trust_remote_code,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(key for key in loading["missing_keys"] if not _is_unused(key, task))
    if missing:
        raise SpecError([job.problem_with_head(missing)])
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = task.pad_value("input_ids")
    return model.eval().to(device)


def _is_unused(key: str, task: Task) -> bool:
    return any(key.startswith(prefix) or f".{prefix}" in key for prefix in task.unused_weights)


@dataclass
class Meter:
    """What one actor has done since it began."""

    rows: int = 0
    sequences: int = 0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    forward_s: float = 0.0
    errors: int = 0

    def __sub__(self, other: Meter) -> Meter:
        return Meter(**{name: getattr(self, name) - getattr(other, name) for name in vars(self)})


Report: TypeAlias = Callable[[Meter], None] | None


@dataclass
class _Results:
    """The pieces of a block's outputs as batches finish, and the sequences that failed."""

    parts: dict[str, list[tuple[Array, Column]]] = field(default_factory=dict)
    done: list[Array] = field(default_factory=list)
    errors: dict[int, RowError] = field(default_factory=dict)

    def keep(self, batch: Array, outputs: Mapping[str, Column]) -> None:
        """Take the results of `batch` that are finite; the others are errors."""
        bad = _non_finite(outputs, len(batch))
        for item in np.flatnonzero(bad):
            self.errors[int(batch[item])] = RowError("non_finite", "the model's result has NaN or infinite values")
        good = np.flatnonzero(~bad)
        self.done.append(batch[good])
        for name, column in outputs.items():
            self.parts.setdefault(name, []).append((batch[good], take(column, good) if bad.any() else column))


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
        self.threads = threads
        torch.set_num_threads(threads)
        self.device = _device(gpu)
        self.preprocess = preprocess
        self.task = job.make_task()
        self.model: Any = load_model(job, self.task, self.device)
        if machine.compile:
            self.model = torch.compile(self.model, dynamic=True)
        default = GPU_BATCH_TOKENS if self.device.type == "cuda" else CPU_BATCH_TOKENS
        self.budget = default if machine.max_batch_tokens == "auto" else machine.max_batch_tokens
        self.max_rows = machine.max_batch_rows
        self.meter, self.report = Meter(), report
        self.load_s = time.perf_counter() - started

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes the `_hfbatch_in.*` columns of the model away, adds the `_hfbatch_out.*` ones."""
        torch.set_num_threads(self.threads)  # OpenMP counts per thread, and Ray calls from others than built this
        if self.preprocess is not None:
            table = self.preprocess(table)
        ticket, before, started = col.ticket_of(table), Meter(**vars(self.meter)), time.time()
        sequences = col.sequences_of(table, col.INPUT)
        outputs, errors = self.predict(sequences)
        self.meter.rows += ticket.rows
        self.meter.errors += len(table) - table[col.ERROR].null_count + len(errors)
        if self.report is not None:
            self.report(self.meter)
        spent = vars(self.meter - before)
        ticket = ticket.plus(
            **spent,
            actor=f"{socket.gethostname()}:{os.getpid()}",
            load_s=self.load_s,
            first_s=started,
            last_s=time.time(),
            **_peaks(self.device),
        )
        self.load_s = 0.0
        fed = [col.INPUT + name for name in self.task.inputs if name in sequences.columns]
        table = table.drop_columns(fed)
        table = col.with_errors(col.with_sequences(table, col.OUTPUT, outputs), errors)
        return ticket.on(table)

    def predict(self, sequences: Sequences) -> tuple[Sequences, dict[int, RowError]]:
        """Results for each sequence, in order, and errors by row. A row that fails in part has no results at all."""
        lengths = input_lengths(sequences, self.task)
        results = _Results()
        for batch in pack_by_length(lengths, self.budget, self.max_rows):
            self._run(sequences, batch, lengths, results)
        errors = {int(sequences.row[index]): error for index, error in sorted(results.errors.items())}
        done = np.sort(np.concatenate(results.done)) if results.done else np.zeros(0, dtype=np.int64)
        columns = {
            name: scatter([(np.searchsorted(done, index), column) for index, column in parts], len(done))
            for name, parts in results.parts.items()
        }
        outputs = Sequences(sequences.row[done], columns)
        if errors:
            outputs = outputs.take(np.flatnonzero(~np.isin(outputs.row, list(errors))))
        return outputs, errors

    def _run(self, sequences: Sequences, batch: Array, lengths: Array, results: _Results) -> None:
        """One batch, halved as often as it must be."""
        if len(batch) == 1 or padded_tokens(batch, lengths) <= self.budget:
            outputs = self._attempt(sequences.take(batch))
            if not isinstance(outputs, RowError):
                results.keep(batch, outputs)
                return self._count(batch, lengths)
            if len(batch) == 1:
                results.errors[int(batch[0])] = outputs
                return None
            if outputs.code == "out_of_memory":
                self.budget = max(1, padded_tokens(batch, lengths) // 2)
        for half in halve(batch, lengths):
            self._run(sequences, half, lengths, results)
        return None

    def _attempt(self, batch: Sequences) -> dict[str, Column] | RowError:
        """The results of `batch`, or why there are none. Raises only when the device itself is lost."""
        try:
            return self._forward(batch)
        except Exception as error:
            failure = RowError("out_of_memory" if _is_out_of_memory(error) else "forward_failed", col.describe(error))
        if self.device.type == "cuda":  # only now: the exception held the batch's tensors through its traceback
            torch.cuda.synchronize(self.device)  # raises again what no later batch escapes, such as a device assert
            torch.cuda.empty_cache()
        return failure

    def _forward(self, batch: Sequences) -> dict[str, Column]:
        started = time.perf_counter()
        with torch.inference_mode():
            outputs = self.task.forward(self.model, PaddedBatch(batch, self.task, self.device))
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


def to_numpy(outputs: Outputs) -> dict[str, Column]:
    """Results of forward on the host, as the columns of Sequences."""
    columns: dict[str, Column] = {}
    for name, value in outputs.items():
        if isinstance(value, Flat):
            lengths = value.lengths.cpu().numpy() if isinstance(value.lengths, torch.Tensor) else value.lengths
            if int(lengths.sum()) != len(value.values):
                raise AssertionError(f"{name} has {len(value.values)} values for lengths of {int(lengths.sum())}")
            columns[name] = Ragged.from_lengths(value.values.cpu().numpy(), lengths)
        else:
            columns[name] = value.cpu().numpy()
    return columns


def _non_finite(columns: Mapping[str, Column], sequences: int) -> Array:
    """(sequences,) bool: whether any result of a sequence is NaN or infinite."""
    bad = np.zeros(sequences, dtype=bool)
    for column in columns.values():
        values = column.values if isinstance(column, Ragged) else column
        if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
            continue
        broken = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if isinstance(column, Ragged):
            owner = np.repeat(np.arange(sequences), column.lengths)
            bad[owner[broken]] = True
        else:
            bad |= broken
    return bad


def _is_out_of_memory(error: Exception) -> bool:
    said = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # the CPU allocator, CUDA, its libraries
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def _peaks(device: torch.device) -> dict[str, float]:
    """Bytes: the most memory this process, and its device, have held."""
    peaks = {"peak_rss": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}
    if device.type == "cuda":
        peaks["peak_gpu"] = float(torch.cuda.max_memory_allocated(device))
    return peaks

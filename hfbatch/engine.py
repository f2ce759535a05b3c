"""One model on one device: batches in, results on the host out, and what goes wrong in a batch found.

Out of memory halves a batch and lowers the budget for the rest, any other exception is bisected to the sequence that
raises it, and a result that is not finite is tried once more in float32; if it is not finite then, it is an error,
not a prediction.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch

from hfbatch import columns as col
from hfbatch.batch import cut, halve, padded_tokens
from hfbatch.compiled import compiled_for
from hfbatch.devices import device_for, is_out_of_memory, name_of, peaks, stopwatch
from hfbatch.errors import RowError
from hfbatch.lanes import Lanes, lanes_for
from hfbatch.layout import PaddedBatch
from hfbatch.loading import load_model
from hfbatch.packer import Packer
from hfbatch.precision import in_float32, is_float32
from hfbatch.prepacked import pays, prepack
from hfbatch.results import Results, to_numpy
from hfbatch.sequences import Array, Column, Sequences
from hfbatch.tally import DeviceLost, Meter, Report, Stopped
from hfbatch.tuning import TokenBudget, budget_for

if TYPE_CHECKING:
    from hfbatch.job import Step
    from hfbatch.spec import Machine

T = TypeVar("T")


class Flight(NamedTuple):
    """A batch whose results the device is still at work on."""

    batch: Sequences
    landed: Callable[[], tuple[dict[str, Column], float]]  # waits for results on the host, and says the seconds


@dataclass(frozen=True)
class Work:
    """The sequences of a block, and their results as batches finish."""

    sequences: Sequences
    lengths: Array  # (sequences,) int64: what each costs, in tokens
    shapes: Array | None = None  # (sequences,) int64: only equal ones share a batch
    results: Results = field(default_factory=Results)


class Engine:
    """Keeps one model resident and puts sequences through it."""

    def __init__(self, step: Step, machine: Machine, gpu: bool | None = None, report: Report = None) -> None:
        """`report` is called after every batch. `gpu`: whether one was reserved; None: take one if it is there."""
        self.step, self.machine, self.task = step, machine, step.make_task()
        self.device, self.max_rows = device_for(gpu), machine.max_batch_rows
        self.renew: Callable[..., None] = lambda least=0.0: None  # called before every forward: it is no hang
        self.announce: Callable[[Array], None] | None = None  # called before every forward, with the rows in it
        self.first = 0  # row of the block that the rows at hand begin with
        self.meter, self.report = Meter(), report
        self._finished: dict[int, int] = {}  # a batch under way, by its id -> its sequences that have come to their end
        self._last_s = 0.0  # seconds of the last batch
        self.model: Any = None
        self.load()
        self.tuner = self._tuner()

    def load(self) -> None:
        """From the checkpoint, ready for inference."""
        model = load_model(self.step, self.task, self.device)
        self.task.loaded(model)
        self.packer = Packer(model, self.task, self.machine)
        on_cpu = self.device.type == "cpu" and self.packer.open and pays()
        self.prepacked = on_cpu and prepack(model, self.task.batch_tokens[0])
        self.model, self.compiled = compiled_for(model, self.task, self.machine, self.device, self._tuner().tokens)
        searches = self.task.generates and not self.task.schedules  # by model.generate
        alone = self.device.type == "cuda" or self.machine.compile or self.task.adapted or searches
        threads = torch.get_num_threads()
        self.lanes = Lanes(1 if alone else lanes_for(model, threads, self.task.schedules), threads)

    def _tuner(self) -> TokenBudget:
        return budget_for(self.task, self.machine, self.packer.open, self.device.type == "cuda")

    @property
    def layout(self) -> str:
        """How batches and weights lie, for the report."""
        layout = self.task.way() or (self.compiled or self.packer).layout
        return layout + (", prepacked weights" if self.prepacked else "")

    def recall(self, budgets: Mapping[str, int]) -> None:
        """Take the budget that another run found on such a device, if it did and none is given."""
        if not self.tuner.settled and (known := budgets.get(name_of(self.device))):
            self.tuner.settle(known)

    def about(self) -> dict[str, float | str]:
        """How it works, for the report and for other runs."""
        found = {} if not self.tuner.settled else {"settled": name_of(self.device)}
        return {"layout": self.layout, "budget": float(self.budget), **found, **peaks(self.device)}

    @property
    def budget(self) -> int:
        """The most tokens of a batch, by now."""
        return self.tuner.tokens

    @budget.setter
    def budget(self, tokens: int) -> None:
        self.tuner.settle(tokens)

    def release(self) -> None:
        """Give the model up, and its memory; the next block loads it again."""
        self.model = self.compiled = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def settle_layout(self, sequences: Sequences) -> None:
        """Find out, on the first of all sequences, whether the model's layers may do without padding."""
        if self.packer.open and len(sequences):
            self.packer.settle(sequences, self._forward)

    @property
    def _ahead(self) -> int:
        """Batches that are begun before the results of the first are waited for; none where a row may end it all."""
        if self.device.type == "cuda":
            return 1
        return 0 if self.lanes.count == 1 or self.announce is not None else self.lanes.count + 1

    def run(self, work: Work, part: Array) -> None:
        """The sequences `part` of `work`."""
        flying, ahead = deque[tuple[Array, Flight | RowError]](), self._ahead
        for chosen in self._cut(work, part):
            batch = part[chosen]
            flying.append((batch, self._started(work, batch, first=True)))
            if len(flying) > ahead:
                self._arrive(work, *flying.popleft())
        for batch, flight in flying:
            self._arrive(work, batch, flight)
        self._try_again(work)

    def _cut(self, work: Work, part: Array) -> Iterator[Array]:
        """Batches; a task that cuts them itself gets one for each lane, unless it is to say over which rows it dies."""
        if self.task.schedules and self.announce is None:
            order = np.argsort(-work.lengths[part], kind="stable")
            return (order[lane :: self.lanes.count] for lane in range(min(self.lanes.count, len(part))))
        if self.compiled and (shapes := self.compiled.shapes):
            return shapes.cut(work.lengths[part], lambda: self.budget)
        kinds = None if work.shapes is None else work.shapes[part]
        return cut(work.lengths[part], lambda: (self.budget, self.max_rows), kinds, self.packer.on, self.lanes.count)

    def _started(self, work: Work, batch: Array, first: bool = False) -> Flight | RowError:
        """What failed in a compiled model goes through the model itself: `first` it is compiled."""
        return self._attempt(lambda: self._launch(work.sequences.take(batch), compiled=first))

    def _arrive(self, work: Work, batch: Array, flight: Flight | RowError) -> None:
        """The results of a batch; where there are none those of its halves, and so on."""
        outputs = flight if isinstance(flight, RowError) else self._attempt(lambda: self._land(flight))
        if not isinstance(outputs, RowError):
            work.results.keep(batch, outputs)
            return self._count(batch, work.lengths)
        if len(batch) == 1:
            work.results.errors[int(batch[0])] = outputs
            return None
        if by_tokens := outputs.code == "out_of_memory":
            self.tuner.ran_out(self.budget if self.task.schedules else self._cost(batch, work.lengths))
        middle = len(batch) // 2  # the way to one bad row among n is 2 log2(n) batches, whatever their lengths
        for half in halve(batch, work.lengths) if by_tokens else (batch[:middle], batch[middle:]):
            self._refit(work, half)
        return None

    def _refit(self, work: Work, batch: Array) -> None:
        """One batch again; halved before where it is known not to fit."""
        if len(batch) == 1 or self.task.schedules or self._cost(batch, work.lengths) <= self.budget:
            return self._arrive(work, batch, self._started(work, batch))
        for half in halve(batch, work.lengths):
            self._refit(work, half)
        return None

    def _try_again(self, work: Work) -> None:
        """What was not finite once more, in float32; where that is what it was in, without padding."""
        results = work.results
        left, results.broken = set(results.broken), []
        if not left:
            return
        bad = np.array(sorted(left))
        most = 1 if is_float32(self.model) else self.max_rows
        try:
            with in_float32(self.model) as model:
                kinds = None if work.shapes is None else work.shapes[bad]
                for chosen in cut(work.lengths[bad], lambda: (max(1, self.budget // 2), most), kinds):
                    batch = work.sequences.take(bad[chosen])
                    outputs = self._attempt(partial(self._forward, batch, model))
                    if not isinstance(outputs, RowError):
                        results.keep(bad[chosen], outputs)
                        left -= set(bad[chosen].tolist()) - set(results.broken)
        except Exception as error:  # no room for the weights in float32
            if not is_out_of_memory(error):
                raise
        results.broken = []
        for index in left:
            results.errors[index] = RowError("non_finite", "the model's result has NaN or infinite values")

    def _attempt(self, work: Callable[[], T]) -> T | RowError:
        """What `work` gives, or why it gives nothing. Raises only when the device itself is lost."""
        try:
            return work()
        except (DeviceLost, Stopped):
            raise
        except RowError as error:  # a task's own finding; as a copy, for this one holds the batch by its traceback
            failure = RowError(error.code, error.message)
        except BaseException as error:
            if not col.is_fault(error):
                raise
            failure = RowError("out_of_memory" if is_out_of_memory(error) else "forward_failed", col.describe(error))
        if self.device.type == "cuda":  # only now: the exception held the batch's tensors through its traceback
            try:
                torch.cuda.synchronize(self.device)
            except Exception as error:  # it raises again what no later batch escapes, such as a device assert
                raise DeviceLost(f"{self.device} is lost to this process: {col.describe(error)}") from error
            torch.cuda.empty_cache()
        return failure

    def _forward(self, batch: Sequences, model: Any = None) -> dict[str, Column]:
        return self._land(self._launch(batch, model))

    def _launch(self, batch: Sequences, model: Any = None, compiled: bool = False) -> Flight:
        """Begin with a batch; with one lane on a CPU it is done by then."""
        if self.announce is not None:
            self.announce(batch.row + self.first)
        self.renew()
        model = self.model if model is None else model
        dtype, room = getattr(model, "dtype", None), (max(1, self.budget // self.lanes.count), self.max_rows)
        laid = PaddedBatch(batch, self.task, self.device, dtype, room, partial(self._alive, id(batch)))
        if compiled and self.compiled:
            laid, model = self.compiled.ready(laid, self.budget, self.renew)
        if self.device.type == "cuda":
            return Flight(batch, self._queued(laid, model))
        return Flight(batch, self.lanes.start(lambda: self._queued(laid, model)()))

    def _queued(self, batch: PaddedBatch, model: Any) -> Callable[[], tuple[dict[str, Column], float]]:
        queued = stopwatch(self.device)
        try:
            with torch.inference_mode(), self.packer.around(batch):
                outputs = self.task.forward(model, batch)
        except BaseException:
            self._finished.pop(id(batch.sequences), None)
            raise
        seconds = queued()
        return lambda: (to_numpy(outputs), seconds())

    def _land(self, flight: Flight) -> dict[str, Column]:
        """The results of a batch on the host."""
        columns, seconds = flight.landed()
        self._finished.pop(id(flight.batch), None)  # now they count as all others do
        self.renew()
        self.meter.forward_s += seconds / self.lanes.count
        self._last_s = seconds
        for name, column in columns.items():
            if len(column) != len(flight.batch):
                raise AssertionError(f"{self.task.name} gave {len(column)} of {name} for {len(flight.batch)} sequences")
        return columns

    def _alive(self, batch: int, finished: int) -> None:
        """Within a long forward of a batch with that id."""
        self.renew()
        self._finished[batch] = self._finished.get(batch, 0) + finished
        try:
            self.tell()
        except Exception as error:  # whatever keeps the word from being heard, it is no fault of the rows
            raise Stopped from error

    def tell(self) -> None:
        """Report how far it is. Stopped, where the run is to end."""
        if self.report is not None:
            self.report(replace(self.meter, sequences=self.meter.sequences + sum(tuple(self._finished.values()))))

    def _cost(self, batch: Array, lengths: Array) -> int:
        if self.compiled and (shapes := self.compiled.shapes):
            return shapes.cost(int(lengths[batch].max(initial=0)), len(batch), self.budget)
        real = self.packer.on or self.task.schedules
        return int(lengths[batch].sum()) if real else padded_tokens(batch, lengths)

    def _count(self, batch: Array, lengths: Array) -> None:
        cost = self._cost(batch, lengths)
        self.tuner.ran(cost, self._last_s)
        self.meter.batches += 1
        self.meter.batch_s += self._last_s
        self.meter.sequences += len(batch)
        self.meter.tokens += int(lengths[batch].sum())
        self.meter.padded_tokens += cost
        self.tell()

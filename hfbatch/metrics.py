"""What an actor has done since it began, in; Prometheus metrics, through Ray, out. Nothing here can end a run.

    hfbatch_rows_total             counter    rows that left the model, with a result or an error
    hfbatch_tokens_total           counter    tokens put through the model, without padding
    hfbatch_forward_seconds_total  counter    seconds in forward; over the time that passed: how busy the actors are
    hfbatch_batch_seconds          histogram  seconds from the start of a batch to its results on the host
    hfbatch_padding_share          gauge      of the tokens that the model saw in this actor so far
    hfbatch_errors_total           counter    rows with an error, by `code`

All have the tags `job` and `task` and no more: a model's commit or a run's id would make new series every night. Ray
puts `ray_` before the names and the node and the process beside the tags, and every node that runs Ray's dashboard
agent (`ray[default]`) serves them. Work that is done twice, as after the loss of a node, counts twice: how many rows
are committed stands in the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ray.util.metrics import Counter, Gauge, Histogram

from hfbatch.histograms import of_errors
from hfbatch.tally import Meter

TAGS = ("job", "task")
BOUNDARIES_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]


class Metrics:
    """The metrics of one actor; all calls are harmless, and cheap enough for every batch."""

    def __init__(self, job: str, task: str) -> None:
        """`job` and `task`: their names."""
        self._tags, self._told, self._works = {"job": job, "task": task}, Meter(), True
        self._harmless(self._create)

    def record(self, meter: Meter) -> None:
        """Count what is new in the actor's totals since the last call."""
        self._harmless(lambda: self._record(meter))

    def record_errors(self, errors: Iterable[str]) -> None:
        """Count rows with an error, each given as `code: message`."""
        self._harmless(lambda: self._record_errors(errors))

    def beside(self, report: Callable[[Meter], None]) -> Callable[[Meter], None]:
        """A `report` for model.Predict that also records what it is told."""

        def both(meter: Meter) -> None:
            self.record(meter)
            report(meter)

        return both

    def _harmless(self, work: Callable[[], None]) -> None:
        """What fails is logged once, and nothing is recorded any more."""
        if not self._works:
            return
        try:
            work()
        except Exception:
            self._works = False
            logging.getLogger(__name__).exception("metrics cannot be recorded; the run goes on without them")

    def _create(self) -> None:
        self._rows = Counter("hfbatch_rows_total", "Rows that left the model", TAGS)
        self._tokens = Counter("hfbatch_tokens_total", "Tokens put through the model, without padding", TAGS)
        self._forward = Counter("hfbatch_forward_seconds_total", "Seconds in forward", TAGS)
        self._errors = Counter("hfbatch_errors_total", "Rows with an error, by its code", (*TAGS, "code"))
        self._padding = Gauge("hfbatch_padding_share", "Padding among the tokens that the model saw", TAGS)
        self._batch = Histogram("hfbatch_batch_seconds", "Seconds of a batch", BOUNDARIES_S, TAGS)

    def _record(self, meter: Meter) -> None:
        new, self._told = meter - self._told, Meter(**vars(meter))
        _add(self._rows, new.rows, self._tags)
        _add(self._tokens, new.tokens, self._tags)
        _add(self._forward, new.forward_s, self._tags)
        for _ in range(new.batches):  # one, but of those that a child process has done
            self._batch.observe(new.batch_s / new.batches, self._tags)
        if new.padded_tokens:
            self._padding.set(1 - meter.tokens / meter.padded_tokens, self._tags)

    def _record_errors(self, errors: Iterable[str]) -> None:
        for code, rows in of_errors(errors)[0].items():
            _add(self._errors, rows, {**self._tags, "code": code})


def _add(counter: Counter, value: float, tags: dict[str, str]) -> None:
    """Ray refuses to count nothing."""
    if value > 0:
        counter.inc(value, tags)

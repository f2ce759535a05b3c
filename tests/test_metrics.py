"""Metrics as Prometheus reads them: what an actor did, under the names that README gives."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.metrics import Metric

import hfbatch
from hfbatch.metrics import Metrics
from hfbatch.tally import Meter
from tests.harm import add
from tests.models import bert, sentences
from tests.test_interrupt import when

LABELS = {"job": "nightly", "task": "text-classification"}
FIRST = Meter(rows=0, batches=1, tokens=90, padded_tokens=100, forward_s=0.5, batch_s=0.75)
SECOND = Meter(rows=8, batches=2, tokens=150, padded_tokens=200, forward_s=0.75, batch_s=1.25)

PATIENT = """
import time
from pathlib import Path

from transformers import BertForSequenceClassification


class Patient(BertForSequenceClassification):
    def forward(self, input_ids, **inputs):
        seen, deadline = Path(self.config.seen), time.monotonic() + 120
        while (input_ids == self.config.last).any() and not seen.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().forward(input_ids, **inputs)
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, dict[str, str]]]:
    """(name, value, tags) of everything that Ray was told."""
    made: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(Metric, "_record", lambda self, value, tags=None: made.append((self._name, value, tags)))
    return made


def test_what_is_new_since_the_last_batch_is_counted(told: list[Any]) -> None:
    metrics = Metrics("nightly", "text-classification")
    metrics.record(FIRST)
    metrics.record(SECOND)
    metrics.record(SECOND)
    assert told == [
        ("hfbatch_tokens_total", 90, LABELS),
        ("hfbatch_forward_seconds_total", 0.5, LABELS),
        ("hfbatch_batch_seconds", 0.75, LABELS),
        ("hfbatch_padding_share", pytest.approx(0.1), LABELS),
        ("hfbatch_rows_total", 8, LABELS),
        ("hfbatch_tokens_total", 60, LABELS),
        ("hfbatch_forward_seconds_total", 0.25, LABELS),
        ("hfbatch_batch_seconds", 0.5, LABELS),
        ("hfbatch_padding_share", pytest.approx(0.25), LABELS),
    ]


def test_a_meter_that_is_changed_in_place_is_counted_all_the_same(told: list[Any]) -> None:
    metrics, meter = Metrics("nightly", "text-classification"), Meter()
    for _ in range(2):
        meter.tokens += 5
        metrics.record(meter)
    assert [value for _, value, _ in told] == [5, 5]


def test_batches_that_came_together_share_their_seconds(told: list[Any]) -> None:
    Metrics("nightly", "text-classification").record(Meter(batches=4, batch_s=2.0))
    assert [value for name, value, _ in told if name == "hfbatch_batch_seconds"] == [0.5] * 4


def test_errors_are_counted_by_their_code(told: list[Any]) -> None:
    metrics = Metrics("nightly", "text-classification")
    metrics.record_errors(["null: text is null", "too_long: 9 of 8: tokens", "null: text is null"])
    metrics.record_errors([])
    assert told == [
        ("hfbatch_errors_total", 2, {**LABELS, "code": "null"}),
        ("hfbatch_errors_total", 1, {**LABELS, "code": "too_long"}),
    ]


@pytest.mark.parametrize("broken", ["_record", "__init__"])
def test_metrics_that_fail_are_logged_once_and_end_nothing(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no agent")

    monkeypatch.setattr(Metric, broken, fail)
    reported: list[Meter] = []
    with caplog.at_level(logging.ERROR, "hfbatch"):
        metrics = Metrics("nightly", "text-classification")
        report = metrics.beside(reported.append)
        report(FIRST)
        report(SECOND)
        metrics.record_errors(["null: text is null"])
    assert reported == [FIRST, SECOND]
    assert [record.message for record in caplog.records] == ["metrics cannot be recorded; the run goes on without them"]


# through Ray's agent


@pytest.fixture
def page() -> Iterator[str]:
    """The address of the metrics of a Ray whose agent exports them each second."""
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="Ray exports metrics with ray[default] only")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    often = {"metrics_report_interval_ms": 1000}
    with ray.init(
        address="local", num_cpus=2, _node_ip_address="127.0.0.1", _metrics_export_port=port, _system_config=often,
        **quiet,
    ):  # fmt: skip
        yield f"http://127.0.0.1:{port}/metrics"


def samples(page: str) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Name -> our own tags -> value, summed over processes; none while nobody answers."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = urllib.request.urlopen(page, timeout=5).read().decode()
    except OSError:
        return {}
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_hfbatch_"):
                tags = frozenset((k, v) for k, v in sample.labels.items() if k in ("job", "task", "code", "le"))
                values = found.setdefault(sample.name.removeprefix("ray_"), {})
                values[tags] = values.get(tags, 0.0) + sample.value
    return found


@pytest.mark.slow
def test_a_scrape_finds_what_the_report_says(page: str, tmp_path: Path, write_parquet: Any, job_for: Any) -> None:
    """The last row waits for the first scrape that shows a gauge: those of an actor that has ended are dropped."""
    model = bert(tmp_path / "model", seen=str(tmp_path / "seen"), last=last_token(tmp_path))
    (model / "patient.py").write_text(PATIENT)
    add(model / "config.json", {"AutoModelForSequenceClassification": "patient.Patient"})
    path = write_parquet("in.parquet", {"text": [*sentences(118, longest=20), None, "x"]})
    job = {**job_for("text-classification", model, path), "name": "nightly"}
    job["model"]["trust_remote_code"] = True
    shares: list[float] = []

    def shown() -> bool:
        shares.extend(samples(page).get("hfbatch_padding_share", {}).values())
        return bool(shares)

    scraped = when(shown, (tmp_path / "seen").touch)
    report = hfbatch.run(job, on={"max_batch_rows": 8, "packing": False}, trust_remote_code=True)
    scraped.join()
    assert 0 < shares[0] < 1
    tags = frozenset(LABELS.items())
    done = when(lambda: samples(page).get("hfbatch_rows_total", {}).get(tags) == report.rows, lambda: None, seconds=30)
    done.join()
    found = samples(page)
    assert found["hfbatch_rows_total"] == {tags: 120}
    assert found["hfbatch_tokens_total"] == {tags: report.tokens}
    assert found["hfbatch_forward_seconds_total"][tags] == pytest.approx(report.seconds.forward, abs=0.01)
    assert found["hfbatch_batch_seconds_count"] == {tags: report.batches}
    assert found["hfbatch_errors_total"] == {tags | {("code", code)}: n for code, n in report.errors.items()}
    assert report.rows_failed == 1


def last_token(folder: Path) -> int:
    from tests.models import wordpiece

    return int(wordpiece(folder / "words").convert_tokens_to_ids("x"))

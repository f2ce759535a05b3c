"""RunReport: what a run did, in numbers; Progress: how far it is. Both are data; cli/ shows them."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hfbatch.records import Receipt

PACKAGES = ("hfbatch", "torch", "transformers", "tokenizers", "ray", "pyarrow")


class Progress(BaseModel):
    """A moment of a run under way."""

    model_config = ConfigDict(frozen=True)

    phase: Literal["starting", "loading", "running", "publishing"]
    rows_done: int  # of this output, committed before included
    rows_total: int
    rows_per_s: float
    tokens_per_s: float  # real tokens
    padding_share: float
    errors: int
    eta_s: float | None


class Seconds(BaseModel):
    """Where the time went. All but start and total are summed over workers."""

    model_config = ConfigDict(frozen=True)

    start: float = 0.0  # from the call until the first batch: Ray, processes, model
    model_load: float = 0.0
    read: float = 0.0
    tokenise: float = 0.0
    forward: float = 0.0
    postprocess: float = 0.0
    write: float = 0.0
    total: float = 0.0


class RunReport(BaseModel):
    """What a run did. Stored as report.json in the run's folder."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    job: str
    outcome: Literal["success", "nothing_to_do", "error_budget_exceeded", "incomplete", "interrupted"]
    output: str
    generation: str
    model_id: str
    model_revision: str
    rows: int  # in the output
    rows_new: int  # inferred by this run
    rows_failed: int
    errors: dict[str, int]  # code -> rows
    shards: int
    shards_new: int
    tokens: int  # real tokens this run put through the model
    padded_tokens: int  # the same with padding
    padding_share: float  # of padded_tokens
    batches: int
    layout: str = ""  # packed: the layers saw no padding; padded, and why
    batch_tokens: int = 0  # what a batch held at most, by the end
    rows_per_s: float  # between the first and the last batch
    tokens_per_s: float
    forward_share: float  # of the time between the first and the last batch, mean over actors
    actors: int
    seconds: Seconds
    peak_memory_bytes: int  # of the largest actor process
    peak_gpu_bytes: int
    bytes_written: int
    versions: dict[str, str]


def make_report(
    about: dict[str, Any], receipts: Sequence[Receipt], run_id: str, started: float, ended: float
) -> RunReport:
    """The report of run `run_id` from the receipts of all shards of the output. `about` names job and model."""
    mine = [receipt for receipt in receipts if receipt.run_id == run_id and receipt.stats]
    errors = Counter[str]()
    for receipt in receipts:
        errors.update(receipt.errors)
    tokens, padded = int(_sum(mine, "tokens")), int(_sum(mine, "padded_tokens"))
    first = min((float(receipt.stats.get("first_s", ended)) for receipt in mine), default=ended)
    last = max((float(receipt.stats.get("last_s", first)) for receipt in mine), default=first)
    active = max(last - first, 1e-9)
    rows_new = sum(receipt.rows - receipt.carried for receipt in mine)
    seconds = Seconds(
        start=round(first - started, 3),
        model_load=_sum(mine, "load_s"),
        read=_sum(mine, "read_s"),
        tokenise=_sum(mine, "tokenise_s"),
        forward=_sum(mine, "forward_s"),
        postprocess=_sum(mine, "postprocess_s"),
        write=_sum(mine, "write_s"),
        total=round(ended - started, 3),
    )
    return RunReport(
        **about,
        run_id=run_id,
        rows=sum(receipt.rows for receipt in receipts),
        rows_new=rows_new,
        rows_failed=sum(errors.values()),
        errors=dict(errors.most_common()),
        shards=len(receipts),
        shards_new=len(mine),
        tokens=tokens,
        padded_tokens=padded,
        padding_share=round(1 - tokens / padded, 4) if padded else 0.0,
        batches=int(_sum(mine, "batches")),
        layout=" / ".join(sorted({str(receipt.stats["layout"]) for receipt in mine if "layout" in receipt.stats})),
        batch_tokens=int(_max(mine, "budget")),
        rows_per_s=round(rows_new / active, 1) if mine else 0.0,
        tokens_per_s=round(tokens / active, 1) if mine else 0.0,
        forward_share=_forward_share(mine),
        actors=len({receipt.stats.get("actor") for receipt in mine}),
        seconds=seconds,
        peak_memory_bytes=int(_max(mine, "peak_rss")),
        peak_gpu_bytes=int(_max(mine, "peak_gpu")),
        bytes_written=sum(receipt.nbytes for receipt in mine),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of what affects values and speed."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def _forward_share(receipts: Iterable[Receipt]) -> float:
    """Forward seconds over the span from first to last batch, each actor by itself; then their mean."""
    spans: dict[Any, tuple[float, float, float]] = {}
    for receipt in receipts:
        stats = receipt.stats
        first, last, busy = spans.get(stats["actor"], (float("inf"), 0.0, 0.0))
        spans[stats["actor"]] = (min(first, stats["first_s"]), max(last, stats["last_s"]), busy + stats["forward_s"])
    shares = [busy / max(last - first, 1e-9) for first, last, busy in spans.values()]
    return round(sum(shares) / len(shares), 4) if shares else 0.0


def _sum(receipts: Iterable[Receipt], name: str) -> float:
    return round(sum(float(receipt.stats.get(name, 0)) for receipt in receipts), 3)


def _max(receipts: Iterable[Receipt], name: str) -> float:
    return max((float(receipt.stats.get(name, 0)) for receipt in receipts), default=0.0)

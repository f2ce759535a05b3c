"""RunReport: what a run did, in numbers; Progress: how far it is. Both are data; cli/ shows them."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hfbatch import histograms as hist
from hfbatch.records import Receipt
from hfbatch.words import commit

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


class Gate(BaseModel):
    """What was asked of an output before it was published, and what it was."""

    model_config = ConfigDict(frozen=True)

    name: str  # its keys in the job file, below gates: shift.label.psi
    value: float | bool | None  # None: it could not be told, or there was nothing to compare it with; see `note`
    min: float | None = None
    max: float | None = None
    passed: bool
    note: str = ""
    about: str = ""  # the query, the golden file

    @property
    def found(self) -> str:
        """The value in words."""
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if self.value is None:
            return "nothing to compare" if self.passed else "not known"
        return _spelled(self.value)

    @property
    def bound(self) -> str:
        """What was asked, in words."""
        if self.min is None:
            return "true" if self.max is None else f"at most {_spelled(self.max)}"
        return f"at least {_spelled(self.min)}" if self.max is None else f"{_spelled(self.min)} to {_spelled(self.max)}"

    def __str__(self) -> str:
        return f"{self.name}: {self.found}, asked: {self.bound}" + (f" ({self.note})" if self.note else "")


def _spelled(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:.4g}"


class StepReport(BaseModel):
    """What one step of a job with `steps:` did in a run."""

    model_config = ConfigDict(frozen=True)

    name: str
    task: str
    model_id: str
    model_revision: str
    sequences: int = 0
    tokens: int = 0
    forward_s: float = 0.0  # summed over workers

    def __str__(self) -> str:
        model = f"{self.model_id} @ {commit(self.model_revision)}"
        done = f"; {self.tokens:,} tokens, forward {self.forward_s:.1f} s" if self.sequences else ""
        return f"{self.name}: {self.task} with {model}{done}" if self.name else f"{self.task} with {model}{done}"


class RunReport(BaseModel):
    """What a run did. Stored as report.json in the run's folder."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    job: str
    outcome: Literal["success", "nothing_to_do", "error_budget_exceeded", "gates_failed", "incomplete", "interrupted"]
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
    peak_memory_bytes: int  # of the largest actor process, without what Ray's object store shares
    peak_gpu_bytes: int
    bytes_written: int
    versions: dict[str, str]
    # Of the shards that this run committed; see histograms.py. Defaults: reports of before have none of these.
    token_lengths: list[int] = []  # sequences of up to 1, 2, 4, 8 ... tokens; the 16th: all that are longer
    labels: dict[str, int] = {}  # label -> rows, the most frequent first; entities and objects each count
    scores: list[int] = []  # rows by score, in 20 bins of [0, 1]; empty where scores are no probabilities
    curve: list[tuple[float, int]] = []  # (seconds since the first batch, rows finished by then), at most 200 points
    predicted_s: float | None = None  # seconds.total, as it was expected
    predicted_by: Literal["", "plan", "former run", "first shards"] = ""  # `plan --sample`; or what was seen when
    guardrails: dict[str, int] = {}  # "rule: what it did" -> rows
    examples: dict[str, str] = {}  # code -> the message of one such error, of the whole output
    # What the run found changed; see changes.py. Files with rows are new, changed or skipped, and of those some failed.
    files: int = 0
    files_new: int = 0
    files_changed: int = 0  # another content was committed under that name before
    files_skipped: int = 0  # all their rows were committed before this run
    files_failed: int = 0  # not all their rows are committed after it
    files_removed: int = 0  # were published and are no longer in the input: their rows leave the output
    shards_changed: int = 0  # of shards_new, those that hold rows of changed files
    shards_skipped: int = 0
    shards_failed: int = 0  # of the plan, not committed after this run
    rows_changed: int = 0  # of rows_new, those of changed files
    rows_skipped: int = 0  # committed before this run
    # Rows of this run whose result another row had, in the run or before it; of a job with steps, in each of them.
    reused: int = 0
    reused_share: float = 0.0  # of all that were to be inferred
    saved_tokens: int = 0  # that no model had to see for it
    saved_share: float = 0.0  # of these and `tokens`
    partition_by: list[str] = []  # columns that the folders of data/ give
    steps: list[StepReport] = []  # of a job with several models, in its order; that of a rule has the rule's name
    gates: list[Gate] = []  # in the order of the job file
    published_anyway: bool = False  # though not all gates were passed: somebody said so

    @property
    def reuse(self) -> str:
        """In words what was not inferred because its result was there; empty where all was."""
        told = f"{self.reused:,} rows ({self.reused_share:.1%}) had the result of an equal row"
        return f"{told}; {self.saved_share:.1%} of tokens saved" if self.reused else ""

    @property
    def guarded(self) -> str:
        """In words to how many rows of this run the rules did something; empty where they had nothing to do."""
        return ", ".join(f"{name} {rows:,}" for name, rows in self.guardrails.items())

    def _repr_html_(self) -> str:
        from hfbatch.html import report_card

        return report_card(self)


def make_report(
    about: dict[str, Any], receipts: Sequence[Receipt], run_id: str, started: float, ended: float
) -> RunReport:
    """The report of run `run_id` from the receipts of all shards of the output. `about` names job and model."""
    mine = [receipt for receipt in receipts if receipt.run_id == run_id and receipt.stats]
    errors = sum((Counter(receipt.errors) for receipt in receipts), Counter[str]())
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
    steps = [StepReport(**step, **_of_step(mine, step["name"])) for step in about.pop("steps", [])]
    return RunReport(
        **about,
        run_id=run_id,
        steps=steps,
        rows=sum(receipt.rows for receipt in receipts),
        rows_new=rows_new,
        rows_skipped=sum(receipt.rows for receipt in receipts) - rows_new,
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
        **(_pictures(mine) | _reuse(mine, tokens)),
        examples={code: text for receipt in receipts for code, text in receipt.stats.get("examples", {}).items()},
    )


def _of_step(receipts: Sequence[Receipt], name: str) -> dict[str, Any]:
    """The step's own numbers."""
    own = [stats for receipt in receipts if (stats := receipt.stats.get("steps", {}).get(name))]
    totals = {field: sum(stats.get(field, 0) for stats in own) for field in ("sequences", "tokens", "forward_s")}
    return {**totals, "forward_s": round(totals["forward_s"], 3)}


def versions() -> dict[str, str]:
    """Versions of what affects values and speed."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def _pictures(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """What charts are drawn of, by the report's names."""
    told = [receipt.stats for receipt in receipts]
    timed = [receipt for receipt in receipts if "last_s" in receipt.stats]
    return {
        "token_lengths": hist.summed(stats["token_lengths"] for stats in told if "token_lengths" in stats),
        "labels": hist.merged_labels(stats["labels"] for stats in told if "labels" in stats),
        "guardrails": hist.merged_labels(stats["guardrails"] for stats in told if "guardrails" in stats),
        "scores": hist.merged_scores(stats["scores"] for stats in told if "scores" in stats),
        "curve": hist.finished([(r.stats["first_s"], r.stats["last_s"], r.rows - r.carried) for r in timed]),
    }


def _reuse(receipts: Sequence[Receipt], tokens: int) -> dict[str, float]:
    """What was not inferred because its result was there. `tokens`: that were seen."""
    rows = sum((each.rows - each.carried) * _inferring(each.stats.get("steps", [""])) for each in receipts)
    reused, saved = int(_sum(receipts, "reused")), int(_sum(receipts, "saved_tokens"))
    shares = {"reused_share": reused / max(1, rows), "saved_share": saved / max(1, saved + tokens)}
    return {"reused": reused, "saved_tokens": saved, **{name: round(share, 4) for name, share in shares.items()}}


def _inferring(steps: Iterable[str]) -> int:
    """How many of these steps are the job's own, and not what a rule asks."""
    return sum(not name.startswith("guardrails.") for name in steps)


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

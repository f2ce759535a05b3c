"""zero-shot-classification: how well each of the labels you name fits a text, judged by a model of entailment (NLI).

reads   text              string
        candidate_labels  list of strings: the labels of each row, where params do not name labels for all rows
writes  labels            list<string>, best first
        scores            list<float32>: probabilities that sum to 1 over the labels; with multi_label, or where there
                          is one label, each label's own
        truncated         bool: the text was cut at the model's limit; labels never are
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from hfbatch.kinds import TEXT, TEXTS
from hfbatch.sequences import Array, Sequences
from hfbatch.tasks.base import Batch, Outputs, Task
from hfbatch.tasks.pairs import Pairs, entries_of, pair_limit, tokenise_pairs
from hfbatch.tasks.template import check_hypothesis
from hfbatch.tasks.text import TextParams, by_row

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_LABELS = "candidate_labels"


class ZeroShotClassificationParams(TextParams):
    """Settings of zero-shot-classification."""

    candidate_labels: str | list[str] | None = Field(
        default=None,
        description="the labels, as a list or separated by commas; null: a column has them, see input.columns",
        examples=[["sports", "politics", "business"]],
    )
    hypothesis_template: str = Field(
        default="This example is {}.", description="the sentence that is true or not; {} becomes a label"
    )
    multi_label: bool = Field(default=False, description="several labels may fit: score each on its own")

    @field_validator("candidate_labels")
    @classmethod
    def _some_labels(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and not _split(value):
            raise ValueError("no label is named; write [sports, politics], or null for a column of labels")
        return value

    @field_validator("hypothesis_template")
    @classmethod
    def _with_a_place(cls, value: str) -> str:
        return check_hypothesis(value, "This text is about {}.")


class ZeroShotClassification(Task):
    """One sequence a label, text and hypothesis; values equal transformers' ZeroShotClassificationPipeline."""

    name = "zero-shot-classification"
    auto_model = "AutoModelForSequenceClassification"
    reads_first = True
    reads = pa.schema([("text", TEXT)])
    optional = pa.schema([(_LABELS, TEXTS)])
    Params = ZeroShotClassificationParams

    def __init__(
        self, params: ZeroShotClassificationParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        self.labels = None if params.candidate_labels is None else _split(params.candidate_labels)
        self.limit = pair_limit(self.tokenizer, self.config, params)
        self.judged = _contradiction_and_entailment(self.config)

    @classmethod
    def reads_for(cls, params: ZeroShotClassificationParams, mapped: Mapping[str, str], schema: pa.Schema) -> pa.Schema:
        """Text, and a column of labels where params name none."""
        if params.candidate_labels is not None:
            if _LABELS in mapped:
                raise ValueError(f"{_LABELS} is under params too; take it away there or here")
            return cls.reads
        if mapped.get(_LABELS, _LABELS) not in schema.names:
            raise ValueError(
                f"there are no labels: write them under params, {_LABELS}: [sports, politics], "
                f"or name a column that has a list of them for each row"
            )
        return pa.schema([*cls.reads, *cls.optional])

    def writes(self) -> pa.Schema:
        """Labels and scores."""
        return pa.schema(
            [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32())), ("truncated", pa.bool_())]
        )

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence for each label of a row, in the labels' order. Only the text is cut."""
        labels, row, errors = entries_of(self._labels(rows), _LABELS)
        texts, template = rows["text"].to_pylist(), self.params.hypothesis_template
        pairs = Pairs([texts[i] for i in row], [template.format(label) for label in labels], row)
        made = tokenise_pairs(self.tokenizer, pairs, self.limit, "only_first" if self.params.truncation else None)
        return Sequences(made.row, made.columns, {**errors, **made.errors})

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits (sequences, 2), float32: of contradiction and of entailment."""
        return {"logits": model(**batch.inputs).logits[:, self.judged].float()}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Each row's labels by their scores; of equal ones the later label is first, as transformers has it."""
        row, counts = outputs.row, np.bincount(outputs.row, minlength=len(rows))
        scores = self._scores(outputs.dense("logits"), row, counts)
        labels = np.array([label for own in self._labels(rows) for label in own], dtype=object)
        order = np.lexsort((-np.arange(len(row)), -scores, row))
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(labels[order], pa.string())),
            pa.ListArray.from_arrays(offsets, pa.array(scores[order], pa.float32())),
            pa.array(by_row(outputs.dense("truncated"), row, len(rows))),
        ]
        return pa.Table.from_arrays(columns, schema=self.writes())

    def _scores(self, logits: Array, row: Array, counts: Array) -> Array:
        """(sequences,) float32: softmax against contradiction, or over the row's labels where there are several."""
        alone = 1 / (1 + np.exp(np.minimum(logits[:, 0] - logits[:, 1], 80)))
        if self.params.multi_label or not len(row):
            return np.asarray(alone)
        starts = np.cumsum(counts) - counts
        shifted = np.exp(logits[:, 1] - np.maximum.reduceat(logits[:, 1], starts)[row])
        return np.asarray(np.where(counts[row] == 1, alone, shifted / np.add.reduceat(shifted, starts)[row]))

    def _labels(self, rows: pa.Table) -> list[list[str]]:
        own: list[list[str]] = rows[_LABELS].to_pylist() if self.labels is None else [self.labels] * len(rows)
        return own

    def max_bytes_per_row(self) -> int:
        """The labels and a score each."""
        return 16384 if self.labels is None else 256 + sum(len(label.encode()) + 8 for label in self.labels)


def _split(labels: str | list[str]) -> list[str]:
    """Labels as transformers splits them."""
    return [part.strip() for part in labels.split(",") if part.strip()] if isinstance(labels, str) else labels


def _contradiction_and_entailment(config: Any) -> list[int]:
    """The two logits that count, by transformers' rule. ValueError where no label is entailment."""
    known = config.label2id or {}
    ids = [number for label, number in known.items() if label.lower().startswith("entail")]
    if not ids or config.num_labels < 2:
        labels = ", ".join(str(label) for label in list(known)[:5]) or "not named"
        raise ValueError(
            f"its labels are {labels}; this task takes a model trained on NLI, with 'entailment' and its opposite. "
            "If it is one, name its labels in the label2id of its config.json"
        )
    return [-1 if ids[0] == 0 else 0, int(ids[0])]

"""zero-shot-image-classification: which of the candidate labels describe each image, with their probability.

reads   image             bytes, or struct{bytes, path}
        candidate_labels  list<string>, where params.candidate_labels does not name them for all rows
writes  labels            list<string>, best first
        scores            list<float32>, in the order of labels: softmax over the labels; each for itself with SigLIP
        truncated         bool: a label was cut at the model's limit
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from hfbatch.errors import RowError
from hfbatch.kinds import IMAGE, TEXTS
from hfbatch.sequences import Array, Ragged, Sequences
from hfbatch.tasks.base import Batch, Flat, Outputs, Params, Task
from hfbatch.tasks.images import IMAGE_INPUTS, image_sequences
from hfbatch.tasks.text import model_max_length

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.checkpoint import Checkpoint

_KEPT = 10_000  # labels whose text features are kept
_SIGLIP_TOKENS = 64  # what SigLIP was trained with; transformers pads to it whatever the checkpoint says
_TEXTS = 256  # labels through the text tower at once


class ZeroShotImageClassificationParams(Params):
    """Settings of zero-shot-image-classification."""

    candidate_labels: list[str] | None = Field(
        default=None,
        min_length=1,
        examples=[["cat", "dog"]],
        description="the labels for every row; null: the column candidate_labels has them",
    )
    hypothesis_template: str = Field(
        default="This is a photo of {}.", description="the text of a label, which stands for {}"
    )

    @field_validator("hypothesis_template")
    @classmethod
    def _template(cls, template: str) -> str:
        try:
            differs = template.format("a") != template.format("b")
        except (IndexError, KeyError, ValueError, AttributeError):
            differs = False
        if not differs:
            raise ValueError("write {} once, where the label stands, and no other braces")
        return template


class ZeroShotImageClassification(Task):
    """Models of the CLIP kind; values equal transformers' ZeroShotImageClassificationPipeline."""

    name = "zero-shot-image-classification"
    auto_model = "AutoModelForZeroShotImageClassification"
    needs = ("image_processor", "tokenizer")
    reads = pa.schema([("image", IMAGE)])
    optional = pa.schema([("candidate_labels", TEXTS)])
    inputs = IMAGE_INPUTS
    host = ("asked",)
    streams = True
    Params = ZeroShotImageClassificationParams

    def __init__(
        self, params: ZeroShotImageClassificationParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        text_config = getattr(checkpoint.config, "text_config", checkpoint.config)
        self.sigmoid = "siglip" in checkpoint.config.model_type
        self.limit = _SIGLIP_TOKENS if self.sigmoid else model_max_length(checkpoint.tokenizer, text_config)
        self._features: dict[Any, dict[str, Tensor]] = {}  # dtype -> label -> features

    @classmethod
    def reads_for(
        cls, params: ZeroShotImageClassificationParams, mapped: Mapping[str, str], schema: pa.Schema
    ) -> pa.Schema:
        """candidate_labels is a column unless params name the labels."""
        if params.candidate_labels is None:
            return pa.schema([*cls.reads, *cls.optional])
        if "candidate_labels" in mapped:
            raise ValueError("candidate_labels is a column and a parameter; take one of them away")
        return cls.reads

    def writes(self) -> pa.Schema:
        """Two lists a row, as zero-shot-classification writes them."""
        return pa.schema(
            [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32())), ("truncated", pa.bool_())]
        )

    def loaded(self, model: Any) -> None:
        """Text features are those of one model."""
        self._features = {}

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence an image; `asked` are its labels as JSON, in bytes."""
        labels = self._labels(rows)
        made = image_sequences(self.checkpoint.image_processor, rows["image"])
        reason = RowError("no_labels", "candidate_labels is empty, or holds a null")
        refused = {row: reason for row, each in enumerate(labels) if not each or None in each}
        errors = {**made.errors, **refused}
        made = made.take(np.flatnonzero(~np.isin(made.row, list(refused))))
        cut = self._cut({label for row in made.row for label in labels[row]})
        asked = [np.frombuffer(json.dumps(labels[row]).encode(), dtype=np.uint8) for row in made.row]
        columns = {
            **made.columns,
            "asked": Ragged.from_arrays(asked, np.uint8),
            "truncated": np.array([not cut.isdisjoint(labels[row]) for row in made.row], dtype=bool),
        }
        return Sequences(made.row, columns, errors)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits of each sequence's labels, in their order."""
        import torch

        asked: list[list[str]] = [json.loads(text.tobytes()) for text in _items(batch.sequences.ragged("asked"))]
        numbers = {label: number for number, label in enumerate(dict.fromkeys(label for row in asked for label in row))}
        logits = self._logits(model, list(numbers), batch.inputs).float()
        lengths = torch.tensor([len(row) for row in asked], device=logits.device)
        image = torch.repeat_interleave(torch.arange(len(asked), device=logits.device), lengths)
        label = torch.tensor([numbers[label] for row in asked for label in row], device=logits.device)
        return {"logits": Flat(logits[image, label], lengths)}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Scores, best first; equal ones keep the order of the labels."""
        logits = outputs.ragged("logits")
        item = np.repeat(np.arange(len(logits)), logits.lengths)
        scores = _sigmoid(logits.values) if self.sigmoid else _softmax(logits, item)
        order = np.lexsort((-scores, item))
        labels = np.array([label for row in self._labels(rows) for label in row], dtype=object)[order]
        offsets = pa.array(logits.offsets.astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(labels, pa.string())),
            pa.ListArray.from_arrays(offsets, pa.array(scores[order], pa.float32())),
            pa.array(outputs.dense("truncated")),
        ]
        return pa.Table.from_arrays(columns, schema=self.writes())

    def _labels(self, rows: pa.Table) -> list[list[str]]:
        fixed = self.params.candidate_labels
        found: list[list[str]] = [fixed] * len(rows) if fixed is not None else rows["candidate_labels"].to_pylist()
        return found

    def _cut(self, labels: set[str]) -> set[str]:
        """Those that are longer than the model takes."""
        if self.limit is None or not labels:
            return set()
        known = list(labels)
        ids = self.tokenizer([self.params.hypothesis_template.format(label) for label in known], verbose=False)
        return {label for label, each in zip(known, ids["input_ids"], strict=True) if len(each) > self.limit}

    def _logits(self, model: Any, labels: list[str], inputs: dict[str, Tensor]) -> Any:
        """(images, labels). A model that scales a cosine has its text features kept, others see the texts again."""
        import torch

        if not hasattr(model, "logit_scale"):
            return model(**self._tokens(labels, model.device), **inputs).logits_per_image
        known = self._features.setdefault(model.dtype, {})
        new = [label for label in labels if label not in known]
        if len(known) + len(new) > _KEPT:
            known.clear()
            new = labels
        for start in range(0, len(new), _TEXTS):
            chunk = new[start : start + _TEXTS]
            found = _unit(model.get_text_features(**self._tokens(chunk, model.device)))
            known.update(zip(chunk, found, strict=True))
        images, texts = _unit(model.get_image_features(**inputs)), torch.stack([known[label] for label in labels])
        return images @ texts.T * model.logit_scale.exp() + getattr(model, "logit_bias", 0)

    def _tokens(self, labels: list[str], device: Any) -> dict[str, Tensor]:
        """The labels' texts, padded as transformers' pipeline pads them, and cut at the limit."""
        texts = [self.params.hypothesis_template.format(label) for label in labels]
        encoding = self.tokenizer(
            texts,
            padding="max_length" if self.sigmoid else True,
            truncation=self.limit is not None,
            max_length=self.limit,
            return_tensors="pt",
        )
        return dict(encoding.to(device))


def _items(column: Ragged) -> list[Array]:
    return [column[item] for item in range(len(column))]


def _unit(found: Any) -> Any:
    """Features of length 1, as a model's forward scales them."""
    features = getattr(found, "pooler_output", found)
    return features / features.norm(dim=-1, keepdim=True)


def _sigmoid(logits: Array) -> Array:
    with np.errstate(over="ignore"):  # a score of 0
        return np.asarray(1 / (1 + np.exp(-logits)))


def _softmax(logits: Ragged, item: Array) -> Array:
    """Over each item's own values, of which there is at least one."""
    if not len(logits):
        return logits.values
    shifted = np.exp(logits.values - np.maximum.reduceat(logits.values, logits.offsets[:-1])[item])
    return np.asarray(shifted / np.add.reduceat(shifted, logits.offsets[:-1])[item])

"""text-classification: the likeliest labels of each text, with their probability.

reads   text       string
        text_pair  string, optional: the second text of a pair (entailment, similarity)
writes  label      string; with top_k other than 1: labels, a list<struct<label, score>>, best first
        score      float32: softmax or sigmoid probability, or the raw logit
        truncated  bool: the text was cut at the model's limit
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.sequences import Array, Sequences
from hfbatch.tasks.base import Batch, Outputs, Task
from hfbatch.tasks.text import TextParams, by_row, structs, tokenise

_LABEL = pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())])


class TextClassificationParams(TextParams):
    """Settings of text-classification."""

    top_k: PositiveInt | None = Field(default=1, description="how many labels, best first; null: all")
    function_to_apply: Literal["none", "softmax", "sigmoid"] | None = Field(
        default=None, description="logits to scores; null: what the checkpoint's problem_type asks for"
    )


class TextClassification(Task):
    """Sequence classification heads; values equal transformers' TextClassificationPipeline."""

    name = "text-classification"
    aliases = ("sentiment-analysis",)
    auto_model = "AutoModelForSequenceClassification"
    reads = pa.schema([("text", pa.string())])
    optional = pa.schema([("text_pair", pa.string())])
    Params = TextClassificationParams

    def writes(self) -> pa.Schema:
        """Label and score, or labels when top_k asks for several."""
        if self.params.top_k == 1:
            fields = [("label", pa.string()), ("score", pa.float32())]
        else:
            fields = [("labels", pa.list_(_LABEL))]
        return pa.schema([*fields, ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text, or a pair of texts."""
        pairs = rows["text_pair"].to_pylist() if "text_pair" in rows.column_names else None
        return tokenise(self.tokenizer, self.config, self.params, rows["text"].to_pylist(), pairs)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits (sequences, labels), float32."""
        return {"logits": model(**batch.inputs).logits.float()}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Scores of the best labels; equal scores keep the order of the labels."""
        scores = self._scores(outputs.dense("logits"))
        labels = np.array([self.config.id2label[i] for i in range(scores.shape[1])], dtype=object)
        top = min(self.params.top_k or scores.shape[1], scores.shape[1])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        best_scores = np.take_along_axis(scores, best, axis=1).ravel()
        flat = {"label": labels[best].ravel(), "score": best_scores}
        if self.params.top_k == 1:
            columns = [pa.array(flat["label"], pa.string()), pa.array(flat["score"], pa.float32())]
        else:
            columns = [structs(flat, [top] * len(rows), _LABEL)]
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        return pa.Table.from_arrays([*columns, pa.array(truncated)], schema=self.writes())

    def _scores(self, logits: Array) -> Array:
        function = self.params.function_to_apply or _default_function(self.config)
        if function == "softmax":
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
        if function == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-logits)))
        return logits


def _default_function(config: Any) -> str:
    """Transformers' rule, in its order: regression, multi-label or one label, several labels."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"

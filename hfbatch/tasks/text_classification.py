"""text-classification: the likeliest labels of each text, with their probability.

reads   text       string
        text_pair  string, optional: the second text of a pair (entailment, similarity); empty is as if it were none
writes  label      string; with top_k other than 1: labels, a list<struct<label, score>>, best first
        score      float32: softmax or sigmoid probability, or the raw logit
        truncated  bool: the text was cut at the model's limit; with stride it is read in windows, and scores are
                   their means
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.sequences import Sequences
from hfbatch.tasks.base import Batch, Outputs, Task
from hfbatch.tasks.pairs import Pairs, pair_limit, tokenise_pairs
from hfbatch.tasks.scores import Function, best_labels, fields, scores_of
from hfbatch.tasks.text import by_row, limit_for, tokenise
from hfbatch.tasks.windows import WindowParams, check_stride, mean_by_row, tokenise_windows

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint


class TextClassificationParams(WindowParams):
    """Settings of text-classification."""

    top_k: PositiveInt | None = Field(default=1, description="how many labels, best first; null: all")
    function_to_apply: Function | None = Field(
        default=None, description="logits to scores; null: what the checkpoint's problem_type asks for"
    )


class TextClassification(Task):
    """Sequence classification heads; values equal transformers' TextClassificationPipeline."""

    name = "text-classification"
    aliases = ("sentiment-analysis",)
    auto_model = "AutoModelForSequenceClassification"
    reads_first = True
    reads = pa.schema([("text", pa.string())])
    optional = pa.schema([("text_pair", pa.string())])
    Params = TextClassificationParams

    def __init__(
        self, params: TextClassificationParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        paired = "text_pair" in self.given.names
        self.limit = (pair_limit if paired else limit_for)(self.tokenizer, self.config, params)
        if params.stride is not None:
            check_stride(self.tokenizer, self.limit, params.stride)
            if paired:
                raise ValueError("params.stride reads one text in windows, not a pair; leave stride or text_pair out")

    def writes(self) -> pa.Schema:
        """Label and score, or labels when top_k asks for several."""
        return pa.schema([*fields(self.params.top_k), ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text, or a pair of texts, or a window of a text."""
        if self.params.stride is not None and self.limit is not None:
            return tokenise_windows(self.tokenizer, self.limit, self.params.stride, rows["text"].to_pylist())
        if "text_pair" not in rows.column_names:
            return tokenise(self.tokenizer, self.config, self.params, rows["text"].to_pylist())
        pairs = Pairs(rows["text"].to_pylist(), rows["text_pair"].to_pylist(), np.arange(len(rows)), lone=True)
        return tokenise_pairs(self.tokenizer, pairs, self.limit, "longest_first" if self.params.truncation else None)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits (sequences, labels), float32."""
        return {"logits": model(**batch.inputs).logits.float()}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Scores of the best labels; equal scores keep the order of the labels."""
        scores = scores_of(outputs.dense("logits"), self.config, self.params.function_to_apply)
        columns = best_labels(mean_by_row(scores, outputs.row, len(rows)), self.config, self.params.top_k)
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        return pa.Table.from_arrays([*columns, pa.array(truncated)], schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """Every label that top_k lets through, at the length of the longest."""
        longest = max(len(label.encode()) for label in self.config.id2label.values())
        labels = int(self.config.num_labels)
        return 64 + (longest + 8) * min(self.params.top_k or labels, labels)

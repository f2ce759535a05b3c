"""image-classification: the likeliest labels of each image, with their probability.

reads   image   bytes, or struct{bytes, path}
writes  labels  list<struct<label, score>>, best first; with top_k: 1 two columns: label string, score float32
                score: softmax or sigmoid probability, or the raw logit
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.kinds import IMAGE
from hfbatch.sequences import Sequences
from hfbatch.tasks.base import Batch, Outputs, Params, Task
from hfbatch.tasks.images import IMAGE_INPUTS, image_sequences
from hfbatch.tasks.scores import Function, best_labels, fields, scores_of


class ImageClassificationParams(Params):
    """Settings of image-classification."""

    top_k: PositiveInt | None = Field(default=5, description="how many labels, best first; null: all")
    function_to_apply: Function | None = Field(
        default=None, description="logits to scores; null: what the checkpoint's problem_type asks for"
    )


class ImageClassification(Task):
    """Image classification heads; values equal transformers' ImageClassificationPipeline."""

    name = "image-classification"
    auto_model = "AutoModelForImageClassification"
    needs = ("image_processor",)
    reads = pa.schema([("image", IMAGE)])
    inputs = IMAGE_INPUTS
    streams = True
    Params = ImageClassificationParams

    def writes(self) -> pa.Schema:
        """labels, or label and score when top_k is 1."""
        return pa.schema(fields(self.params.top_k))

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence an image."""
        return image_sequences(self.checkpoint.image_processor, rows["image"])

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits (sequences, labels), float32."""
        return {"logits": model(**batch.inputs).logits.float()}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Scores of the best labels; equal scores keep the order of the labels."""
        asked = self.params
        scores = scores_of(outputs.dense("logits"), self.config, asked.function_to_apply)
        columns = best_labels(scores, self.config, asked.top_k)
        return pa.Table.from_arrays(columns, schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """A few hundred bytes a label."""
        labels = int(self.config.num_labels)
        return 4096 + 256 * min(self.params.top_k or labels, labels)

"""feature-extraction: the model's last hidden states, pooled to one embedding a text or left one a token.

reads   text       string
writes  embedding  fixed_size_list<float32, dim>; with pooling: none a list of those, one a token, special
                   tokens included
        truncated  bool: the text was cut at the model's limit
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.sequences import Array, Ragged, Sequences
from hfbatch.tasks.base import Batch, Flat, Outputs, Task
from hfbatch.tasks.text import TextParams, by_row, model_max_length, tokenise


class FeatureExtractionParams(TextParams):
    """Settings of feature-extraction."""

    pooling: Literal["none", "mean", "cls", "last_token"] = Field(
        default="none", description="none: one vector a token; mean over tokens; cls: the first token; last_token"
    )
    normalize: bool = Field(default=False, description="scale every vector to length 1, after truncate_dim")
    truncate_dim: PositiveInt | None = Field(
        default=None, description="keep the first dimensions only (Matryoshka models)"
    )


class FeatureExtraction(Task):
    """Encoders without a head; pooled as sentence-transformers pools: pool, truncate, normalize."""

    name = "feature-extraction"
    aliases = ("sentence-similarity",)
    auto_model = "AutoModel"
    reads = pa.schema([("text", pa.string())])
    unused_weights = ("pooler.",)
    Params = FeatureExtractionParams

    @property
    def dim(self) -> int:
        """Length of one vector."""
        hidden = int(self.config.get_text_config().hidden_size)
        return min(self.params.truncate_dim or hidden, hidden)

    def writes(self) -> pa.Schema:
        """embedding, a vector or a list of vectors."""
        vector = pa.list_(pa.field("item", pa.float32(), nullable=False), self.dim)
        embedding = pa.list_(vector) if self.params.pooling == "none" else vector
        return pa.schema([("embedding", embedding), ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text."""
        return tokenise(self.tokenizer, self.config, self.params, rows["text"].to_pylist())

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Embedding (sequences, dim) float32, or (tokens, dim) for every token."""
        import torch

        hidden = model(**batch.inputs)[0]
        match self.params.pooling:
            case "mean":
                vectors = batch.mean(hidden)
            case "cls":
                vectors = batch.first(hidden)
            case "last_token":
                vectors = batch.last(hidden)
            case _:
                vectors = batch.tokens(hidden)
        vectors = vectors[..., : self.dim].float()
        if self.params.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return {"embedding": Flat(vectors, batch.lengths) if self.params.pooling == "none" else vectors}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """The vectors as Arrow lists, without a copy."""
        schema = self.writes()
        embedding, kind = outputs["embedding"], schema.field("embedding").type
        if isinstance(embedding, Ragged):
            offsets = pa.array(embedding.offsets.astype(np.int32))
            column = pa.ListArray.from_arrays(offsets, _vectors(embedding.values, kind.value_type)).cast(kind)
        else:
            column = _vectors(embedding, kind)
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        return pa.Table.from_arrays([column, pa.array(truncated)], schema=schema)

    def max_bytes_per_row(self) -> int:
        """One vector, or one for every token of the longest text."""
        tokens = 1
        if self.params.pooling == "none":
            tokens = min(model_max_length(self.tokenizer, self.config) or 8192, self.params.max_length or 8192)
        return 4 * self.dim * tokens


def _vectors(values: Array, kind: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=kind)

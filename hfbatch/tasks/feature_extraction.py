"""feature-extraction: the model's last hidden states, pooled to one embedding a text or left one a token.

reads   text       string
writes  embedding  fixed_size_list<float32, dim>; with pooling: none a list of those, one a token, special
                   tokens included
        truncated  bool: the text was cut at the model's limit; with stride it is read in windows, and its
                   embedding is their mean
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.sequences import Array, Ragged, Sequences
from hfbatch.tasks.base import Batch, Flat, Outputs, Task
from hfbatch.tasks.pooling import Recipe, pool, prompt_tokens, recipe_in
from hfbatch.tasks.text import by_row, limit_for, tokenise
from hfbatch.tasks.windows import WindowParams, check_stride, mean_by_row, tokenise_windows

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint


class FeatureExtractionParams(WindowParams):
    """Settings of feature-extraction."""

    pooling: Literal["none", "mean", "cls", "last_token", "max", "mean_sqrt_len", "weighted_mean"] | None = Field(
        default=None,
        description="none: one vector a token; mean over tokens; cls: the first token; last_token; max; mean_sqrt_len; "
        "weighted_mean: later tokens weigh more. null: all as a sentence-transformers directory says (pooling, "
        "normalize, longest text, default prompt); none for other models",
    )
    normalize: bool | None = Field(
        default=None,
        description="scale every vector to length 1, after truncate_dim; null: as pooling: null says, else false",
    )
    truncate_dim: PositiveInt | None = Field(
        default=None, description="keep the first dimensions only (Matryoshka models)"
    )
    prompt: str | None = Field(default=None, description="put before every text, such as 'query: '")
    prompt_name: str | None = Field(
        default=None, description="the prompt that a sentence-transformers directory has under this name"
    )


class FeatureExtraction(Task):
    """Encoders without a head; pooled as sentence-transformers pools: pool, truncate, normalize."""

    name = "feature-extraction"
    aliases = ("sentence-similarity",)
    auto_model = "AutoModel"
    reads = pa.schema([("text", pa.string())])
    unused_weights = ("pooler.",)
    Params = FeatureExtractionParams

    def __init__(self, params: FeatureExtractionParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        self.recipe = recipe_in(checkpoint.folder, params.pooling)
        self.reads_first = self.recipe.modes == ("cls",)
        self.normalize = self.recipe.normalize if params.normalize is None else params.normalize
        self.text = params.model_copy(update={"max_length": params.max_length or self.recipe.max_length})
        self.prompt = _prompt(params, self.recipe)
        self.limit = limit_for(self.tokenizer, self.config, self.text)
        tokens = prompt_tokens(self.tokenizer, self.prompt) if self.prompt else 0
        if self.limit is not None and tokens >= self.limit:
            raise ValueError(f"the prompt has {tokens} tokens of the {self.limit} of a sequence; write a shorter one")
        self.skipped = 0 if self.recipe.include_prompt else tokens  # which are not pooled
        if params.stride is not None:
            check_stride(self.tokenizer, self.limit, params.stride)
            if not self.recipe.modes:
                raise ValueError("params.stride averages embeddings over windows: set params.pooling, such as mean")
            if self.skipped:
                raise ValueError("params.stride: this model leaves its prompt out of the pooling; leave stride out")

    @property
    def dim(self) -> int:
        """Length of one vector."""
        joined = int(self.config.get_text_config().hidden_size) * max(1, len(self.recipe.modes))
        return min(self.params.truncate_dim or joined, joined)

    def writes(self) -> pa.Schema:
        """embedding, a vector or a list of vectors."""
        vector = pa.list_(pa.field("item", pa.float32(), nullable=False), self.dim)
        embedding = vector if self.recipe.modes else pa.list_(vector)
        return pa.schema([("embedding", embedding), ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text, or a window of a text."""
        texts = [self.prompt + text for text in rows["text"].to_pylist()]
        if self.recipe.lower_case:
            texts = [text.lower() for text in texts]
        if self.params.stride is not None and self.limit is not None:
            return tokenise_windows(self.tokenizer, self.limit, self.params.stride, texts)
        return tokenise(self.tokenizer, self.config, self.text, texts)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Embedding (sequences, dim) float32, or (tokens, dim) for every token."""
        hidden = model(**batch.inputs)[0]
        if self.recipe.modes:
            return {"embedding": pool(self.recipe.modes, hidden, batch, self.skipped)[:, : self.dim]}
        return {"embedding": Flat(batch.tokens(hidden)[..., : self.dim].float(), batch.lengths)}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """The vectors as Arrow lists, windows as their mean."""
        schema = self.writes()
        embedding, kind = outputs["embedding"], schema.field("embedding").type
        if isinstance(embedding, Ragged):
            offsets = pa.array(embedding.offsets.astype(np.int32))
            vectors = self._scaled(embedding.values)
            column = pa.ListArray.from_arrays(offsets, _vectors(vectors, kind.value_type)).cast(kind)
        else:
            column = _vectors(self._scaled(mean_by_row(embedding, outputs.row, len(rows))), kind)
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        return pa.Table.from_arrays([column, pa.array(truncated)], schema=schema)

    def _scaled(self, vectors: Array) -> Array:
        """`vectors` of length 1, where that is asked for; only now, as windows are averaged before."""
        if not self.normalize:
            return vectors
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))

    def max_bytes_per_row(self) -> int:
        """One vector, or one for every token of the longest text."""
        tokens = 1 if self.recipe.modes else min(self.limit or 8192, self.params.max_length or 8192)
        return 4 * self.dim * tokens


def _prompt(params: FeatureExtractionParams, recipe: Recipe) -> str:
    """What stands before every text. ValueError where a name is not one of the model's prompts."""
    if params.prompt is not None and params.prompt_name is not None:
        raise ValueError("params.prompt and params.prompt_name both say what stands before a text; leave one out")
    name = params.prompt_name or (recipe.default_prompt if params.prompt is None else None)
    if name is None:
        return params.prompt or ""
    if name not in recipe.prompts:
        known = ", ".join(sorted(recipe.prompts)) or "none"
        raise ValueError(
            f"params.prompt_name: this model has no prompt {name!r} (it has: {known}); write params.prompt"
        )
    return recipe.prompts[name]


def _vectors(values: Array, kind: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=kind)

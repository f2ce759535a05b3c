"""image-feature-extraction: the model's last hidden states, pooled to one embedding an image or left one a position.

reads   image      bytes, or struct{bytes, path}
writes  embedding  fixed_size_list<float32, dim>; with pooling: none a list of those, one a token of a transformer
                   (its class token first), or one a position of a convolutional network, row by row
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from hfbatch.kinds import IMAGE
from hfbatch.sequences import Array, Ragged, Sequences
from hfbatch.tasks.base import Batch, Flat, Outputs, Params, Task
from hfbatch.tasks.images import IMAGE_INPUTS, image_sequences

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.checkpoint import Checkpoint

_MOST_POSITIONS = 4096  # of a model whose config says neither image nor patch size


class ImageFeatureExtractionParams(Params):
    """Settings of image-feature-extraction."""

    pooling: Literal["none", "pooler", "cls", "mean"] = Field(
        default="none",
        description="none: one vector a token; pooler: the model's own pooler (transformers' pool: true), or the image "
        "embedding of a CLIP; cls: the first token; mean over tokens",
    )
    normalize: bool = Field(default=False, description="scale every vector to length 1")


class ImageFeatureExtraction(Task):
    """Vision encoders without a head; values equal transformers' ImageFeatureExtractionPipeline."""

    name = "image-feature-extraction"
    auto_model = "AutoModel"
    needs = ("image_processor",)
    reads = pa.schema([("image", IMAGE)])
    inputs = IMAGE_INPUTS
    streams = True
    Params = ImageFeatureExtractionParams

    def __init__(
        self, params: ImageFeatureExtractionParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        if params.pooling != "pooler":
            self.unused_weights = ("pooler.",)
        self.dim = _dim(checkpoint.config, params.pooling)

    def writes(self) -> pa.Schema:
        """embedding, a vector or a list of vectors."""
        vector = pa.list_(pa.field("item", pa.float32(), nullable=False), self.dim)
        return pa.schema([("embedding", pa.list_(vector) if self.params.pooling == "none" else vector)])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence an image."""
        return image_sequences(self.checkpoint.image_processor, rows["image"])

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Embedding (sequences, dim) float32, or (positions, dim) of all sequences."""
        import torch

        vectors = self._vectors(model, batch.inputs).float()
        if self.params.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if self.params.pooling != "none":
            return {"embedding": vectors}
        lengths = torch.full((len(vectors),), vectors.shape[1])
        return {"embedding": Flat(vectors.flatten(0, 1), lengths)}

    def _vectors(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """(sequences, dim), or (sequences, positions, dim) where nothing is pooled."""
        if _has_two_towers(self.config):
            found = model.get_image_features(**inputs)
            return getattr(found, "pooler_output", found)
        found = model(**inputs)
        if self.params.pooling == "pooler":
            pooled = getattr(found, "pooler_output", None)
            if pooled is None:
                raise ValueError(f"{type(model).__name__} has no pooler; write pooling: cls or mean")
            return pooled.flatten(1)
        hidden = found[0]
        if hidden.ndim == 4:  # (sequences, channels, height, width)
            hidden = hidden.flatten(2).transpose(1, 2)
        if self.params.pooling == "none":
            return hidden
        return hidden[:, 0] if self.params.pooling == "cls" else hidden.float().mean(dim=1)

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """The vectors as Arrow lists, without a copy."""
        schema = self.writes()
        embedding, kind = outputs["embedding"], schema.field("embedding").type
        if isinstance(embedding, Ragged):
            offsets = pa.array(embedding.offsets.astype(np.int32))
            column = pa.ListArray.from_arrays(offsets, _lists(embedding.values, kind.value_type)).cast(kind)
        else:
            column = _lists(embedding, kind)
        return pa.Table.from_arrays([column], schema=schema)

    def max_bytes_per_row(self) -> int:
        """One vector, or one for every position."""
        return 4 * self.dim * (_positions(self.config) if self.params.pooling == "none" else 1)


def _lists(values: Array, kind: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=kind)


def _has_two_towers(config: Any) -> bool:
    """Whether the model is of the CLIP kind: a tower for texts beside that for images."""
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def _dim(config: Any, pooling: str) -> int:
    """Length of one vector. ValueError where the config does not say it, or the pooling is none for this model."""
    if _has_two_towers(config):
        if pooling != "pooler":
            raise ValueError("it has two towers, and gives one embedding an image: write pooling: pooler")
        width = getattr(config, "projection_dim", None)
        config = config.vision_config if width is None else config
    else:
        width = None
    stages = getattr(config, "hidden_sizes", None)
    width = width or getattr(config, "hidden_size", None) or (stages[-1] if stages else None)
    if not isinstance(width, int):
        raise ValueError(f"the config of a model of type {config.model_type!r} does not say how long its vectors are")
    if stages and pooling == "cls":
        raise ValueError("it is a convolutional network and has no class token: write pooling: pooler or mean")
    return width


def _positions(config: Any) -> int:
    side, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(side, int) or not isinstance(patch, int):
        return _MOST_POSITIONS
    return max(_MOST_POSITIONS, (side // patch) ** 2 + 16)  # images larger than those of the training may come

"""Task: the three steps of a transformers pipeline, kept apart. One file a task; this is all it implements.

    preprocess(rows)           -> Sequences    CPU; ragged model inputs, never padded
    forward(model, batch)      -> tensors      on the device; reduced to what postprocess needs
    postprocess(outputs, rows) -> columns      CPU; the typed columns of `writes`

The framework does the rest once for all tasks: nulls, renaming, batching, padding, device moves, inference mode,
order, errors, lineage. A task never sees Ray, a path or a job file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from hfbatch.sequences import Array, Sequences

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor: TypeAlias = Any


class Params(BaseModel):
    """Settings that change a prediction, with transformers' names and defaults. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Flat(NamedTuple):
    """A ragged result of forward: the pieces of all sequences one after another."""

    values: Tensor  # (sum of lengths, ...)
    lengths: Tensor | Array  # (sequences,) whole numbers


Outputs: TypeAlias = Mapping[str, "Tensor | Flat"]


class Batch(Protocol):
    """Sequences on the device. A task asks for tokens by meaning, so padded and packed layouts look the same."""

    inputs: dict[str, Tensor]  # keyword arguments of the model

    @property
    def lengths(self) -> Tensor:
        """(sequences,) int64, tokens of each sequence, special tokens counted."""
        ...

    def tokens(self, values: Tensor) -> Tensor:
        """Per-token `values` of the model (or an entry of `inputs`) without padding: (real tokens, ...)."""
        ...

    def first(self, values: Tensor) -> Tensor:
        """The values at each sequence's first token: (sequences, ...)."""
        ...

    def last(self, values: Tensor) -> Tensor:
        """The values at each sequence's last token: (sequences, ...)."""
        ...

    def mean(self, values: Tensor) -> Tensor:
        """The float32 mean over each sequence's tokens: (sequences, ...)."""
        ...


class Task(ABC):
    """What a model does to rows. Subclasses are stateless apart from what the constructor takes."""

    name: ClassVar[str]  # the Hub's task id
    aliases: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1  # raised when the same params give other values: old output is then not mixed in
    auto_model: ClassVar[str]  # the transformers Auto class that loads the checkpoint
    reads: ClassVar[pa.Schema]  # columns that must be there
    optional: ClassVar[pa.Schema] = pa.schema([])  # columns used when `input.columns` names them
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids")  # columns of Sequences the model takes
    unused_weights: ClassVar[tuple[str, ...]] = ()  # weights the checkpoint may lack, as the task never uses them
    Params: ClassVar[type[Params]]

    def __init__(self, params: Any, config: Any, tokenizer: Any = None) -> None:
        """`config` is the checkpoint's PretrainedConfig; `tokenizer` is None where only `writes` is asked for."""
        self.params, self.config, self.tokenizer = params, config, tokenizer

    @abstractmethod
    def writes(self) -> pa.Schema:
        """The task's output columns, known from config and params alone."""

    @abstractmethod
    def preprocess(self, rows: pa.Table) -> Sequences:
        """Rows (columns of `reads`, no nulls) to ragged model inputs. A row it refuses goes into `errors`."""

    @abstractmethod
    def forward(self, model: Any, batch: Batch) -> Outputs:
        """One batch through the model; each result has one entry a sequence (a tensor's first axis, or Flat)."""

    @abstractmethod
    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Results of forward, plus the columns of preprocess that the model did not take, to typed columns.

        `rows` holds the rows that got through; the returned table has exactly as many, in the same order.
        """

    def pad_value(self, name: str) -> int:
        """What fills the model input `name` behind a sequence's end."""
        return int(getattr(self.tokenizer, "pad_token_id", None) or 0) if name == "input_ids" else 0

    def max_bytes_per_row(self) -> int:
        """The most bytes one row's output may take; shards are cut so that one fits in memory."""
        return 4096

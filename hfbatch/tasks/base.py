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
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from hfbatch.sequences import Array, Sequences

KEY = "_key"  # column of the rows of a `keyed` task: uint64, the same for a row whatever batch or run it is in

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.checkpoint import Checkpoint
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


class Companion(NamedTuple):
    """Another model that a task needs beside its own, such as the vocoder of a speech model."""

    id: str  # Hub id or directory
    revision: str | None


class Batch(Protocol):
    """Sequences on the device. A task asks for tokens by meaning, so padded and packed layouts look the same."""

    sequences: Sequences  # the same sequences on the host, with all that preprocess made of them
    device: Any  # torch.device
    room: tuple[int, int]  # tokens, with padding and what is to be generated, and rows that may be in the model at once

    def part(self, index: Array) -> Batch:
        """The sequences of `index`, in that order, as a batch of their own; laid out when it is asked for inputs."""
        ...

    def alive(self, finished: int) -> None:
        """To be called between the steps of a forward that takes long: it is no hang. May raise to end the run.

        `finished`: sequences that have come to their end since the last call.
        """
        ...

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model; attention_mask only where there is padding, or could be."""
        ...

    @property
    def mask(self) -> Tensor:
        """(sequences, longest) int64, 0 at padding: the attention mask, whether there is padding or not."""
        ...

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
    pattern: ClassVar[str | None] = None  # a regular expression for further names, such as translation_en_to_de
    version: ClassVar[int] = 1  # raised when the same params give other values: old output is then not mixed in
    adapted: ClassVar[bool] = False  # whether transformers' own pipeline does the work, see adapted.py
    auto_model: ClassVar[str]  # the transformers Auto class that loads the checkpoint; see auto_class
    needs: ClassVar[tuple[str, ...]] = (
        "tokenizer",
    )  # parts of the Checkpoint that must be there, checked at plan time
    reads: ClassVar[pa.Schema]  # columns that must be there
    optional: ClassVar[pa.Schema] = pa.schema([])  # columns used when `input.columns` names them
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids")  # columns of Sequences the model takes
    host: ClassVar[tuple[str, ...]] = ()  # further columns that only forward wants, from batch.sequences
    padding_side: ClassVar[Literal["left", "right"]] = "right"
    batch_tokens: tuple[int, int] = (1024, 16384)  # max_batch_tokens: auto, on CPU and on a GPU
    reads_first: bool = False  # an encoder's results come of each sequence's first token alone; that is tried first
    generates: bool = False  # forward calls the model many times: not packed
    schedules: bool = False  # forward is given all sequences of a block and cuts the batches itself
    single: ClassVar[bool] = True  # forward calls model(**batch.inputs), once; asked where `generates` is not set
    streams: ClassVar[bool] = False  # inputs are large (images, sound): made a few rows at a time, beside the model
    keyed: ClassVar[bool] = False  # rows come with a column KEY
    unused_weights: tuple[str, ...] = ()  # weights the checkpoint may lack, as the task never uses them
    Params: ClassVar[type[Params]]

    def __init__(self, params: Any, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        """`given`: the inputs this job binds to columns, with their kinds; default: all of `reads`.

        ValueError, told as a problem of the job file, where params and checkpoint do not go together.
        """
        self.params, self.checkpoint = params, checkpoint
        self.given = self.reads if given is None else given

    @property
    def config(self) -> Any:
        """The checkpoint's PretrainedConfig."""
        return self.checkpoint.config

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def random(self) -> bool:
        """Whether a result depends on the row's KEY too: equal rows then have results of their own."""
        return self.keyed

    @classmethod
    def params_in_name(cls, name: str) -> Mapping[str, Any]:
        """What a name that fits `pattern` says about params."""
        return {}

    @classmethod
    def reads_for(cls, params: Any, mapped: Mapping[str, str], schema: pa.Schema) -> pa.Schema:
        """The inputs of a job, with their kinds (kinds.py): `reads`, and those of `optional` that it maps.

        `mapped` is `input.columns` (input -> column); `schema` is the dataset's. An input that is not mapped is the
        column of its own name. ValueError where the choice between inputs is not clear.
        """
        return pa.schema([*cls.reads, *(entry for entry in cls.optional if entry.name in mapped)])

    @classmethod
    def companions(cls, params: Any) -> Mapping[str, Companion]:
        """Other models that `params` name, pinned as the model itself; their folders are checkpoint.companions."""
        return {}

    @classmethod
    def auto_class(cls, config: Any) -> str:
        """The transformers Auto class for a checkpoint with `config`."""
        return cls.auto_model

    def way(self) -> str:
        """How forward computes, where there is something to say about it, for the report; after `loaded`."""
        return ""

    def loaded(self, model: Any) -> None:  # noqa: B027  # most tasks have nothing to do here
        """Called once with the loaded model, on its device, before the first forward."""

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
        """What fills the model input `name` behind a sequence's end.

        For token ids what the model takes for padding, whatever the tokenizer says: a decoder that classifies finds
        the end of a text by it. Where neither says anything it is the token that ends a text, which texts do not hold.
        """
        if name != "input_ids":
            return 0
        tokenizer = self.tokenizer if "tokenizer" in self.needs else None
        told = [(self.config, "pad_token_id"), (tokenizer, "pad_token_id"), (tokenizer, "eos_token_id")]
        ids = (getattr(of, attribute, None) for of, attribute in told)
        return next((number for number in ids if isinstance(number, int) and number >= 0), 0)

    def max_bytes_per_row(self) -> int:
        """The most bytes one row's output may take; shards are cut so that one fits in memory."""
        return 4096

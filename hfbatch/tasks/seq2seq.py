"""Text to text by an encoder-decoder: what summarization, translation and text2text-generation share.

transformers 5 dropped these pipelines; this is what they did in 4.57: beam search with 4 beams and up to 256 tokens,
on top of that config.task_specific_params. A text is cut where the model has no more positions; T5, which has none,
takes any length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt

from hfbatch.kinds import TEXT
from hfbatch.sequences import Sequences
from hfbatch.tasks.base import KEY, Batch, Outputs, Task
from hfbatch.tasks.decoding import complete
from hfbatch.tasks.generation import GenerationParams, Generator
from hfbatch.tasks.text import TextParams, model_max_length, tokenise

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_ANY_LENGTH = 10**30  # what transformers writes for "no limit"


class Seq2SeqParams(GenerationParams):
    """Settings of tasks that turn a text into another."""

    max_length: PositiveInt | None = Field(
        default=None, description="as max_new_tokens, with the token counted that a decoder starts with"
    )
    min_length: NonNegativeInt | None = Field(
        default=None, description="as min_new_tokens, with the token counted that a decoder starts with"
    )
    prefix: str | None = Field(
        default=None, description="put in front of every text; null: what config.task_specific_params says"
    )
    truncation: bool = Field(
        default=True, description="cut a text at the limit and say so in `truncated`; false: such a row is an error"
    )
    max_input_length: PositiveInt | None = Field(
        default=None, description="limit of a text in tokens, special tokens counted; null: the model's positions"
    )
    clean_up_tokenization_spaces: bool = Field(
        default=False, description="take the spaces before punctuation out, which some tokenizers leave there"
    )


class Rewriting(Task):
    """A task of encoder-decoders: text in, the column `writes_text` out."""

    writes_text: ClassVar[str]
    auto_model = "AutoModelForSeq2SeqLM"
    reads = pa.schema([("text", TEXT)])
    inputs = ("input_ids",)
    host = (KEY,)
    batch_tokens = (16384, 131072)
    generates = True
    keyed = True

    def __init__(self, params: Seq2SeqParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        self.rewriter = self.make_rewriter()

    def make_rewriter(self) -> Rewriter:
        """What does the work."""
        return Rewriter(self.params, self.checkpoint, self.name)

    def loaded(self, model: Any) -> None:
        """Where rows can leave one by one, forward wants all of them."""
        self.schedules = self.rewriter.generator.settle(model)

    def way(self) -> str:
        """Continuous batching, or why not."""
        return self.rewriter.generator.way

    @property
    def random(self) -> bool:
        """Where it samples."""
        return self.rewriter.generator.samples

    def writes(self) -> pa.Schema:
        """The text, a list where a row has several."""
        return self.rewriter.writes(self.writes_text)

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text, behind the prefix."""
        return self.rewriter.preprocess(rows)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Its tokens."""
        return self.rewriter.together(model, batch) if self.schedules else self.rewriter.forward(model, batch)

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Tokens as text."""
        return self.rewriter.postprocess(outputs, self.writes_text)

    def max_bytes_per_row(self) -> int:
        """All texts of a row at their longest."""
        return self.rewriter.max_bytes_per_row()


class Rewriter:
    """One text in, one or several out. ValueError where params and checkpoint do not go together."""

    def __init__(
        self, params: Seq2SeqParams, checkpoint: Checkpoint, task: str, tokenizer: Any = None, **forced: Any
    ) -> None:
        """`task`: a key of config.task_specific_params; `tokenizer`: the checkpoint's, set to some languages;
        `forced`: settings that the checkpoint cannot override.
        """
        self.params, self.config = params, checkpoint.config
        self.tokenizer = tokenizer or checkpoint.copy_tokenizer()  # its limit is this job's
        self.tokenizer.model_max_length = _positions(self.config, "encoder")
        positions = _positions(self.config, "decoder")
        own = dict((getattr(self.config, "task_specific_params", None) or {}).get(task, {}))
        prefix = own.pop("prefix", None) or getattr(self.config, "prefix", None) or ""
        self.prefix = prefix if params.prefix is None else params.prefix
        if checkpoint.generation_config.max_length in (None, 20):  # 4.57's default, and then its own counts
            own.pop("max_length", None)
            own["max_new_tokens"] = min(256, positions)
        above = {"num_beams": 4, **own, **forced}
        self.generator = Generator(params, checkpoint, above=above, tokenizer=self.tokenizer)
        if self._new_tokens > positions:
            raise ValueError(f"params: it has positions for {positions} new tokens, not for {self._new_tokens}")

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text."""
        limits = TextParams(truncation=self.params.truncation, max_length=self.params.max_input_length)
        texts = [self.prefix + text for text in rows["text"].to_pylist()]
        made = tokenise(self.tokenizer, self.config, limits, texts)
        length = made.ragged("input_ids").lengths + self._new_tokens * self.generator.beams
        return Sequences(
            made.row,
            {**made.columns, "length": length, KEY: rows[KEY].to_numpy()[made.row]},
            made.errors,
        )

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """The tokens of every text, see Generator."""
        inputs = {"input_ids": batch.inputs["input_ids"], "attention_mask": batch.mask}
        return self.generator(model, inputs, batch.sequences.dense(KEY))

    def together(self, model: Any, batch: Batch) -> Outputs:
        """The same for all sequences of a block, which leave the batch one by one."""
        room = np.full(len(batch.sequences), self._new_tokens, dtype=np.int64)
        return complete(self.generator, model, batch, room)

    def writes(self, name: str) -> pa.Schema:
        """The column `name`, a list where a row has several texts, and `truncated`."""
        kind = pa.list_(pa.string()) if self.generator.texts > 1 else pa.string()
        return pa.schema([(name, kind), ("truncated", pa.bool_())])

    def postprocess(self, outputs: Sequences, name: str) -> pa.Table:
        """Tokens as text."""
        made = self.generator.completions(outputs, self.params.clean_up_tokenization_spaces)
        texts = [[each.text for each in row] if self.generator.texts > 1 else row[0].text for row in made]
        schema = self.writes(name)
        columns = [pa.array(texts, schema.field(name).type), pa.array(outputs.dense("truncated"))]
        return pa.Table.from_arrays(columns, schema=schema)

    def max_bytes_per_row(self) -> int:
        """All texts at their longest."""
        return 1024 + 16 * self._new_tokens * self.generator.texts

    @property
    def _new_tokens(self) -> int:
        settings = self.generator.settings
        return int(settings.get("max_new_tokens") or settings.get("max_length", 20) - 1)


def _positions(config: Any, side: str) -> int:
    """The most tokens of the encoder or decoder; any number where no embedding counts them."""
    part = getattr(config, side, None)  # models made of two
    if part is not None:
        return model_max_length(None, part) or _ANY_LENGTH
    names = ("max_position_embeddings", f"max_{side}_position_embeddings")
    return next((int(limit) for name in names if (limit := getattr(config, name, None))), _ANY_LENGTH)

"""summarization: a shorter text that says the same.

reads   text          string
writes  summary_text  string, without special tokens; with num_return_sequences above 1 a list of those
        truncated     bool: the text was cut at the model's limit, or at max_input_length

Where params do not say otherwise it searches with 4 beams, or as config.task_specific_params has it, and writes up to
256 tokens, as transformers 4.57 did; where the checkpoint's settings have a max_length, that counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hfbatch.kinds import TEXT
from hfbatch.sequences import Sequences
from hfbatch.tasks.base import KEY, Batch, Outputs, Task
from hfbatch.tasks.seq2seq import Rewriter, Seq2SeqParams

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint


class SummarizationParams(Seq2SeqParams):
    """Settings of summarization."""


class Summarization(Task):
    """Encoder-decoders; values equal the SummarizationPipeline of transformers 4.57."""

    name = "summarization"
    auto_model = "AutoModelForSeq2SeqLM"
    reads = pa.schema([("text", TEXT)])
    inputs = ("input_ids",)
    host = (KEY,)
    batch_tokens = (16384, 131072)
    keyed = True
    Params = SummarizationParams

    def __init__(self, params: SummarizationParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        self.rewriter = Rewriter(params, checkpoint, self.name)

    def writes(self) -> pa.Schema:
        """The text."""
        return self.rewriter.writes("summary_text")

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text, behind the prefix."""
        return self.rewriter.preprocess(rows)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Its tokens."""
        return self.rewriter.forward(model, batch)

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Tokens as text."""
        return self.rewriter.postprocess(outputs, "summary_text")

    def max_bytes_per_row(self) -> int:
        """All texts of a row at their longest."""
        return self.rewriter.max_bytes_per_row()

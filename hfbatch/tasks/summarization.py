"""summarization: a shorter text that says the same.

reads   text          string
writes  summary_text  string, without special tokens; with num_return_sequences above 1 a list of those
        truncated     bool: the text was cut at the model's limit, or at max_input_length

Where params do not say otherwise it searches with 4 beams, or as config.task_specific_params has it, and writes up to
256 tokens, as transformers 4.57 did; where the checkpoint's settings have a max_length, that counts.
"""

from __future__ import annotations

from hfbatch.tasks.seq2seq import Rewriting, Seq2SeqParams


class SummarizationParams(Seq2SeqParams):
    """Settings of summarization."""


class Summarization(Rewriting):
    """Encoder-decoders; values equal the SummarizationPipeline of transformers 4.57."""

    name = "summarization"
    writes_text = "summary_text"
    Params = SummarizationParams

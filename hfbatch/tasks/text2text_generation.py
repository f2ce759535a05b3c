"""text2text-generation: what an encoder-decoder makes of each text.

reads   text            string
writes  generated_text  string, without special tokens; with num_return_sequences above 1 a list of those
        truncated       bool: the text was cut at the model's limit, or at max_input_length

Where params do not say otherwise it searches with 4 beams, or as config.task_specific_params has it, and writes up to
256 tokens, as transformers 4.57 did; where the checkpoint's settings have a max_length, that counts.
"""

from __future__ import annotations

from hfbatch.tasks.seq2seq import Rewriting, Seq2SeqParams


class Text2TextGenerationParams(Seq2SeqParams):
    """Settings of text2text-generation."""


class Text2TextGeneration(Rewriting):
    """Encoder-decoders; values equal the Text2TextGenerationPipeline of transformers 4.57."""

    name = "text2text-generation"
    writes_text = "generated_text"
    Params = Text2TextGenerationParams

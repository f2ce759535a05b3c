"""visual-question-answering: the answer to a question about an image.

reads   image      bytes, or struct{bytes, path}
        question   string
writes  answer     string; with top_k other than 1: answers, a list<struct<answer, score>>, best first
        score      float32, sigmoid probability of the answer; null from a model that writes its answer (BLIP)
        truncated  bool: the question was cut at the model's limit, or at max_length

ViLT chooses among the answers of its config, BLIP writes one: the likeliest, never sampled, of up to 256 tokens where
neither params nor the checkpoint's generation_config say otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.kinds import IMAGE, TEXT
from hfbatch.sequences import Array, Column, Sequences
from hfbatch.tasks.base import Batch, Outputs, Task
from hfbatch.tasks.generation import GenerationParams, Generator
from hfbatch.tasks.images import IMAGE_INPUTS, check_resized, each_image, patches, shaped, tensors
from hfbatch.tasks.scores import best_labels, scores_of
from hfbatch.tasks.text import TextParams, model_max_length, tokenise

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_ANSWER = pa.struct([pa.field("answer", pa.string()), pa.field("score", pa.float32())])
_NEW_TOKENS = 256


class VisualQuestionAnsweringParams(TextParams):
    """Settings of visual-question-answering."""

    top_k: PositiveInt | None = Field(
        default=1, description="how many answers, best first; null: all; of a model that chooses"
    )
    max_new_tokens: PositiveInt | None = Field(
        default=None, description="most tokens of an answer; of a model that writes"
    )
    num_beams: PositiveInt | None = Field(
        default=None, description="beams of a beam search; 1: none; of a model that writes"
    )


class VisualQuestionAnswering(Task):
    """ViLT and BLIP; values equal the VisualQuestionAnsweringPipeline of transformers 4.57."""

    name = "visual-question-answering"
    aliases = ("vqa",)
    auto_model = "AutoModelForVisualQuestionAnswering"
    needs = ("tokenizer", "image_processor")
    reads = pa.schema([("image", IMAGE), ("question", TEXT)])
    inputs = ("input_ids", "token_type_ids", *IMAGE_INPUTS)
    streams = True
    Params = VisualQuestionAnsweringParams

    def __init__(
        self, params: VisualQuestionAnsweringParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        kind = self.config.model_type
        if kind not in ("vilt", "blip"):
            raise ValueError(f"a model of type {kind!r} wants its question in a prompt: use task image-text-to-text")
        self.generator = self._generator() if kind == "blip" else None
        if self.generator is None and (params.max_new_tokens or params.num_beams):
            raise ValueError("params.max_new_tokens and num_beams are for models that write: this one chooses")

    def _generator(self) -> Generator:
        """What writes the answer, and ends it at the separator as the model itself does."""
        params, text = self.params, self.config.text_config
        if params.top_k != 1:
            raise ValueError("params.top_k: this model writes one answer; leave it out")
        room = (model_max_length(None, text) or 10**9) - 1
        if room < (params.max_new_tokens or 1):
            raise ValueError(f"params.max_new_tokens: it has positions for {room} new tokens")
        asked = GenerationParams(max_new_tokens=params.max_new_tokens, num_beams=params.num_beams, do_sample=False)
        ends = {"eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id, "num_return_sequences": 1}
        return Generator(asked, self.checkpoint, below={"max_new_tokens": min(_NEW_TOKENS, room)}, above=ends)

    def writes(self) -> pa.Schema:
        """Answer and score, or answers."""
        several = [("answers", pa.list_(_ANSWER))] if self.params.top_k != 1 else list(_ANSWER)
        return pa.schema([*several, ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a row: the question and the image."""
        processor, config = self.checkpoint.image_processor, self.config.get_text_config()
        asked = tokenise(self.tokenizer, config, self.params, rows["question"].to_pylist())

        def made(image: Any, row: int) -> dict[str, Array]:
            check_resized(processor, image)
            return tensors(processor(images=[image], return_tensors="pt"), IMAGE_INPUTS)

        done, errors = each_image(rows["image"], made)
        index = np.intersect1d(asked.row, list(done)).astype(np.int64)
        images = [done[int(row)] for row in index]
        text = asked.take(np.searchsorted(asked.row, index))
        lengths = text.ragged("input_ids").lengths
        columns: dict[str, Column] = {**text.columns, **shaped(images)}
        columns["length"] = lengths + patches(image["pixel_values"] for image in images)
        if self.generator is not None:  # its decoder looks at padding too, so only equal lengths share a batch
            columns["input_ids.shape"] = lengths[:, None]
        return Sequences(index, columns, {**asked.errors, **errors})

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits (sequences, answers), float32; or the tokens of the answers, see Generator."""
        if self.generator is None:
            return {"logits": model(**batch.inputs).logits.float()}
        return self.generator(model, batch.inputs)

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Scores of the best answers, equal ones in the order of the config; or tokens as text."""
        truncated = pa.array(outputs.dense("truncated"))
        if self.generator is not None:
            answers = [texts[0].text.strip() for texts in self.generator.completions(outputs)]
            scores = pa.nulls(len(answers), pa.float32())
            columns = [pa.array(answers, pa.string()), scores, truncated]
            return pa.Table.from_arrays(columns, schema=self.writes())
        best = best_labels(scores_of(outputs.dense("logits"), self.config, "sigmoid"), self.config, self.params.top_k)
        if self.params.top_k != 1:
            answer = pa.StructArray.from_arrays(best[0].values.flatten(), fields=list(_ANSWER))
            best = [pa.ListArray.from_arrays(best[0].offsets, answer)]
        return pa.Table.from_arrays([*best, truncated], schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """A few hundred bytes an answer, or the text at its longest."""
        if self.generator is not None:
            settings = self.generator.settings
            return 1024 + 16 * int(settings.get("max_new_tokens") or settings.get("max_length", 20))
        answers = int(self.config.num_labels)
        return 4096 + 256 * min(self.params.top_k or answers, answers)

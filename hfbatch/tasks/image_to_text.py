"""image-to-text: a caption for each image.

reads   image           bytes, or struct{bytes, path}
writes  generated_text  string, without special tokens; behind params.prompt, which it continues; with
                        num_return_sequences above 1 a list of those

For models that caption: BLIP, GIT, vision-encoder-decoder (ViT-GPT2, TrOCR). As transformers' pipeline did before
version 5, it writes up to 256 tokens where neither params nor the checkpoint's generation_config say otherwise. For
models that are told what to write take image-text-to-text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from hfbatch.kinds import IMAGE
from hfbatch.sequences import Ragged, Sequences
from hfbatch.tasks.base import KEY, Batch, Outputs, Task
from hfbatch.tasks.generation import GenerationParams, Generator
from hfbatch.tasks.images import image_sequences
from hfbatch.tasks.text import model_max_length

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_KINDS = ("blip", "git", "vision-encoder-decoder")
_NEW_TOKENS = 256


class ImageToTextParams(GenerationParams):
    """Settings of image-to-text."""

    prompt: str | None = Field(
        default=None, description='the beginning of every caption, such as "a photo of"; for BLIP and GIT'
    )


class ImageToText(Task):
    """Captions; values equal the ImageToTextPipeline of transformers 4.57."""

    name = "image-to-text"
    auto_model = "AutoModelForImageTextToText"
    needs = ("tokenizer", "image_processor")
    reads = pa.schema([("image", IMAGE)])
    inputs = ("pixel_values",)
    host = (KEY,)
    batch_tokens = (8192, 65536)
    generates = True
    streams = True
    keyed = True
    Params = ImageToTextParams

    def __init__(self, params: ImageToTextParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        kind = self.config.model_type
        if kind not in _KINDS:
            raise ValueError(f"a model of type {kind!r} wants a text beside the image: use task image-text-to-text")
        if params.prompt is not None and kind == "vision-encoder-decoder":
            raise ValueError("params.prompt: a vision-encoder-decoder takes none; leave it out")
        stops = [params.stop] if isinstance(params.stop, str) else params.stop or []
        if any(stop in (params.prompt or "") for stop in stops):
            raise ValueError("params.stop: a stop string is in params.prompt, so that all texts would end at once")
        text = self.config.get_text_config(decoder=True)
        ids = {"eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id} if kind == "blip" else {}
        front = self.tokenizer(params.prompt, add_special_tokens=False)["input_ids"] if params.prompt else []
        self.front: list[int] = front  # what the caption continues
        room = (model_max_length(None, text) or 10**9) - len(front) - 1
        if room < (params.max_new_tokens or 1):
            raise ValueError(f"params.max_new_tokens: it has positions for {room} new tokens behind params.prompt")
        self.generator = Generator(params, checkpoint, below={"max_new_tokens": min(_NEW_TOKENS, room)}, above=ids)

    @property
    def random(self) -> bool:
        """Where it samples."""
        return self.generator.samples

    def writes(self) -> pa.Schema:
        """The caption; a list where a row has several."""
        return pa.schema([("generated_text", pa.list_(pa.string()) if self.generator.texts > 1 else pa.string())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence an image."""
        made = image_sequences(self.checkpoint.image_processor, rows["image"], self.inputs)
        columns = {name: column for name, column in made.columns.items() if name != "size"}
        if len(made):
            columns["length"] = made.dense("length") + self._new_tokens
        return Sequences(made.row, {**columns, KEY: rows[KEY].to_numpy()[made.row]}, made.errors)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """The tokens of every text, see Generator."""
        import torch

        inputs = {"pixel_values": batch.inputs["pixel_values"]}
        start = self._start()
        if start:
            ids = torch.tensor([start], device=inputs["pixel_values"].device)
            inputs["input_ids"] = ids.repeat(len(inputs["pixel_values"]), 1)
        return self.generator(model, inputs, batch.sequences.dense(KEY), prompt=1 + len(self.front))

    def _start(self) -> list[int]:
        """The decoder's first tokens; none where the model brings its own."""
        kind, tokenizer = self.config.model_type, self.tokenizer
        if kind == "git":
            return [tokenizer.cls_token_id, *self.front]
        if kind == "blip" and self.front:
            return [
                tokenizer.cls_token_id,
                *self.front,
                tokenizer.sep_token_id,
            ]  # it replaces the first, drops the last
        return []

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Tokens as text, those of the prompt in front."""
        made = self.generator.completions(self._whole(outputs) if self.front else outputs)
        texts = [[each.text for each in row] if self.generator.texts > 1 else row[0].text for row in made]
        return pa.Table.from_arrays([pa.array(texts, self.writes().field(0).type)], schema=self.writes())

    def _whole(self, outputs: Sequences) -> Sequences:
        """`outputs` with the tokens of the prompt in front of those of every text."""
        counts, front = outputs.dense("token_counts"), np.array(self.front, dtype=np.int32)
        texts = Ragged.from_lengths(outputs.ragged("tokens").values, counts.reshape(-1))
        values = np.concatenate([part for i in range(len(texts)) for part in (front, texts[i])])
        counts = counts + len(front)
        tokens = Ragged.from_lengths(values, counts.sum(axis=1))
        return Sequences(outputs.row, {"tokens": tokens, "token_counts": counts, "ended": outputs.dense("ended")})

    def max_bytes_per_row(self) -> int:
        """All texts of a row at their longest."""
        return 1024 + 16 * (self._new_tokens + len(self.front)) * self.generator.texts

    @property
    def _new_tokens(self) -> int:
        settings = self.generator.settings
        return int(settings.get("max_new_tokens") or settings.get("max_length", 20))

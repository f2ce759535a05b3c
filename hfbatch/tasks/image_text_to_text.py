"""image-text-to-text: what a vision-language model writes about an image, as it was asked.

reads   image   bytes, or struct{bytes, path}; and
        text    string: what the user says, beside the image; or
        messages  list<struct<role, content>>: a chat; content is a text, or a list of parts {type: text, text} with
                one {type: image} among them (default: in front of what the user says first); or
        the columns that params.prompt names, if any: "What does the sign for {{place}} say?" is what the user says,
                params.system what the system does
writes  generated_text     string: the new text, without special tokens and stop string
        prompt_tokens      int32, those of the image counted
        completion_tokens  int32, the token that ended the text counted
        finish_reason      string: stop (an end token or a stop string) or length
        truncated          bool: texts of the chat were cut
        with num_return_sequences above 1 generated_text, completion_tokens and finish_reason are lists

The chat template is the checkpoint's own, and special tokens in texts are text, whatever they spell. A model without
one gets `text`, or the filled params.prompt, as it is: there `<image>` may have to be in it.

As transformers' pipeline does, it writes up to 256 tokens where neither params nor the checkpoint's generation_config
say otherwise. Sampled text is a function of row, seed and params alone. A chat and max_new_tokens fit into the model
together, or its texts lose their beginnings, those of the system last; a prompt that is too long is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from hfbatch.errors import RowError
from hfbatch.kinds import ANY, IMAGE, MESSAGES, TEXT
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.base import KEY, Batch, Outputs, Task
from hfbatch.tasks.generation import GenerationParams, Generator
from hfbatch.tasks.images import check_resized, each_image, shaped
from hfbatch.tasks.sights import ARRAYS, TOKENS, Sights, parted
from hfbatch.tasks.template import as_texts, check_template, filled, places
from hfbatch.tasks.text import model_max_length

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_CAPTIONERS = ("blip", "git", "vision-encoder-decoder")


class ImageTextToTextParams(GenerationParams):
    """Settings of image-text-to-text."""

    prompt: str | None = Field(
        default=None, description='what the user says: "Describe this picture."; {{column}} is the value of a column'
    )
    system: str | None = Field(
        default=None, description="the system's message to go with params.prompt or the column text; a template too"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="what the chat template can be told, such as {enable_thinking: false}"
    )
    truncation: bool = Field(
        default=True, description="cut the texts of a chat that is too long; false: such a row is an error"
    )

    @field_validator("prompt", "system")
    @classmethod
    def _is_a_template(cls, template: str | None) -> str | None:
        return check_template(template)


class ImageTextToText(Task):
    """Decoders that see; greedy text equals transformers' ImageTextToTextPipeline."""

    name = "image-text-to-text"
    auto_model = "AutoModelForImageTextToText"
    needs = ("processor",)
    reads = pa.schema([("image", IMAGE), ("text", TEXT)])
    optional = pa.schema([("messages", MESSAGES)])
    inputs = (*TOKENS, *ARRAYS)
    host = (KEY, "room")
    padding_side = "left"
    batch_tokens = (8192, 65536)
    generates = True
    streams = True
    keyed = True
    Params = ImageTextToTextParams

    def __init__(self, params: ImageTextToTextParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        config, processor = self.config.get_text_config(decoder=True), self.checkpoint.processor
        if self.config.model_type in _CAPTIONERS:
            raise ValueError(f"a model of type {self.config.model_type!r} captions: use task image-to-text")
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError("it is an encoder-decoder, and this task takes decoders alone")
        self.generator = Generator(params, checkpoint, below={"max_new_tokens": 256}, tokenizer=self.tokenizer)
        self.limit = model_max_length(self.tokenizer, config)
        self.prompt_limit = self.generator.prompt_limit(self.limit)
        self.chats = processor.chat_template is not None
        if not self.chats and ("messages" in self.given.names or params.system is not None):
            raise ValueError(
                "its processor has no chat template: read a text, not messages, and leave params.system out"
            )
        self.sights = Sights(processor, params.chat_template_kwargs)
        self._try()

    def _try(self) -> None:
        """ValueError for a processor or template that will refuse every row, and for inputs that cannot be repeated."""
        from PIL import Image

        system = {"role": "system", "content": [{"type": "text", "text": "a"}]}
        chat = parted([*([] if self.params.system is None else [system]), {"role": "user", "content": "a"}])
        if not self.chats:
            return  # what a prompt has to hold is the model's own affair
        try:
            made = self.sights.of_chat(chat, Image.new("RGB", (64, 64)), None)[0]
        except RowError as error:
            cure = "params.system" if self.params.system is not None else "params.chat_template_kwargs"
            raise ValueError(f"a chat about an image fails: {error.message}; see {cure}") from error
        if self.generator.samples and self.generator.texts > 1 and any(len(made[n]) > 1 for n in ARRAYS if n in made):
            raise ValueError("params.num_return_sequences: not with sampling, as this model's images come in patches")

    @property
    def tokenizer(self) -> Any:
        """The processor's."""
        return self.checkpoint.processor.tokenizer

    @classmethod
    def reads_for(cls, params: Any, mapped: Mapping[str, str], schema: pa.Schema) -> pa.Schema:
        """The image, and the columns of the template; without one `messages` where they are there, else `text`."""
        image = cls.reads.field("image")
        if params.prompt is not None:
            named = places(params.prompt, params.system)
            if "image" in named:
                raise ValueError(
                    "params.prompt names the image, which stands in front of it anyway: take {{image}} out"
                )
            return pa.schema([image, *(pa.field(name, ANY) for name in named)])
        found = [name for name in ("text", "messages") if name in mapped]
        found = found or [name for name in ("text", "messages") if name in schema.names]
        if len(found) == 2:
            raise ValueError("there are both, text and messages: name the one to read")
        if found == ["messages"] and params.system is not None:
            raise ValueError("params.system goes with params.prompt or the column text: say it in the messages")
        if places(params.system):
            raise ValueError("params.system names columns, which goes with params.prompt alone: write it there")
        return pa.schema([image, ("messages", MESSAGES)]) if found == ["messages"] else cls.reads

    @property
    def random(self) -> bool:
        """Where it samples."""
        return self.generator.samples

    def writes(self) -> pa.Schema:
        """The text and how it came to its end; lists where a row has several texts."""
        several = self.generator.texts > 1
        own = [("generated_text", pa.string()), ("completion_tokens", pa.int32()), ("finish_reason", pa.string())]
        text, tokens, reason = [(name, pa.list_(kind) if several else kind) for name, kind in own]
        return pa.schema([text, ("prompt_tokens", pa.int32()), tokens, reason, ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a row; `room` is how much it may generate."""
        prompts = self._prompts(rows)

        def made(image: Any, row: int) -> tuple[dict[str, Array], bool]:
            check_resized(self.checkpoint.processor.image_processor, image)
            return self._inputs(prompts[row], image)

        done, errors = each_image(rows["image"], made)
        index, found = np.array(list(done), dtype=np.int64), [inputs for inputs, _ in done.values()]
        if not found:
            return Sequences(index, {}, errors)
        names = [name for name in TOKENS if name in found[0]]
        columns: dict[str, Column] = {n: Ragged.from_lists([each[n].tolist() for each in found]) for n in names}
        columns |= shaped([{name: each[name] for name in each if name in ARRAYS} for each in found])
        tokens = np.array([len(each["input_ids"]) for each in found], dtype=np.int64)
        room = self.generator.room(tokens, self.limit)
        columns |= {"room": room, "length": tokens + room, "prompt_tokens": tokens}
        columns["truncated"] = np.array([cut for _, cut in done.values()], dtype=bool)
        return Sequences(index, {**columns, KEY: rows[KEY].to_numpy()[index]}, errors)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """The tokens of every text, see Generator. Arrays of all rows stand one behind another, as processors do it."""
        given = batch.inputs.items()
        inputs = {name: value.flatten(0, 1) if name in ARRAYS else value for name, value in given}
        inputs["attention_mask"] = batch.mask
        keys, room = batch.sequences.dense(KEY), batch.sequences.dense("room")
        return self.generator(model, inputs, keys, prompt=inputs["input_ids"].shape[1], room=room)

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Tokens as text."""
        made, several = self.generator.completions(outputs), self.generator.texts > 1
        texts = [[each.text for each in row] for row in made]
        counts = [[each.tokens for each in row] for row in made]
        reasons = [["stop" if each.stopped else "length" for each in row] for row in made]
        text, count, reason = ([row if several else row[0] for row in each] for each in (texts, counts, reasons))
        columns = [text, outputs.dense("prompt_tokens"), count, reason, outputs.dense("truncated")]
        kinds = self.writes().types
        arrays = [pa.array(column).cast(kind) for column, kind in zip(columns, kinds, strict=True)]
        return pa.Table.from_arrays(arrays, schema=self.writes())

    def pad_value(self, name: str) -> int:
        """The tokenizer's for ids."""
        return int(self.tokenizer.pad_token_id or 0) if name == "input_ids" else 0

    def max_bytes_per_row(self) -> int:
        """All texts at their longest."""
        tokens = int(self.generator.room(np.ones(1, dtype=np.int64), self.limit)[0])
        return 1024 + 16 * tokens * self.generator.texts

    def _prompts(self, rows: pa.Table) -> list[Any]:
        """Of each row its messages, or its text."""
        if "messages" in self.given.names:
            found: list[Any] = rows["messages"].to_pylist()
            return found
        if self.params.prompt is None:
            user: list[str] = rows["text"].to_pylist()
            system = [self.params.system] * len(rows)
        else:
            names = [name for name in self.given.names if name != "image"]
            columns = {name: as_texts(rows[name]) for name in names}
            values = [{name: columns[name][row] for name in names} for row in range(len(rows))]
            if not self.chats:  # a chat veils whole messages, when it is rendered
                values = [self.sights.prompts.veil(row) for row in values]
            user = [filled(self.params.prompt, row) for row in values]
            system = [self.params.system and filled(self.params.system, row) for row in values]
        if not self.chats:
            return user
        return [_asked(*both) for both in zip(system, user, strict=True)]

    def _inputs(self, prompt: Any, image: Any) -> tuple[dict[str, Array], bool]:
        """Arrays of one row, and whether its texts were cut. RowError."""
        limit, cut = self.prompt_limit, False
        if self.chats:
            made, cut = self.sights.of_chat(parted(prompt), image, limit if self.params.truncation else None)
        else:
            made = self.sights.of_text(prompt, image)
        if limit is not None and len(made["input_ids"]) > limit:
            raise RowError("too_long", f"{len(made['input_ids'])} tokens, the limit of a prompt is {limit}")
        return made, cut


def _asked(system: str | None, user: str) -> list[dict[str, Any]]:
    front = [] if system is None else [{"role": "system", "content": system}]
    return [*front, {"role": "user", "content": user}]

"""text-generation: what a language model writes behind a prompt, or as its turn in a chat.

reads   prompt             string: the prompt as the model gets it, its special tokens too; or
        messages           list<struct<role, content>>: a chat, in the checkpoint's own chat template; or
        the columns that params.prompt names: "Summarise: {{body}}" is the user's message of a chat, params.system
        the system's; for a checkpoint without chat template it is a plain prompt
writes  generated_text     string: the new text, without special tokens and stop string; with return_full_text
                           behind the prompt
        prompt_tokens      int32
        completion_tokens  int32, the token that ended the text counted
        finish_reason      string: stop (an end token or a stop string) or length
        truncated          bool: the prompt was cut
        with num_return_sequences above 1 generated_text, completion_tokens and finish_reason are lists

As transformers' pipeline does, it samples at temperature 0.7 and writes up to 256 tokens where neither params nor the
checkpoint's generation_config say otherwise. Sampled text is a function of row, seed and params alone.

Special tokens in the text of a message or of a column that a template names are text, whatever they spell.

A prompt and max_new_tokens fit into the model together, or the prompt loses its beginning: the question mostly
stands at its end. Of a chat the earliest messages lose theirs, the system's last; what the template writes stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt, field_validator

from hfbatch.errors import RowError
from hfbatch.kinds import ANY, MESSAGES, TEXT
from hfbatch.sequences import Column, Ragged, Sequences
from hfbatch.tasks.base import KEY, Batch, Outputs, Task
from hfbatch.tasks.chat import Prompts
from hfbatch.tasks.decoding import complete
from hfbatch.tasks.generation import GenerationParams, Generator
from hfbatch.tasks.template import as_texts, check_template, filled, places
from hfbatch.tasks.text import model_max_length

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint


class TextGenerationParams(GenerationParams):
    """Settings of text-generation."""

    prompt: str | None = Field(
        default=None, description='a template: "Summarise: {{body}}"; what stands in {{}} is an input column'
    )
    system: str | None = Field(
        default=None, description="the system's message to go with params.prompt; a template too"
    )
    return_full_text: bool = Field(default=False, description="write the prompt in front of the new text")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="what the chat template can be told, such as {enable_thinking: false}"
    )
    truncation: bool = Field(
        default=True, description="cut the beginning of a prompt that is too long; false: such a row is an error"
    )
    max_input_length: PositiveInt | None = Field(
        default=None, description="limit of a prompt in tokens; null: what max_new_tokens leaves of the model's own"
    )

    @field_validator("prompt", "system")
    @classmethod
    def _is_a_template(cls, template: str | None) -> str | None:
        return check_template(template)


class TextGeneration(Task):
    """Decoders; greedy text equals transformers' TextGenerationPipeline."""

    name = "text-generation"
    auto_model = "AutoModelForCausalLM"
    reads = pa.schema([("prompt", TEXT)])
    optional = pa.schema([("messages", MESSAGES)])
    inputs = ("input_ids",)
    host = (KEY, "room")
    padding_side = "left"
    batch_tokens: tuple[int, int] = (16384, 65536)
    generates = True
    keyed = True
    Params = TextGenerationParams

    def __init__(self, params: TextGenerationParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        defaults = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
        self.generator = Generator(params, checkpoint, below=defaults)
        config = self.config.get_text_config(decoder=True)
        self.limit = model_max_length(self.tokenizer, config)
        left, most = self.generator.prompt_limit(self.limit), params.max_input_length
        self.prompt_limit = most if left is None or (most or left) < left else left
        start = self.generator.settings.get("bos_token_id", self.tokenizer.bos_token_id)
        self.prompts = Prompts(self.tokenizer, params.chat_template_kwargs, start)
        has_template = self.tokenizer.chat_template is not None
        self.chats = has_template if params.prompt is not None else "messages" in self.given.names
        self._refuse_chats(has_template)

    def _refuse_chats(self, has_template: bool) -> None:
        """ValueError for what a chat needs and does not have, or has and cannot use."""
        if self.chats and not has_template:
            raise ValueError("its tokenizer has no chat template: read a prompt, not messages")
        if self.chats and self.params.return_full_text:
            raise ValueError("params.return_full_text: a chat has no text to write in front; leave it out")
        if self.params.system is not None and self.chats:
            try:
                self.prompts.render(self._messages("a", "a"))
            except RowError as error:
                raise ValueError(
                    f"params.system: {error.message}: leave it out, and say it in params.prompt"
                ) from error

    def loaded(self, model: Any) -> None:
        """Where rows can join and leave, forward wants all of them, and sees itself to what keys and values take."""
        self.schedules = self.generator.settle(model)
        if self.schedules:
            self.batch_tokens = (32768, 65536)

    def way(self) -> str:
        """Continuous batching, or why not."""
        return self.generator.way

    @classmethod
    def reads_for(cls, params: Any, mapped: Mapping[str, str], schema: pa.Schema) -> pa.Schema:
        """The columns of the template; without one `messages` where the dataset has them, else `prompt`."""
        if params.prompt is not None:
            if not places(params.prompt):
                raise ValueError("params.prompt names no column, so all rows would be asked the same: write {{column}}")
            return pa.schema([(name, ANY) for name in places(params.prompt, params.system)])
        if params.system is not None:
            raise ValueError('params.system goes with a template: write params.prompt: "{{prompt}}"')
        found = [name for name in ("prompt", "messages") if name in mapped]
        found = found or [name for name in ("prompt", "messages") if name in schema.names]
        if len(found) == 2:
            raise ValueError("there are both, prompt and messages: name the one to read")
        return pa.schema([("messages", MESSAGES)]) if found == ["messages"] else cls.reads

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
        ids, kept, cut, errors = [], [], [], dict[int, RowError]()
        for row, prompt in enumerate(self._prompts(rows)):
            try:
                made, truncated = self._ids(prompt)
            except RowError as error:
                errors[row] = error
                continue
            ids.append(made)
            kept.append(row)
            cut.append(truncated)
        index, tokens = np.array(kept, dtype=np.int64), Ragged.from_lists(ids)
        room = self.generator.room(tokens.lengths, self.limit)
        columns: dict[str, Column] = {"input_ids": tokens, "room": room, "length": tokens.lengths + room}
        columns |= {"prompt_tokens": tokens.lengths, "truncated": np.array(cut, dtype=bool)}
        columns[KEY] = rows[KEY].to_numpy()[index]
        return Sequences(index, columns, errors)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """The tokens of every text, see Generator."""
        keys, room = batch.sequences.dense(KEY), batch.sequences.dense("room")
        if self.schedules:
            return complete(self.generator, model, batch, room)
        inputs = {"input_ids": batch.inputs["input_ids"], "attention_mask": batch.mask}
        return self.generator(model, inputs, keys, prompt=inputs["input_ids"].shape[1], room=room)

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Tokens as text."""
        made = self.generator.completions(outputs)
        full = self.params.return_full_text
        fronts = [self.prompts.unveil(text) for text in self._prompts(rows)] if full else [""] * len(rows)
        texts = [[front + each.text for each in row] for front, row in zip(fronts, made, strict=True)]
        counts = [[each.tokens for each in row] for row in made]
        reasons = [["stop" if each.stopped else "length" for each in row] for row in made]
        several = self.generator.texts > 1
        text, count, reason = ([row if several else row[0] for row in each] for each in (texts, counts, reasons))
        columns = [text, outputs.dense("prompt_tokens"), count, reason, outputs.dense("truncated")]
        kinds = self.writes().types
        arrays = [pa.array(column).cast(kind) for column, kind in zip(columns, kinds, strict=True)]
        return pa.Table.from_arrays(arrays, schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """All texts at their longest, and the prompt in front of each."""
        tokens = int(self.generator.room(np.ones(1, dtype=np.int64), self.limit)[0])
        if self.params.return_full_text:
            tokens += self.prompt_limit or 8192
        return 1024 + 16 * tokens * self.generator.texts

    def _prompts(self, rows: pa.Table) -> list[Any]:
        """Of each row its messages, or its text."""
        if self.params.prompt is None:
            found: list[Any] = rows["messages" if self.chats else "prompt"].to_pylist()
            return found
        columns = {name: as_texts(rows[name]) for name in self.given.names}
        values = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
        if not self.chats:  # a chat veils whole messages, when it is rendered
            values = [self.prompts.veil(row) for row in values]
        user = [filled(self.params.prompt, row) for row in values]
        if self.params.system is None:
            return [self._messages(None, text) for text in user] if self.chats else user
        system = [filled(self.params.system, row) for row in values]
        if self.chats:
            return [self._messages(*both) for both in zip(system, user, strict=True)]
        return [f"{front}\n\n{text}" for front, text in zip(system, user, strict=True)]

    def _messages(self, system: str | None, user: str) -> list[dict[str, Any]]:
        front = [] if system is None else [{"role": "system", "content": system}]
        return [*front, {"role": "user", "content": user}]

    def _ids(self, prompt: Any) -> tuple[list[int], bool]:
        """Token ids, and whether some were cut. RowError."""
        limit = self.prompt_limit
        room = limit if self.params.truncation else None
        ids, cut = self.prompts.of_chat(prompt, room) if self.chats else self.prompts.of_text(prompt, room)
        if limit is not None and len(ids) > limit:
            raise RowError("too_long", f"{len(ids)} tokens, the limit of a prompt is {limit}")
        return ids, cut

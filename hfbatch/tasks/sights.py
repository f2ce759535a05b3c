"""A chat about an image to model inputs, through the checkpoint's processor and its chat template.

As chat.py for texts: only what the template wrote is special. A row's `<image>` is seven characters, and the image
stands where the template puts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from hfbatch.errors import RowError
from hfbatch.sequences import Array
from hfbatch.tasks.chat import Message, Prompts

if TYPE_CHECKING:
    from PIL.Image import Image
else:
    Image = Any

# What processors make, and models take: one entry a token, or arrays that stand one behind another in a batch.
TOKENS = ("input_ids", "token_type_ids", "mm_token_type_ids")
ARRAYS = (
    "pixel_values",
    "pixel_mask",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "image_grid_thw",
    "image_position_ids",
)
_LONG = 128  # characters a token: of what is longer the rest is cut before it is tokenised


class Sights:
    """Model inputs of prompts and chats about one image; `options` go to the chat template. Threads may share it."""

    def __init__(self, processor: Any, options: Mapping[str, Any] | None = None) -> None:
        self.prompts = Prompts(_Speaker(processor), options)
        self._processor = copy(processor)
        self._processor.tokenizer = _Listener(self.prompts)
        self._start = getattr(processor.tokenizer, "bos_token", None)

    def of_text(self, text: str, image: Image) -> dict[str, Array]:
        """Of a prompt as the model gets it, its special tokens too; what is veiled (chat.py) stays text."""
        return self._made(text, image, True)

    def of_chat(self, messages: Sequence[Message], image: Image, room: int | None) -> tuple[dict[str, Array], bool]:
        """Of a chat, and whether it was cut to `room` tokens: the beginnings of texts, the system's last.

        Contents are lists of parts, see `parted`. RowError where the image and the template alone take more.
        """
        chat = deepcopy([dict(each) for each in messages])
        spoken = sorted(chat, key=lambda each: each.get("role") == "system")
        texts = [part for each in spoken for part in each["content"] if part["type"] == "text"]
        cut = room is not None and _shorten(texts, room * _LONG)
        while True:
            made = self._rendered(chat, image)
            tokens = len(made["input_ids"])
            if room is None or tokens <= room:
                return made, cut
            longest = next((part for part in texts if part["text"]), None)
            if longest is None:
                raise RowError(
                    "too_long", f"{tokens} tokens of image and chat template alone, there is room for {room}"
                )
            cut, longest["text"] = True, self._without(longest["text"], tokens - room)

    def _rendered(self, chat: Sequence[Message], image: Image) -> dict[str, Array]:
        text = self.prompts.render(chat)
        return self._made(text, image, not (self._start and text.startswith(self._start)))

    def _made(self, text: str, image: Image, add_special_tokens: bool) -> dict[str, Array]:
        """Arrays as a batch of this row alone has them, those of TOKENS without the axis of the batch."""
        options = {} if add_special_tokens else {"add_special_tokens": False}
        made = self._processor(images=[[image]], text=[text], return_tensors="pt", **options)
        arrays = {name: np.asarray(value) for name, value in made.items() if name != "attention_mask"}
        unknown = sorted(set(arrays) - {*TOKENS, *ARRAYS})
        if unknown:
            raise RowError(
                "preprocess_failed", f"its processor makes {', '.join(unknown)}, which this task does not know"
            )
        return {
            name: (array[0] if name in TOKENS else array).astype(
                np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64, copy=False
            )
            for name, array in arrays.items()
        }

    def _without(self, text: str, count: int) -> str:
        """`text` without about its first `count` tokens, at least one character shorter."""
        tokenizer = self._processor.tokenizer
        if not tokenizer.is_fast:
            return text[max(1, count) :]
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
        spans = made["offset_mapping"]
        return text[max(1, spans[count][0]) :] if count < len(spans) else ""


class _Speaker:
    """A tokenizer whose chats the processor renders, and to which the processor's placeholders are special."""

    def __init__(self, processor: Any) -> None:
        self._processor, self._tokenizer = processor, processor.tokenizer
        found = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        more = [text for text in found if isinstance(text, str) and text not in self._tokenizer.all_special_tokens]
        self.all_special_tokens = [*self._tokenizer.all_special_tokens, *more]
        self.all_special_ids = [*self._tokenizer.all_special_ids, *map(self._tokenizer.convert_tokens_to_ids, more)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self._tokenizer(*texts, **options)

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> Any:
        """As the processor, whose template knows of images."""
        return self._processor.apply_chat_template(messages, **options)


class _Listener:
    """The tokenizer for a processor whose texts may have veils."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts, self._lock = prompts, Lock()  # tokenizers have settings that a call changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prompts.tokenizer, name)

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """As the tokenizer; of texts with veils a batch of ids, mask and types.

        What processors ask of its encodings lies within an image's placeholders, where there are no veils.
        """
        tokenizer, texts = self._prompts.tokenizer, [text] if isinstance(text, str) else text
        with self._lock:
            if all(self._prompts.unveil(each) == each for each in texts):
                return tokenizer(text, **options)
            add = options.get("add_special_tokens", True)
            ids = [self._prompts.encode(each, add) for each in texts]
            veiled = tokenizer(texts, add_special_tokens=add, verbose=False)
        made = {"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]}
        types = options.get("return_token_type_ids")
        if types or (types is None and "token_type_ids" in tokenizer.model_input_names):
            made["token_type_ids"] = [[0] * len(each) for each in ids]
        return type(veiled)(made, veiled.encodings, options.get("return_tensors"))


def parted(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A chat with the content of each message as a list of parts {type: text, text} and one {type: image}.

    Where no part is an image it stands in front of the first message of the user. RowError for what is no such chat.
    """
    chat = [{**each, "content": _parts(each.get("content"))} for each in messages]
    images = [part for each in chat for part in each["content"] if part["type"] == "image"]
    if len(images) > 1:
        raise RowError("bad_messages", f"{len(images)} images in the messages, and a row has one")
    if not images:
        first = next((each for each in chat if each.get("role") == "user"), None)
        if first is None:
            raise RowError("bad_messages", "no message of the user to put the image into")
        first["content"].insert(0, {"type": "image"})
    return chat


def _parts(content: Any) -> list[dict[str, Any]]:
    """One message's content."""
    if content is None or isinstance(content, str):
        return [] if content is None else [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise RowError("bad_messages", "content is neither a text nor a list of parts {type, text}")
    made = list[dict[str, Any]]()
    for part in content:
        if part.get("type") == "image":
            made.append({"type": "image"})
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            made.append({"type": "text", "text": part["text"]})
        else:
            raise RowError("bad_messages", f"a part of type {part.get('type')!r}; write text, with a text, or image")
    return made


def _shorten(texts: Sequence[dict[str, Any]], most: int) -> bool:
    """Takes off the beginnings what is over `most` characters in all; whether that was anything."""
    excess = over = sum(len(part["text"]) for part in texts) - most
    for part in texts:
        cut = min(max(excess, 0), len(part["text"]))
        part["text"], excess = part["text"][cut:], excess - cut
    return over > 0

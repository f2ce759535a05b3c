"""What a task reads: for each kind of input the Arrow type it gets, and the column types that can become it.

TEXT, TEXTS, MESSAGES, IMAGE, AUDIO, VIDEO, VECTOR and ANY are types to write into `Task.reads`. Media arrive as they
are stored, one encoded file a row; sound may be samples too, as `datasets` decodes it.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

TEXT = pa.string()
TEXTS = pa.list_(pa.string())
VECTOR = pa.list_(pa.float32())
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
IMAGE = pa.struct([("image", pa.large_binary())])
VIDEO = pa.struct([("video", pa.large_binary())])
AUDIO = pa.struct([("audio", pa.large_binary()), ("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64())])
ANY = pa.null()
MEDIA = (IMAGE, VIDEO, AUDIO)

_NAMES = {TEXT: "text", TEXTS: "list of texts", VECTOR: "list of numbers", MESSAGES: "list of {role, content}"}
_NAMES |= {IMAGE: "image: bytes, or {bytes, path}", VIDEO: "video: bytes, or {bytes, path}", ANY: "any type"}
_NAMES |= {AUDIO: "audio: bytes, {bytes, path}, or {array, sampling_rate}"}


def describe(kind: pa.DataType) -> str:
    """A kind in words."""
    return _NAMES.get(kind, str(kind))


def accepts(kind: pa.DataType, found: pa.DataType) -> bool:
    """Whether a column of type `found` can be read as `kind`. A column of nulls can: its rows become errors."""
    test = _TESTS.get(kind)
    if pa.types.is_null(found):
        return True
    return test(found) if test else bool(found.equals(kind))


def is_path(found: pa.DataType) -> bool:
    """Whether a media column of this type can only hold paths."""
    if not pa.types.is_struct(found):
        return is_text(found)
    return "path" in found.names and not {"bytes", "array"} & set(found.names)


def is_text(found: pa.DataType) -> bool:
    """Whether values are strings."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(found) for test in tests)


def is_bytes(found: pa.DataType) -> bool:
    """Whether values are bytes."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(found) for test in tests)


def item_of(found: pa.DataType) -> pa.DataType | None:
    """The type of a list's items; None for what is no list."""
    of = pa.types
    tests = (of.is_list, of.is_large_list, of.is_fixed_size_list, of.is_list_view, of.is_large_list_view)
    return found.value_type if any(test(found) for test in tests) else None


def _is_texts(found: pa.DataType) -> bool:
    item = item_of(found)
    return item is not None and (is_text(item) or pa.types.is_null(item))


def _is_vector(found: pa.DataType) -> bool:
    item = item_of(found)
    return item is not None and (pa.types.is_floating(item) or pa.types.is_integer(item) or pa.types.is_null(item))


def _is_messages(found: pa.DataType) -> bool:
    item = item_of(found)
    return item is not None and pa.types.is_struct(item) and {"role", "content"} <= set(item.names)


def _is_media(found: pa.DataType) -> bool:
    if not pa.types.is_struct(found):
        return is_bytes(found) or is_text(found)
    tests = {"bytes": is_bytes, "path": is_text}
    there = [name for name in tests if name in found.names]
    fit = (tests[name](found.field(name).type) or pa.types.is_null(found.field(name).type) for name in there)
    return bool(there) and all(fit)


def _is_audio(found: pa.DataType) -> bool:
    if not pa.types.is_struct(found) or not {"array", "sampling_rate"} <= set(found.names):
        return _is_media(found)
    return _is_vector(found.field("array").type) and pa.types.is_integer(found.field("sampling_rate").type)


def _is_text_or_bytes(found: pa.DataType) -> bool:
    return is_text(found) or is_bytes(found)


_TESTS: dict[pa.DataType, Callable[[pa.DataType], bool]] = {
    TEXT: _is_text_or_bytes,
    TEXTS: _is_texts,
    VECTOR: _is_vector,
    MESSAGES: _is_messages,
    IMAGE: _is_media,
    VIDEO: _is_media,
    AUDIO: _is_audio,
    ANY: lambda found: True,
}

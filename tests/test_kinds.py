"""Which columns can be read as which input, and what people call them."""

import pyarrow as pa
import pytest

from hfbatch import kinds


def media_struct(held: pa.DataType, path: pa.DataType) -> pa.DataType:
    return pa.struct([("bytes", held), ("path", path)])


PATH = pa.struct([("path", pa.string())])
DATASETS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SAMPLES = pa.struct([("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64()), ("path", pa.string())])
CHAT = pa.struct([("role", pa.string()), ("content", pa.string())])
ALL = [kinds.TEXT, kinds.TEXTS, kinds.VECTOR, kinds.MESSAGES, kinds.IMAGE, kinds.VIDEO, kinds.AUDIO, kinds.ANY]

READ = {
    kinds.TEXT: [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(4), pa.binary_view()],
    kinds.TEXTS: [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.null()),
    ],
    kinds.VECTOR: [pa.list_(pa.float64()), pa.list_(pa.float16(), 4), pa.large_list(pa.int8()), pa.list_(pa.null())],
    kinds.MESSAGES: [pa.list_(CHAT), pa.large_list(pa.struct([*CHAT, ("name", pa.string())]))],
    kinds.IMAGE: [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(8), pa.string(), DATASETS, PATH],
    kinds.VIDEO: [pa.binary(), DATASETS, pa.large_string()],
    kinds.AUDIO: [pa.binary(), DATASETS, SAMPLES, PATH, media_struct(pa.null(), pa.null())],
    kinds.ANY: [pa.int8(), pa.string(), DATASETS, pa.list_(pa.list_(pa.int8()))],
}
OTHER = {
    kinds.TEXT: [pa.int64(), pa.list_(pa.string()), DATASETS, pa.bool_()],
    kinds.TEXTS: [pa.string(), pa.list_(pa.int64()), pa.list_(pa.list_(pa.string()))],
    kinds.VECTOR: [pa.float32(), pa.list_(pa.string()), pa.list_(pa.list_(pa.float32()))],
    kinds.MESSAGES: [pa.string(), CHAT, pa.list_(pa.string()), pa.list_(PATH)],
    kinds.IMAGE: [
        *(pa.int64(), pa.list_(pa.uint8()), CHAT, pa.list_(pa.binary())),
        *(media_struct(pa.string(), pa.string()), media_struct(pa.list_(pa.uint8()), pa.string())),
        media_struct(pa.binary(), pa.int64()),
    ],
    kinds.VIDEO: [pa.list_(pa.binary()), pa.float32()],
    kinds.AUDIO: [pa.list_(pa.float32()), pa.struct([("array", pa.list_(pa.float32()))])],
}


@pytest.mark.parametrize(("kind", "found"), [(kind, found) for kind, types in READ.items() for found in types], ids=str)
def test_a_column_of_a_fitting_type_is_read(kind, found):
    assert kinds.accepts(kind, found)


@pytest.mark.parametrize(
    ("kind", "found"), [(kind, found) for kind, types in OTHER.items() for found in types], ids=str
)
def test_a_column_of_another_type_is_not(kind, found):
    assert not kinds.accepts(kind, found)


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_a_column_of_nulls_is_read_as_anything(kind):
    assert kinds.accepts(kind, pa.null())


def test_any_other_type_is_read_as_itself_alone():
    assert kinds.accepts(pa.int64(), pa.int64())
    assert not kinds.accepts(pa.int64(), pa.int32())


def test_only_columns_without_a_place_for_bytes_can_hold_nothing_but_paths():
    assert [kinds.is_path(found) for found in (pa.string(), pa.string_view(), PATH)] == [True] * 3
    assert [kinds.is_path(found) for found in (pa.binary(), DATASETS, SAMPLES)] == [False] * 3


def test_every_kind_has_words_of_its_own():
    words = [kinds.describe(kind) for kind in ALL]
    assert len(set(words)) == len(ALL)
    assert not any("struct<" in word for word in words)
    assert kinds.describe(pa.int64()) == "int64"

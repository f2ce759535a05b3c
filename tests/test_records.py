import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfbatch.errors import Damage
from hfbatch.records import Agreed, Receipt, data_name, shard_of, staged_name
from hfbatch.shards import Piece, Shard

SHARD = Shard.of([Piece("ä.parquet", "v", 0, 10)], None, 3)
RECEIPT = Receipt(SHARD.id, "f" * 64, data_name(SHARD.id, "f" * 64), 10, 3, "a", {"x": 1}, {"read_s": 0.25}, "run")


def test_records_read_back_as_they_were_written():
    assert Receipt.from_json(RECEIPT.to_json()) == RECEIPT
    plan = Agreed(3, "f" * 64, (SHARD, Shard("000002-" + "0" * 16, SHARD.pieces, SHARD.id, True, True)))
    assert Agreed.from_json(3, plan.to_json()) == plan


@given(st.integers(0, len(RECEIPT.to_json()) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(at, flip):
    text = bytearray(RECEIPT.to_json())
    text[at] ^= flip
    try:
        same = json.loads(bytes(text)) == json.loads(RECEIPT.to_json())
    except ValueError:
        same = False
    if same:  # white space
        assert Receipt.from_json(bytes(text)) == RECEIPT
    else:
        with pytest.raises(Damage, match="place"):
            Receipt.from_json(bytes(text), "place")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1, "checksum": "0"}'])
def test_what_is_no_record_is_damage_with_its_place(text):
    with pytest.raises(Damage, match=r"^there: "):
        Receipt.from_json(text, "there")


def test_names_tell_their_shard_and_other_names_none():
    name = data_name(SHARD.id, "f" * 64)
    assert shard_of(name) == shard_of(staged_name(name)) == shard_of(f"_hfbatch/commits/ffffffff/{SHARD.id}.json")
    assert shard_of(name) == SHARD.id
    others = ["data/x.parquet", f"data/sub/{name[5:]}", f"{name}.tmp", "_hfbatch/plans/000000001.json", "_SUCCESS"]
    assert [shard_of(other) for other in others] == [None] * len(others)

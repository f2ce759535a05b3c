"""What objects know is found again, and what is missing, damaged or foreign harms nothing."""

import json
import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import known
from hfbatch.carry import FOOTER, Held
from hfbatch.hashing import hash_rows
from hfbatch.known import ROW, RUN, TOKENS, Known, Of, Results
from hfbatch.records import Receipt, data_name, known_name, shard_of, staged_name
from hfbatch.store import open_store

STEP, GENERATION = "5" * 64, "a" * 64
WRITES = pa.schema([("label", pa.string()), ("scores", pa.list_(pa.float32()))])
SHARD = f"000001-{'0' * 16}"


def hashes_of(texts):
    return hash_rows(pa.table({"text": texts}))


def rows_of(texts, tokens):
    """ROW for each text; None: nothing is known of it."""
    absent = pa.array([text is None for text in texts])
    whole = hashes_of([text or "" for text in texts])
    return pa.StructArray.from_arrays([whole, pa.array(tokens, pa.int32())], fields=list(ROW), mask=absent)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def commit(store, texts, number=1, generation=GENERATION, place=lambda data: data, run="first", **written):
    """A data object with a label for each text, and what it knows beside it."""
    shard = f"{number:06d}-{'0' * 16}"
    data, rows = data_name(shard, generation, "day=1"), len(texts)
    footer = json.dumps({"shard": shard, "run_id": run}).encode()
    labels, scores = [f"is {text}" for text in texts], [[float(row)] * (row % 3) for row in range(rows)]
    table = pa.table({"pred_label": labels, "text": texts, "pred_scores": pa.array(scores, pa.list_(pa.float32()))})
    table = table.append_column("run_id", pa.array([run] * rows).dictionary_encode())
    written = {"row_group_size": 4, "write_page_checksum": True} | written
    content = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({FOOTER: footer}), content, **written)
    store.put(place(data), content.getvalue().to_pybytes())
    receipt = Receipt(shard, generation, data, rows, 0, "")
    of = Of(STEP, {"label": "pred_label", "scores": "pred_scores"}, "run_id")
    held = Held([("f", "v", 0, rows)], np.arange(rows))
    known.put(store, receipt, Known(of, data, known.digest(footer)), held, rows_of(texts, range(rows)))
    return place(data)


def found(store, texts, generation=None, step=STEP):
    """Text -> (label, scores, run, tokens) of those that have a result."""
    index, made = Results(store, step, generation).of(hashes_of(texts), WRITES)
    assert made.schema.names == [*WRITES.names, RUN, TOKENS]
    columns = made.to_pydict().values()
    return {texts[at]: values for at, values in zip(index, zip(*columns, strict=True), strict=True)}


@pytest.mark.parametrize("place", [lambda data: data, staged_name])
def test_a_row_is_found_by_its_hash_in_whatever_object_and_row_group_it_stands(store, place):
    commit(store, [*"abcdefghij"], place=place)
    commit(store, ["x", None, "y"], number=2, place=place, run="second")
    assert found(store, ["j", "q", "y", "b", "None"]) == {
        "j": ("is j", [], "first", 9),
        "y": ("is y", [2.0, 2.0], "second", 2),
        "b": ("is b", [1.0], "first", 1),
    }


def test_what_comes_later_is_found_by_those_who_looked_before(store):
    results = Results(store, STEP, None)
    assert len(results.of(hashes_of(["a"]), WRITES)[0]) == 0
    commit(store, ["a"])
    index, made = results.of(hashes_of(["b", "a"]), WRITES)
    assert (index.tolist(), made["label"].to_pylist()) == ([1], ["is a"])


def test_once_an_object_has_gone_what_it_knew_is_looked_for_in_others(store):
    results, old = Results(store, STEP, None), commit(store, ["a"])
    assert results.of(hashes_of(["a"]), WRITES)[1][RUN].to_pylist() == ["first"]
    commit(store, ["a"], number=2, run="second")
    assert results.of(hashes_of(["a"]), WRITES)[1][RUN].to_pylist() == ["first"]
    store.delete([old, known_name(STEP, SHARD, GENERATION)])
    assert results.of(hashes_of(["a"]), WRITES)[1][RUN].to_pylist() == ["second"]


def test_objects_of_the_generation_that_is_left_out_are_not_read(store):
    commit(store, ["a"])
    commit(store, ["b"], number=2, generation="b" * 64)
    assert set(found(store, ["a", "b"], generation=GENERATION)) == {"b"}


def test_of_an_object_that_is_gone_nothing_is_known_and_nothing_is_said(store, caplog):
    store.delete([commit(store, ["a"])])
    assert found(store, ["a"]) == {}
    assert caplog.text == ""


def test_an_object_that_was_written_anew_under_its_name_is_not_the_one_that_was_known(store, caplog):
    commit(store, ["a"])
    before = store.get(known_name(STEP, SHARD, GENERATION))
    commit(store, ["b"], run="second")
    store.put(known_name(STEP, SHARD, GENERATION), before)
    assert found(store, ["a"]) == {}
    assert "it was written anew since" in caplog.text


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_damaged_object_is_told_in_the_log_and_passed_over(store, caplog):
    name = commit(store, [*"ab"])
    content = store.get(name)
    store.put(name, flipped(content, 40))
    assert found(store, ["a"]) == {}
    assert f"{store.url(name)} is of no use, so its rows are inferred again" in caplog.text


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 2000])
def test_a_foreign_object_is_told_in_the_log_and_passed_over(store, caplog, content):
    commit(store, ["a"])
    name = known_name(STEP, f"000002-{'0' * 16}", GENERATION)
    store.put(name, content)
    assert set(found(store, ["a"])) == {"a"}
    assert f"{store.url(name)} is of no use" in caplog.text


def test_a_damaged_record_of_what_is_known_never_gives_a_wrong_result(store, caplog):
    """A bit of it here and there; the footer of Parquet has no checksum, so what it says is compared."""
    caplog.set_level(logging.CRITICAL)
    commit(store, [*"abc"])
    name = known_name(STEP, SHARD, GENERATION)
    content = store.get(name)
    right = found(store, ["a", "b", "c"])
    for at in range(0, len(content), 29):
        store.put(name, flipped(content, at))
        made = found(store, ["a", "b", "c"])
        assert {text: values[:2] for text, values in made.items() if values[:2] != right[text][:2]} == {}


def test_what_speaks_of_another_object_is_not_believed(store, caplog):
    commit(store, ["a"])
    commit(store, ["b"], number=2)
    store.put(known_name(STEP, SHARD, GENERATION), store.get(known_name(STEP, f"000002-{'0' * 16}", GENERATION)))
    assert set(found(store, ["a", "b"])) == {"b"}
    assert "it speaks of data/day=1/000002-" in caplog.text


def test_a_step_whose_generation_begins_with_the_same_digits_is_another(store):
    commit(store, ["a"])
    assert found(store, ["a"], step=STEP[:8] + "6" * 56) == {}


def test_of_the_objects_that_hold_rows_of_a_block_those_with_most_are_opened(store, monkeypatch):
    monkeypatch.setattr(known, "MOST_OBJECTS", 2)
    for number, texts in enumerate(("a", "bcd", "ef"), 1):
        commit(store, [*texts], number=number)
    assert set(found(store, [*"abcdef"])) == {*"bcdef"}


def test_beyond_what_memory_is_for_the_oldest_are_not_known_and_it_is_said_once(store, monkeypatch, caplog):
    monkeypatch.setattr(known, "MOST_ROWS", 3)
    for number, texts in enumerate(("ab", "cd", "ef"), 1):
        commit(store, [*texts], number=number)
    assert set(found(store, [*"abcdef"])) == {*"cdef"}
    assert caplog.text.count("older ones are inferred again") == 1


def test_what_a_shard_carries_over_is_known_as_it_was(store):
    commit(store, ["a", None, "c", "d"])
    numbers, rows = known.carried(store, STEP, SHARD, GENERATION, [("new", "v", 0, 5), ("f", "v", 1, 3)])
    assert numbers.tolist() == [5, 6]
    assert rows.to_pylist() == [None, {"hash": hashes_of(["c"])[0].as_py(), "tokens": 2}]
    for other in (replace_step(STEP), STEP):
        assert len(known.carried(store, other, f"000009-{'0' * 16}", GENERATION, [])[0]) == 0


def replace_step(step):
    return step[:8] + "6" * 56


def test_the_name_tells_the_shard():
    assert shard_of(known_name(STEP, SHARD, GENERATION)) == SHARD
    of = Known(Of(STEP, {}, "run_id"), data_name(SHARD, GENERATION), "f")
    assert Known.from_metadata(of.metadata(), known_name(STEP, SHARD, GENERATION)) == of
    with pytest.raises(ValueError, match="speaks of"):
        Known.from_metadata(replace(of, data=f"data/../{SHARD}").metadata(), known_name(STEP, SHARD, GENERATION))

"""hf://datasets/... as input, against a Hub on loopback."""

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem

from hfbatch.errors import AccessRefused
from hfbatch.files import list_files
from hfbatch.formats import FileRef, inspect, read_rows, unify
from tests.fake_hub import fake_hub


def parquet(*texts):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    HfFileSystem.clear_instance_cache()
    with fake_hub(tmp_path / "cache") as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.endpoint})
        yield server
    HfFileSystem.clear_instance_cache()


def texts_of(url):
    files = [inspect(file) for file in list_files([url], None)]
    schema = unify(files)
    refs = [FileRef.of(file, schema) for file in files]
    return [text for ref in refs for batch in read_rows(ref, 0, ref.rows) for text in batch["text"].to_pylist()]


@pytest.mark.parametrize("path", ["data/*.parquet", "data", "data/b.parquet"])
def test_files_of_a_dataset_on_the_hub_are_read_at_their_revision(hub, path):
    first = hub.commit("me/reviews", {"data/a.parquet": parquet("one"), "data/b.parquet": parquet("two", "three")})
    hub.commit("me/reviews", {"data/a.parquet": parquet("changed"), "data/b.parquet": parquet("changed")})
    expected = ["two", "three"] if path.endswith("b.parquet") else ["one", "two", "three"]
    assert texts_of(f"hf://datasets/me/reviews@{first}/{path}") == expected
    assert set(texts_of(f"hf://datasets/me/reviews/{path}")) == {"changed"}


def test_the_fingerprint_follows_the_content_not_the_commit(hub):
    first = hub.commit("me/reviews", {"a.parquet": parquet("one"), "b.parquet": parquet("two")})
    second = hub.commit("me/reviews", {"a.parquet": parquet("one"), "b.parquet": parquet("changed")})
    one, two = (list_files([f"hf://datasets/me/reviews@{commit}/*.parquet"], None) for commit in (first, second))
    assert one[0].fingerprint == two[0].fingerprint
    assert one[1].fingerprint != two[1].fingerprint


def test_a_dataset_that_is_missing_or_private_is_named_with_the_way_in(hub):
    """To a stranger the Hub answers 401 for both."""
    with pytest.raises(AccessRefused, match=r"me/nothing.*HF_TOKEN"):
        list_files(["hf://datasets/me/nothing/*.parquet"], None)

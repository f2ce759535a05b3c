"""weights.py: which weights are fetched and loaded, and what is said of those that are not."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hfbatch import store_errors
from hfbatch.errors import AccessRefused, StorageError
from hfbatch.hub import ModelProblem, PinnedModel, fetch, resolve_model
from hfbatch.load import load_job, load_machine
from hfbatch.loading import load_model
from hfbatch.modelspec import ModelSpec
from hfbatch.planner import make_plan
from tests.fake_hub import FakeHub, fake_hub

PICKLED = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
REFUSED = (
    r"no safetensors weights at .*, only pickled ones \(pytorch_model.bin\), which can run code and are refused; "
    r"convert them once with .* or write allow_pickle: true under model"
)
NAME = "pytorch_model.bin"


class Hostile:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(store_errors, "RETRY_SECONDS", (0.01, 0.01))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    with fake_hub(tmp_path / "cache") as server:
        yield server


@pytest.fixture
def model(classifier: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return shutil.copytree(classifier, tmp_path / "model")


@pytest.fixture
def load(write_parquet: Callable[..., Path], job_for: Callable[..., dict[str, Any]], model: Path) -> Callable[..., Any]:
    """load(**keys of model) -> the model as a worker gets it."""

    def loaded(**keys: Any) -> Any:
        job = job_for("text-classification", model, write_parquet("in/a.parquet", {"text": ["good"]}))
        job["model"] |= keys
        made = make_plan(load_job(job), load_machine(None)).job.step
        return load_model(made, made.make_task(), torch.device("cpu"))

    return loaded


def as_pickle(model: Path) -> dict[str, torch.Tensor]:
    """Turn the model's weights into a pickle; the weights."""
    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / NAME)
    (model / "model.safetensors").unlink()
    return weights


def files_below(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_pickled_weights_are_loaded_only_where_the_job_allows_it(load: Callable[..., Any], model: Path) -> None:
    weights = as_pickle(model)
    with pytest.raises(AccessRefused, match=REFUSED):
        load()
    loaded = load(allow_pickle=True)
    assert torch.equal(loaded.state_dict()["classifier.weight"], weights["classifier.weight"])


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_beside_safetensors_is_never_opened(
    load: Callable[..., Any], model: Path, tmp_path: Path, allowed: bool
) -> None:
    (model / NAME).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    assert load(allow_pickle=allowed).num_labels == 3
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_is_more_than_numbers_is_refused_and_does_not_run(
    load: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    (model / "model.safetensors").unlink()
    (model / NAME).write_bytes(pickle.dumps({"classifier.weight": Hostile(tmp_path / "ran")}, protocol=2))
    with pytest.raises(AccessRefused, match=r"damaged, or hold more than numbers.*take a checkpoint"):
        load(allow_pickle=True)
    torch.save({"classifier.weight": Hostile(tmp_path / "ran")}, model / NAME)
    with pytest.raises(AccessRefused, match="hold more than numbers"):
        load(allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_safetensors_that_are_cut_short_are_named(load: Callable[..., Any], model: Path, left: int) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:left])
    with pytest.raises(StorageError, match=r"model/model.safetensors, weights of .* is damaged .*; write the file"):
        load()


def test_safetensors_of_nonsense_are_named(load: Callable[..., Any], model: Path) -> None:
    for content in (b"nonsense" * 9, len(b"[1]").to_bytes(8, "little") + b"[1]"):
        (model / "model.safetensors").write_bytes(content)
        with pytest.raises(StorageError, match=r"model/model.safetensors, weights of .*, is damaged"):
            load()


def test_whole_weights_that_do_not_fit_are_not_called_damaged(load: Callable[..., Any], model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        load()


def test_a_file_cut_short_in_the_cache_is_named_with_the_way_out(
    hub: FakeHub, classifier: Path, write_parquet: Callable[..., Path], job_for: Callable[..., dict[str, Any]]
) -> None:
    hub.commit("owner/name", classifier)
    job = job_for("text-classification", Path("owner/name"), write_parquet("in/a.parquet", {"text": ["good"]}))
    made = make_plan(load_job(job), load_machine(None)).job.step
    blob = (Path(made.fetch_model()) / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    with pytest.raises(StorageError, match=r"weights of owner/name, is damaged or cut short; fetch it again"):
        load_model(made, made.make_task(), torch.device("cpu"))


# from the Hub


def test_pickled_weights_are_refused_with_the_way_to_convert(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.commit("owner/old", PICKLED)
    fetch(PinnedModel("owner/old", commit, None, None), weights=False)
    folder = tmp_path / "old"
    folder.mkdir()
    for name, content in PICKLED.items():
        (folder / name).write_bytes(content)
    cached, local = PinnedModel("owner/old", commit, None, None), PinnedModel("old", "sha256:", None, str(folder))
    names = ("owner/old", str(folder))
    refused = [lambda name=name: resolve_model(ModelSpec(id=name)) for name in names]
    refused += [lambda kept=kept: fetch(kept) for kept in (cached, local)]
    for call in refused:
        with pytest.raises(AccessRefused, match=REFUSED) as caught:
            call()
        assert caught.value.exit_code == 77
    assert not any(request.endswith(".bin") for request in hub.requests)


def test_pickled_weights_come_where_they_are_allowed_and_nothing_else_is_there(hub: FakeHub) -> None:
    hub.commit("owner/old", {**PICKLED, "training_args.bin": b"pickle", "optimizer.pt": b"pickle"})
    hub.commit("owner/both", {**PICKLED, "model.safetensors": b"weights"})
    old = resolve_model(ModelSpec(id="owner/old", allow_pickle=True))
    assert files_below(fetch(old, weights=False)) == {"config.json"}
    assert files_below(fetch(old)) == {"config.json", "pytorch_model.bin"}
    hub.requests.clear()
    fetch(old)
    assert hub.requests == []
    both = resolve_model(ModelSpec(id="owner/both", allow_pickle=True))
    assert files_below(fetch(both)) == {"config.json", "model.safetensors"}


def test_pickled_weights_that_are_cached_work_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.commit("owner/old", PICKLED)
    spec = ModelSpec(id="owner/old", revision=commit, allow_pickle=True)
    folder = fetch(resolve_model(spec))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(resolve_model(spec)) == folder


def test_a_model_without_any_weights_says_so(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit("owner/none", {"config.json": b"{}", "2_Dense/model.safetensors": b"of another module"})
    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    for name in ("owner/none", str(folder)):
        for allowed in (False, True):
            with pytest.raises(ModelProblem, match=r"has no weights at .*; choose a revision that has safetensors"):
                fetch(resolve_model(ModelSpec(id=name, allow_pickle=allowed)))

"""hub_errors.py: what a person reads when the Hub refuses, is busy or is gone."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfbatch import store_errors
from hfbatch.errors import AccessRefused, HfbatchError, StorageError
from hfbatch.hub import ModelProblem, PinnedModel, fetch, resolve_model
from hfbatch.modelspec import ModelSpec
from tests.fake_hub import FakeHub, fake_hub

TINY = {"config.json": b"{}", "vocab.txt": b"[UNK]", "model.safetensors": b"weights"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "RETRY_SECONDS", (0.01, 0.01))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # huggingface_hub's own waits


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "cache") as server:
        yield server


def resolve(model_id: str, revision: str | None = None) -> PinnedModel:
    return resolve_model(ModelSpec(id=model_id, revision=revision))


def problem(model_id: str, revision: str | None = None) -> ModelProblem:
    with pytest.raises(ModelProblem) as caught:
        resolve(model_id, revision)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_missing_model_may_be_private(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("owner/secret", TINY)
    hub.private.add("owner/secret")
    for name in ("owner/absent", "owner/secret", "absent"):
        found = problem(name)
        assert found.key == "id"
        assert f"no model '{name}' on 127.0.0.1" in found.message
        assert "`hf auth login` or set HF_TOKEN" in str(found.fix)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert resolve("owner/secret").commit
    assert "no model 'owner/absent'" in problem("owner/absent").message  # logged in, the Hub says 404, not 401


def test_a_gated_model_says_where_to_ask(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("owner/gated", TINY)
    hub.gated.add("owner/gated")
    model = resolve("owner/gated")
    with pytest.raises(AccessRefused, match=r"owner/gated is gated: ask for access at http.*/owner/gated, then log in"):
        fetch(model)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (Path(fetch(model)) / "model.safetensors").is_file()


def test_a_wrong_token_is_refused_and_never_shown(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.commit("owner/tiny", TINY)
    monkeypatch.setenv("HF_TOKEN", "hf_a_stolen_token")
    shown = []
    for call in (lambda: resolve("owner/tiny"), lambda: fetch(PinnedModel("owner/tiny", commit, None, None))):
        with pytest.raises(AccessRefused, match="refused the token for owner/tiny") as caught:
            call()
        assert caught.value.exit_code == 77
        shown.append(str(caught.value))
    hub.failures = [500] * 9
    with pytest.raises(StorageError) as failed:
        resolve("owner/tiny")
    assert "stolen" not in "".join([*shown, str(failed.value)])


def test_a_busy_hub_is_asked_again(hub: FakeHub) -> None:
    commit = hub.commit("owner/tiny", TINY)
    hub.failures = [503, 429]
    assert resolve("owner/tiny").commit == commit
    assert len(hub.requests) == 3


def test_the_wait_a_busy_hub_asks_for_is_kept(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    commit = hub.commit("owner/tiny", TINY)
    hub.failures, hub.retry_after = [429], 7
    assert resolve("owner/tiny").commit == commit
    assert 7 in waits
    waits.clear()
    hub.failures = [429]
    fetch(PinnedModel("owner/tiny", commit, None, None))
    assert any(wait >= 7 for wait in waits)


def test_a_wait_of_a_day_is_an_error_at_once(hub: FakeHub) -> None:
    commit = hub.commit("owner/tiny", TINY)
    hub.retry_after = 86400
    for call in (lambda: resolve("owner/tiny"), lambda: fetch(PinnedModel("owner/tiny", commit, None, None))):
        hub.failures = [429]
        with pytest.raises(StorageError, match=r"127.0.0.1:\d+ is busy and asks to wait 86,400 seconds"):
            call()
        assert hub.failures == []


def test_a_burst_of_failures_within_a_download_is_outlived(hub: FakeHub) -> None:
    model = PinnedModel("owner/tiny", hub.commit("owner/tiny", TINY), None, None)
    fetch(model, weights=False)
    hub.failures = [500, 502, 503]
    assert (Path(fetch(model)) / "model.safetensors").read_bytes() == TINY["model.safetensors"]


def test_a_download_that_is_cut_off_is_finished(hub: FakeHub) -> None:
    hub.commit("owner/tiny", TINY)
    hub.cut["model.safetensors"] = 2
    assert (Path(fetch(resolve("owner/tiny"))) / "model.safetensors").read_bytes() == TINY["model.safetensors"]
    assert hub.cut["model.safetensors"] < 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_that_are_not_those_announced_are_fetched_again(hub: FakeHub, name: str) -> None:
    hub.commit("owner/tiny", TINY)
    hub.corrupt[name] = 1
    assert (Path(fetch(resolve("owner/tiny"))) / name).read_bytes() == TINY[name]


def test_bytes_that_stay_wrong_are_an_error_and_leave_the_cache(hub: FakeHub) -> None:
    model = PinnedModel("owner/tiny", hub.commit("owner/tiny", TINY), None, None)
    hub.corrupt["model.safetensors"] = 2
    with pytest.raises(StorageError, match=r"sent other bytes of model.safetensors of owner/tiny at [0-9a-f]{40}"):
        fetch(model)
    assert (Path(fetch(model)) / "model.safetensors").read_bytes() == TINY["model.safetensors"]


def test_a_commit_that_is_gone_names_repository_and_commit(hub: FakeHub) -> None:
    hub.commit("owner/tiny", TINY)
    with pytest.raises(ModelProblem, match=f"owner/tiny has no revision '{'0' * 40}'"):
        fetch(PinnedModel("owner/tiny", "0" * 40, None, None))


def test_a_broken_hub_is_named_with_what_needs_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.failures = [500] * 9
    with pytest.raises(StorageError, match=r"127.0.0.1:\d+ answered HTTP 500 .* a local directory, needs no network"):
        resolve("owner/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9")
    for call in (lambda: resolve("owner/tiny"), lambda: fetch(PinnedModel("owner/tiny", "0" * 40, None, None))):
        with pytest.raises(StorageError, match=r"127.0.0.1:9 is out of reach .* needs no network") as caught:
            call()
        assert "secret" not in str(caught.value)


def test_an_endpoint_without_commits_is_refused(hub: FakeHub) -> None:
    hub.commit("owner/tiny", TINY)
    hub.repos["owner/tiny"].history["main"] = [""]
    hub.repos["owner/tiny"].files[""] = {}
    with pytest.raises(StorageError, match="did not say which commit"):
        resolve("owner/tiny")


def test_a_problem_crosses_processes() -> None:
    error = ModelProblem("id", "is wrong", "write another")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, HfbatchError)
    assert (copy.key, copy.message, copy.fix) == (error.key, error.message, error.fix)
    assert str(copy) == "model.id: is wrong; write another"

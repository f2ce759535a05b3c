"""hub.py and hub_errors.py, on a Hub that really answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from hfbatch import store_errors
from hfbatch.errors import AccessRefused, StorageError
from hfbatch.hub import ModelProblem, PinnedModel, directory_digest, fetch, resolve_model
from hfbatch.modelspec import ModelSpec
from tests.fake_hub import FakeHub, fake_hub

TINY = {
    "config.json": b'{"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}',
    "vocab.txt": b"[UNK]\nhello\n",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"onnx",
    "modeling_tiny.py": b"",
    "1_Pooling/config.json": b"{}",
}
ELSEWHERE = {**TINY, "config.json": b'{"auto_map": {"AutoConfig": "owner/code--modeling.Config"}}'}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "RETRY_SECONDS", (0.01, 0.01))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # huggingface_hub's own waits


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "cache") as server:
        yield server


@pytest.fixture
def offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return hub


def resolve(model_id: str, revision: str | None = None) -> PinnedModel:
    return resolve_model(ModelSpec(id=model_id, revision=revision))


def problem(model_id: str, revision: str | None = None) -> ModelProblem:
    with pytest.raises(ModelProblem) as caught:
        resolve(model_id, revision)
    assert caught.value.exit_code == 2
    return caught.value


def files_below(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def directory(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_bytes(b"{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


# the Hub


def test_a_branch_a_tag_and_a_commit_become_the_full_commit(hub: FakeHub) -> None:
    first = hub.commit("owner/tiny", TINY)
    hub.tag("owner/tiny", "v1", first)
    second = hub.commit("owner/tiny", {**TINY, "vocab.txt": b"other"})
    dev = hub.commit("owner/tiny", TINY, branch="feature/x")
    assert resolve("owner/tiny") == PinnedModel("owner/tiny", second, None, None)
    assert resolve("owner/tiny", "v1").commit == first
    assert resolve("owner/tiny", "feature/x").commit == dev
    assert resolve("owner/tiny", first) == PinnedModel("owner/tiny", first, first, None)


def test_a_branch_that_moved_resolves_to_the_new_commit(hub: FakeHub) -> None:
    first = hub.commit("owner/tiny", TINY)
    fetch(resolve("owner/tiny", "main"))
    second = hub.commit("owner/tiny", {**TINY, "vocab.txt": b"other"})
    assert resolve("owner/tiny", "main").commit == second != first


@pytest.mark.parametrize("by_the_hub", [True, False])
def test_the_beginning_of_a_commit_is_expanded(hub: FakeHub, by_the_hub: bool) -> None:
    hub.expands_short_commits = by_the_hub
    first = hub.commit("owner/tiny", TINY)
    hub.commit("owner/tiny", {**TINY, "vocab.txt": b"other"})
    assert resolve("owner/tiny", first[:7]) == PinnedModel("owner/tiny", first, first[:7], None)


def test_an_ambiguous_beginning_is_refused_with_the_candidates(hub: FakeHub) -> None:
    hub.expands_short_commits = False
    hub.commit("owner/tiny", TINY)
    repo = hub.repos["owner/tiny"]
    twins = ["abcdef0" + "1" * 33, "abcdef0" + "2" * 33]
    repo.history["main"] = twins
    repo.files = {twin: {} for twin in twins}
    found = problem("owner/tiny", "abcdef0")
    assert found.key == "revision"
    assert "beginning of 2 commits" in found.message
    assert found.fix == f"write one of {', '.join(twins)}"


def test_a_cached_full_commit_makes_no_request(hub: FakeHub) -> None:
    commit = hub.commit("owner/tiny", TINY)
    folder = fetch(resolve("owner/tiny", commit))
    hub.requests.clear()
    assert fetch(resolve("owner/tiny", commit.upper())) == folder
    assert hub.requests == []


def test_a_missing_revision_lists_what_there_is_and_the_nearest(hub: FakeHub) -> None:
    hub.tag("owner/tiny", "v1.0", hub.commit("owner/tiny", TINY))
    found = problem("owner/tiny", "mian")
    assert (found.key, found.fix) == ("revision", "write 'main'")
    assert found.message == "owner/tiny has no revision 'mian'; it has branches main; tags v1.0"
    assert "abcdef" in problem("owner/tiny", "abcdef").message


def test_offline_the_cache_answers(offline: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    commit = offline.commit("owner/tiny", TINY)
    folder = fetch(resolve("owner/tiny", "main"))
    refs = Path(constants.HF_HUB_CACHE) / "models--owner--tiny" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(commit)  # as from_pretrained("owner/tiny") leaves it
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline.requests.clear()
    for revision in (None, "main", commit, commit[:8]):
        assert fetch(resolve("owner/tiny", revision)) == folder
    assert offline.requests == []


def test_offline_what_is_not_cached_says_what_to_do(offline: FakeHub) -> None:
    offline.commit("owner/tiny", TINY)
    for revision in (None, "dev", "abcdef0", "0" * 40, "../../../etc/passwd"):
        with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set; unset it once to fetch the model"):
            resolve("owner/tiny", revision)
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set; unset it once"):
        fetch(PinnedModel("owner/tiny", "0" * 40, None, None))
    assert offline.requests == []


def test_offline_a_plan_without_its_weights_is_incomplete(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("owner/tiny", TINY)
    model = resolve("owner/tiny")
    fetch(model, weights=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "config.json" in files_below(fetch(model, weights=False))
    with pytest.raises(StorageError, match="not complete in the cache"):
        fetch(model)


# files


def test_only_the_files_that_are_needed_come(hub: FakeHub) -> None:
    hub.commit("owner/tiny", {**TINY, "original/model.safetensors": b"twice", "consolidated.safetensors": b"twice"})
    model = resolve("owner/tiny")
    small = {"config.json", "vocab.txt", "1_Pooling/config.json"}
    assert files_below(fetch(model, weights=False)) == small
    assert files_below(fetch(model)) == {*small, "model.safetensors"}
    assert files_below(fetch(model, code=True)) == {*small, "model.safetensors", "modeling_tiny.py"}


def test_a_branch_that_is_named_like_a_commit_is_refused(hub: FakeHub) -> None:
    commit = hub.commit("owner/tiny", TINY, branch="c0ffee" * 6 + "c0ff")
    found = problem("owner/tiny", "c0ffee" * 6 + "c0ff")
    assert "is no commit of owner/tiny but a branch or tag of that name" in found.message
    assert commit in str(found.fix)


# code of other repositories


def test_code_of_another_repository_comes_at_its_own_commit(hub: FakeHub) -> None:
    first = hub.commit("owner/code", {"modeling.py": b"first", "model.safetensors": b"weights"})
    hub.commit("owner/code", {"modeling.py": b"second"})
    commit = hub.commit("owner/tiny", ELSEWHERE)
    spec = ModelSpec(id="owner/tiny", revision=commit, code_revision=first, trust_remote_code=True)
    fetch(resolve_model(spec), code=True)
    code = Path(constants.HF_HUB_CACHE) / "models--owner--code" / "snapshots"
    assert files_below(str(code)) == {f"{first}/modeling.py"}
    hub.requests.clear()
    fetch(resolve_model(spec), code=True)
    assert hub.requests == []


def test_code_at_a_commit_that_is_not_there_points_at_its_key(hub: FakeHub) -> None:
    hub.commit("owner/code", {"modeling.py": b"first"}, branch="c0ffee" * 6 + "c0ff")
    commit = hub.commit("owner/tiny", ELSEWHERE)
    for code_revision, message in (("0" * 40, "owner/code has no revision"), ("c0ffee" * 6 + "c0ff", "is no commit")):
        spec = ModelSpec(id="owner/tiny", revision=commit, code_revision=code_revision, trust_remote_code=True)
        with pytest.raises(ModelProblem, match=message) as caught:
            fetch(resolve_model(spec), code=True)
        assert caught.value.key == "code_revision"


def test_code_beside_the_model_is_of_the_models_commit(hub: FakeHub) -> None:
    commit = hub.commit("owner/tiny", {**TINY, "config.json": b'{"auto_map": {"AutoConfig": "modeling.Config"}}'})
    spec = ModelSpec(id="owner/tiny", revision=commit, code_revision="0" * 40, trust_remote_code=True)
    with pytest.raises(ModelProblem, match=r"is in its own repository, at .*; write the same commit as revision and"):
        fetch(resolve_model(spec), code=True)
    fetch(resolve_model(spec.model_copy(update={"code_revision": commit})), code=True)


def test_a_directory_whose_code_is_elsewhere_needs_its_commit(tmp_path: Path) -> None:
    folder = directory(tmp_path / "mine")
    (folder / "config.json").write_bytes(ELSEWHERE["config.json"])
    model = resolve_model(ModelSpec(id=str(folder), trust_remote_code=True))
    with pytest.raises(AccessRefused, match="takes its code from owner/code; read it there, then write the full"):
        fetch(model, code=True)


def test_the_fake_hub_serves_transformers_too(hub: FakeHub) -> None:
    hub.tag("owner/tiny", "v1", hub.commit("owner/tiny", TINY))
    code = (
        "from transformers import AutoConfig, AutoTokenizer\n"
        "assert AutoConfig.from_pretrained('owner/tiny', revision='v1').hidden_size == 8\n"
        "assert AutoTokenizer.from_pretrained('owner/tiny').convert_tokens_to_ids('hello') == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=dict(os.environ))


# local directories


def test_a_directory_is_pinned_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = directory(tmp_path / "mine")
    model = resolve(str(folder))
    assert model == PinnedModel(str(folder), directory_digest(folder), None, str(folder))
    assert len(model.commit) == len("sha256:") + 64
    assert fetch(model) == str(folder)
    monkeypatch.chdir(tmp_path)
    assert resolve("mine") == PinnedModel("mine", model.commit, None, str(folder))
    assert resolve("./mine").local_path == str(folder)


def test_the_digest_changes_with_content_and_names_only(tmp_path: Path) -> None:
    folder = directory(tmp_path / "mine")
    before = directory_digest(folder)
    for hidden in (".git", ".cache"):
        (folder / hidden).mkdir()
        (folder / hidden / "x").write_bytes(b"noise")
    (folder / ".DS_Store").write_bytes(b"noise")
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    (folder / "loop").symlink_to(folder)
    assert directory_digest(folder) == before
    blob.write_bytes(b"other weights")
    changed = directory_digest(folder)
    (folder / "config.json").rename(folder / "renamed.json")
    assert len({before, changed, directory_digest(folder)}) == 3


def test_a_revision_of_a_directory_is_refused(tmp_path: Path) -> None:
    found = problem(str(directory(tmp_path / "mine")), "main")
    assert (found.key, found.fix) == ("revision", "remove the line")


@pytest.mark.parametrize(
    ("model_id", "message", "fix"),
    [
        ("./absent", "'./absent' is no such directory", "write a directory with a config.json"),
        ("/absent", "'/absent' is no such directory", "write a directory"),
        ("~/absent", "'~/absent' is no such directory", "write a directory"),
        ("a/b/c", "'a/b/c' is no such directory", "write a directory"),
        ("./file", "'./file' is a file, not a directory", "write a directory"),
        ("empty", "has no config.json", "save_pretrained"),
        ("https://huggingface.co/owner/name/tree/main", "web address", "write 'owner/name'"),
        ("https://u:hf_secret@elsewhere/x?token=hf_secret", "https://elsewhere/x is no model id", "write a Hub id"),
        ("owner/name@v1", "revision has a key of its own", "write id: owner/name and revision: v1"),
        ("no spaces", "'no spaces' is no Hub id and no directory", "write owner/name"),
    ],
)
def test_what_is_no_model_is_refused_without_a_request(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_id: str, message: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    found = problem(model_id)
    assert found.key == "id"
    assert message in found.message
    assert fix in str(found.fix)
    assert "secret" not in str(found)
    assert hub.requests == []

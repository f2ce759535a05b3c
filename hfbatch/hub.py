"""A model as written -> a model pinned: one commit of the Hub, or one content hash of a local directory.

`resolve_model` asks the Hub once, before the first row; after it nobody reads a branch name again. `fetch`
brings the files of that commit to the local cache. A full commit that is cached, and a local directory, need no
network. Weights are safetensors; pickled ones (pytorch_model*.bin) are neither fetched nor read without
`allow_pickle`, nor where there are safetensors.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported, not in __all__

from hfbatch.download import ask, download, one_at_a_time
from hfbatch.errors import AccessRefused, StorageError
from hfbatch.hub_errors import ModelProblem, endpoint, hub_failures, hub_host, is_offline, offline_failure
from hfbatch.modelspec import ModelSpec
from hfbatch.store_errors import redact
from hfbatch.trust import COMMIT, code_repositories
from hfbatch.weights import PICKLED, SAFE, refuse_pickles, weights_among

__all__ = ["ModelProblem", "PinnedModel", "directory_digest", "endpoint", "fetch", "is_offline", "resolve_model"]

ABBREVIATED = re.compile(r"[0-9a-f]{4,39}")
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*.codes", "*.tiktoken", "tokenizer*", "vocab*")
CODE = ("*.py",)
NOT_OURS = (  # the same model for other programs, and pickles whose names match the above
    *("original/*", "onnx/*", "openvino/*", "coreml/*", "gguf/*", "consolidated*.safetensors"),
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.h5", "*.onnx", "*.msgpack", "*.ckpt", "*.gguf"),
)


@dataclass(frozen=True)
class PinnedModel:
    """Exactly one set of model files."""

    id: str  # as written
    commit: str  # the full commit, 40 hex digits; "sha256:<64 hex digits>" for a local directory
    revision: str | None  # as written
    local_path: str | None  # the absolute directory, if it is a local one
    code_revision: str | None = None  # the full commit of code from another repository, where code may run at all
    allow_pickle: bool = False  # whether pickled weights will do where there are no safetensors


def resolve_model(spec: ModelSpec) -> PinnedModel:
    """Pin `spec.id` at `spec.revision`.

    A directory of that name wins over the Hub, as in transformers. With HF_HUB_OFFLINE a branch or tag means what
    it meant when it was last fetched (the cache's refs/), and an abbreviated commit one of the cached commits.
    Raises ModelProblem; AccessRefused for gated models and refused tokens; StorageError without a network.
    """
    path = Path(spec.id).expanduser()
    if path.is_dir():
        return _pin_directory(spec, path.absolute())
    _check_hub_id(spec.id)
    revision = spec.revision
    if revision and COMMIT.fullmatch(revision.lower()) and _is_cached(spec.id, revision.lower()):
        commit = revision.lower()
    elif is_offline():
        commit = _resolve_in_cache(spec.id, revision)
    else:
        commit, names = _resolve_on_hub(spec.id, revision)
        refuse_pickles(spec.id, commit, names, spec.allow_pickle)
    return _pinned(spec, commit, None)


def fetch(model: PinnedModel, *, weights: bool = True, code: bool = False) -> str:
    """The local directory with the model's files at its commit.

    weights=False brings configs and tokenizer only (enough to plan); code=True the Python files too, also those of
    another repository that the model names. Raises what `resolve_model` does.

    Of processes that share a cache and want the same commit, one downloads it, and the others wait and load from disk.
    """
    patterns = [*SMALL_FILES, *(SAFE if weights else ()), *(CODE if code else ())]
    with one_at_a_time(model.id, model.commit) if model.local_path is None else nullcontext():
        folder = model.local_path or download(model.id, model.commit, patterns, NOT_OURS)
        if weights and not weights_among(_names_in(folder), SAFE):
            _fetch_pickles(model, folder)
        if code:
            _fetch_code(model, folder)
    return folder


def directory_digest(folder: Path) -> str:
    """`sha256:` and the hash over the sorted relative names with each file's own sha256.

    Hidden files and folders (names with a leading dot) do not count; symlinks do, as what they point to.
    """
    total = hashlib.sha256()
    for path in sorted(_visible_files(folder, ()), key=lambda path: path.relative_to(folder).as_posix()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{digest}  {path.relative_to(folder).as_posix()}\0".encode(errors="surrogateescape"))
    return f"sha256:{total.hexdigest()}"


def _pin_directory(spec: ModelSpec, path: Path) -> PinnedModel:
    if spec.revision is not None:
        message = f"'{spec.id}' is a local directory, which has no revisions; its content is what is pinned"
        raise ModelProblem("revision", message, "remove the line")
    if not (path / "config.json").is_file():
        raise ModelProblem(
            "id", f"{path} has no config.json, so it is no model", "write a directory made by save_pretrained"
        )
    refuse_pickles(spec.id, "this directory", _names_in(str(path)), spec.allow_pickle)
    try:
        return _pinned(spec, directory_digest(path), str(path))
    except OSError as error:
        raise StorageError(
            f"cannot read the model in {path}: {error.strerror}; check the files and their rights"
        ) from error


def _pinned(spec: ModelSpec, commit: str, local_path: str | None) -> PinnedModel:
    code = spec.code_revision if spec.trust_remote_code else None
    return PinnedModel(spec.id, commit, spec.revision, local_path, code, spec.allow_pickle)


def _visible_files(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """All files below that are not hidden; `above` are the real paths of the folders on the way, against loops."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _visible_files(entry, (*above, here))
        else:
            yield entry


def _check_hub_id(name: str) -> None:
    """ModelProblem for what can be neither a directory nor a Hub id."""
    on_hub = re.match(r"(?:https?://)(?:[^/@]*@)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", name)
    if on_hub:
        raise ModelProblem("id", "a web address is no model id", f"write '{on_hub[1]}'")
    if "://" in name:
        raise ModelProblem("id", f"{redact(name)} is no model id", "write a Hub id (owner/name) or a local directory")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        kind = "is a file, not a directory" if Path(name).expanduser().is_file() else "is no such directory"
        raise ModelProblem("id", f"'{name}' {kind}", f"write a directory with a config.json (here: {Path.cwd()})")
    if "@" in name and ":" not in name:
        name, _, revision = name.partition("@")
        raise ModelProblem("id", "the revision has a key of its own", f"write id: {name} and revision: {revision}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelProblem("id", f"'{name}' is no Hub id and no directory", "write owner/name") from error


def _resolve_on_hub(model_id: str, revision: str | None) -> tuple[str, list[str]]:
    """The full commit, and the names of its files as far as the Hub tells them."""
    api, names = HfApi(endpoint=endpoint()), list[str]()
    with hub_failures(model_id, revision):
        try:
            info = ask(lambda: api.model_info(model_id, revision=revision, timeout=30))
            commit, names = info.sha, [file.rfilename for file in info.siblings or ()]
        except RevisionNotFoundError as error:
            commit = _expand(api, model_id, str(revision))
            if commit is None:
                raise _no_such_revision(api, model_id, str(revision)) from error
    if not commit or not COMMIT.fullmatch(commit):
        raise StorageError(f"{hub_host()} did not say which commit of {model_id} that is; check HF_ENDPOINT")
    if revision and COMMIT.fullmatch(revision.lower()) and commit != revision.lower():
        message = f"'{revision}' is no commit of {model_id} but a branch or tag of that name"  # which may move
        raise ModelProblem("revision", message, f"write '{commit}', which is what it means now")
    return commit, names


def _expand(api: HfApi, model_id: str, short: str) -> str | None:
    """The one commit that begins with `short`. The real Hub resolves these itself; mirrors do not always."""
    if not ABBREVIATED.fullmatch(short):
        return None
    refs = api.list_repo_refs(model_id)
    found = {c.commit_id for ref in refs.branches for c in api.list_repo_commits(model_id, revision=ref.name)}
    found |= {tag.target_commit for tag in refs.tags}
    return _only_one(sorted(commit for commit in found if commit.startswith(short)), model_id, short)


def _only_one(commits: list[str], model_id: str, short: str) -> str | None:
    if len(commits) > 1:
        message = f"'{short}' is the beginning of {len(commits)} commits of {model_id}"
        raise ModelProblem("revision", message, f"write one of {', '.join(commits[:5])}")
    return commits[0] if commits else None


def _no_such_revision(api: HfApi, model_id: str, revision: str) -> ModelProblem:
    message = f"{model_id} has no revision '{revision}'"
    try:
        refs = api.list_repo_refs(model_id)
    except Exception:  # the list is a courtesy: without it the problem stands all the same
        return ModelProblem(
            "revision", message, f"see the branches and commits at {endpoint()}/{model_id}/commits/main"
        )
    branches, tags = [ref.name for ref in refs.branches], [ref.name for ref in refs.tags]
    listed = [f"{kind} {', '.join(names[:10])}" for kind, names in (("branches", branches), ("tags", tags)) if names]
    near = difflib.get_close_matches(revision, [*branches, *tags], n=1)
    fix = f"write '{near[0]}'" if near else "write a branch, a tag or a commit"
    return ModelProblem("revision", f"{message}; it has {'; '.join(listed)}", fix)


def _repo_cache(model_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model")


def _is_cached(model_id: str, commit: str) -> bool:
    return isinstance(try_to_load_from_cache(model_id, "config.json", revision=commit), str)


def _resolve_in_cache(model_id: str, revision: str | None) -> str:
    ref = _repo_cache(model_id) / "refs" / (revision or "main")
    if ".." not in ref.parts and ref.is_file():
        return ref.read_text().strip()
    snapshots = _repo_cache(model_id) / "snapshots"
    if revision and ABBREVIATED.fullmatch(revision) and snapshots.is_dir():
        names = sorted(path.name for path in snapshots.iterdir() if path.name.startswith(revision))
        commit = _only_one(names, model_id, revision)
        if commit is not None:
            return commit
    raise offline_failure(model_id, revision)


def _names_in(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


def _fetch_pickles(model: PinnedModel, folder: str) -> None:
    """Bring the pickled weights of a model that has no others, if that is allowed; raise what keeps it from loading."""
    if model.allow_pickle and model.local_path is None:
        download(model.id, model.commit, PICKLED)
    if model.allow_pickle and weights_among(_names_in(folder), PICKLED):
        return
    if model.local_path is not None:
        names = _names_in(folder)
    elif is_offline():  # the snapshot may be incomplete: nobody to ask
        raise offline_failure(model.id, model.commit)
    else:
        with hub_failures(model.id, model.commit):
            names = ask(lambda: HfApi(endpoint=endpoint()).list_repo_files(model.id, revision=model.commit))
    refuse_pickles(model.id, model.commit, names, model.allow_pickle)
    if weights_among(names, (*SAFE, *PICKLED)):
        raise StorageError(f"{model.id} is incomplete in {constants.HF_HUB_CACHE}; delete it there and run again")
    fix = "choose a revision that has safetensors, or a directory made by save_pretrained"
    raise ModelProblem("id", f"{model.id} has no weights at {model.commit[:19]}", fix)


def _fetch_code(model: PinnedModel, folder: str) -> None:
    """Bring the code that the model takes from other repositories, at `code_revision` and nothing else."""
    others, commit = code_repositories(Path(folder)), model.code_revision
    if not others and model.local_path is None and commit not in (None, model.commit):
        message = f"the code of {model.id} is in its own repository, at {model.commit}"
        raise ModelProblem("code_revision", message, "write the same commit as revision and as code_revision")
    if others and commit is None:
        raise AccessRefused(
            f"{model.id} takes its code from {', '.join(others)}; read it there, then write the full commit as "
            "code_revision under model"
        )
    for other in others:
        try:
            if not is_offline() and not (_repo_cache(other) / "snapshots" / str(commit)).is_dir():
                _resolve_on_hub(other, commit)
            download(other, str(commit), CODE)
        except ModelProblem as problem:
            raise ModelProblem("code_revision", problem.message, problem.fix) from problem

"""What the Hub's failures mean to the person who wrote `model:`, and which of them are worth a second attempt.

huggingface_hub's own texts are not shown: they may hold request headers and signed URLs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfbatch.errors import AccessRefused, HfbatchError, StorageError
from hfbatch.store_errors import TRANSIENT_STATUS, http_status, redact, storage_failure

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
WITHOUT_NETWORK = "a full commit that is in the cache, or a local directory, needs no network"


class ModelProblem(HfbatchError):
    """`model.id` or `model.revision` is wrong: which of them (`key`), why, and what to write instead."""

    exit_code = 2

    def __init__(self, key: str, message: str, fix: str | None = None) -> None:
        self.key, self.message, self.fix = key, message, fix
        super().__init__(f"model.{key}: {message}" + (f"; {fix}" if fix else ""))

    def __reduce__(self) -> tuple[type[ModelProblem], tuple[str, str, str | None]]:
        return type(self), (self.key, self.message, self.fix)


def endpoint() -> str:
    """The Hub's address, from the environment as it is now (huggingface_hub reads it at import only)."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, now or when huggingface_hub was imported."""
    now = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return now or bool(constants.HF_HUB_OFFLINE)


def hub_host() -> str:
    """The endpoint's host and port, for messages."""
    return urlsplit(endpoint()).netloc.rpartition("@")[2]


def offline_failure(model_id: str, revision: str | None) -> StorageError:
    """The model is not (wholly) in the cache and nobody may ask the Hub."""
    return StorageError(
        f"{model_id} at '{revision or 'main'}' is not complete in the cache {constants.HF_HUB_CACHE} "
        f"and HF_HUB_OFFLINE is set; unset it once to fetch the model; {WITHOUT_NETWORK}"
    )


@contextmanager
def hub_failures(model_id: str, revision: str | None) -> Iterator[None]:
    """Errors of huggingface_hub inside the block leave it as ours; anything that is no such error passes."""
    try:
        yield
    except HfbatchError:
        raise
    except Exception as error:
        meaning = _meaning(error, model_id, revision)
        if meaning is None:
            raise
        raise meaning from error


def is_transient(error: Exception) -> bool:
    """Whether a second attempt may help: busy, broken or silent servers."""
    status = http_status(error)
    return status in TRANSIENT_STATUS if status is not None else _is_network(error)


def _meaning(error: Exception, model_id: str, revision: str | None) -> HfbatchError | None:
    chain = tuple(_causes(error))
    status = http_status(error)
    if _any(chain, GatedRepoError):
        where = f"{redact(endpoint())}/{model_id}"
        return AccessRefused(f"{model_id} is gated: ask for access at {where}, then {LOG_IN}")
    if _any(chain, DisabledRepoError):
        return ModelProblem("id", f"{model_id} was disabled on {hub_host()}", "choose another model")
    # The Hub answers 401 to strangers for what is missing or private; huggingface_hub knows so for https:// only.
    if _any(chain, RepositoryNotFoundError) or (status == 401 and get_token() is None):
        fix = f"check the spelling; if the model is private, {LOG_IN}"
        return ModelProblem("id", f"no model '{model_id}' on {hub_host()}, or it is private", fix)
    if _any(chain, RevisionNotFoundError):
        message = f"{model_id} has no revision '{revision}' on {hub_host()} any more"
        return ModelProblem("revision", message, "write a branch, a tag or a commit that exists")
    if status in (401, 403):
        return AccessRefused(f"{hub_host()} refused the token for {model_id} (HTTP {status}); {LOG_IN} again")
    if _any(chain, OfflineModeIsEnabled) or (is_offline() and _any(chain, LocalEntryNotFoundError)):
        return offline_failure(model_id, revision)
    if status is not None or _is_network(error) or _any(chain, EntryNotFoundError):
        reason = f"answered HTTP {status}" if status is not None else f"is out of reach ({type(chain[-1]).__name__})"
        return StorageError(f"{hub_host()} {reason} for {model_id}; run again later, or check HF_ENDPOINT and the "
                            f"network; {WITHOUT_NETWORK}")  # fmt: skip
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return storage_failure("write", str(constants.HF_HUB_CACHE), error)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _any(chain: tuple[BaseException, ...], kind: type[BaseException]) -> bool:
    return any(isinstance(error, kind) for error in chain)


def _is_network(error: Exception) -> bool:
    """Whether the HTTP client (httpx, or httpx2 from huggingface_hub 2 on) gave up without an answer."""
    return any(type(cause).__module__.startswith(("httpx", "httpcore")) for cause in _causes(error))

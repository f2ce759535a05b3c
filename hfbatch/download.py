"""Files of one commit of a Hub repository -> a folder of the cache, each with the content that was announced.

huggingface_hub compares sizes only. The cache names each file by its hash (sha256 for large files, git's for small
ones), so what has just arrived is hashed once more and fetched again where it differs. A busy Hub is waited for as
long as it asks, up to MAX_WAIT_S; huggingface_hub alone would wait a day.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported, not in __all__

from hfbatch.errors import StorageError
from hfbatch.hub_errors import endpoint, hub_failures, hub_host, is_offline, is_transient
from hfbatch.store_errors import with_retries

T = TypeVar("T")

MAX_WAIT_S = 300  # the Hub counts requests in windows of five minutes


@contextmanager
def one_at_a_time(repo: str, commit: str) -> Iterator[None]:
    """Inside, no other process with the same cache fetches this commit.

    So of the actors that start on a node together one asks the Hub, and the others find its files on disk. The lock
    goes with the process that holds it. A cache that cannot be written to is read without one.
    """
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / repo_folder_name(repo_id=repo, repo_type="model")
    with ExitStack() as stack:
        try:
            locks.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(locks / f"hfbatch-{commit}.lock"))
        except OSError:
            pass
        yield


def download(repo: str, commit: str, patterns: Sequence[str], ignored: Sequence[str] = ()) -> str:
    """The snapshot folder of `repo` at a full commit, with the files that match; no request for what is cached.

    Raises what `hub_failures` makes of the Hub's errors; StorageError where a file comes with other bytes twice.
    """
    for last in (False, True):
        before = _blobs(repo)
        with hub_failures(repo, commit):  # each of its requests is repeated by snapshot_download itself
            _refuse_long_waits()
            folder = snapshot_download(
                repo,
                revision=commit,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
                endpoint=endpoint(),
                local_files_only=is_offline(),
            )
        wrong = [blob for blob in _blobs(repo) - before if not _is_announced(blob)]
        if not wrong:
            return folder
        names = _forget(Path(folder), wrong)
        if last:
            raise StorageError(
                f"{hub_host()} sent other bytes of {', '.join(names)} of {repo} at {commit} than their hashes say, "
                "twice; check HF_ENDPOINT and the proxy between, then run again"
            )
    raise AssertionError("unreachable: the second round returns or raises")


def ask(question: Callable[[], T]) -> T:
    """The Hub's answer to an API call; asked again, after the wait it wants, while it is busy or broken."""

    def once() -> T:
        _refuse_long_waits()
        try:
            return question()
        except Exception as error:
            time.sleep(_wanted_wait(getattr(error, "response", None)))
            raise

    return with_retries(once, is_transient)


def _blobs(repo: str) -> set[Path]:
    """The finished files of a repository in the cache; their names are the hashes the Hub announced."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    return {path for path in folder.iterdir() if path.suffix != ".incomplete"} if folder.is_dir() else set()


def _is_announced(blob: Path) -> bool:
    """Whether a file's content has the hash it is named by; a name that is no hash (a mirror's) says nothing."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return True
    of_git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: of_git if len(blob.name) == 40 else hashlib.sha256())
    return digest.hexdigest() == blob.name


def _forget(folder: Path, blobs: Sequence[Path]) -> list[str]:
    """Remove files from the cache; their names in the snapshot."""
    real = {blob.resolve() for blob in blobs}
    links = [path for path in folder.rglob("*") if path.is_symlink() and path.resolve() in real]
    for path in (*links, *blobs):
        path.unlink(missing_ok=True)
    return sorted(link.relative_to(folder).as_posix() for link in links)


def _refuse_long_waits() -> None:
    """StorageError, from inside any request of huggingface_hub in this process, when the Hub wants MAX_WAIT_S or more.

    huggingface_hub makes a new client after a broken connection; the hook is set again before each call of ours.
    """
    hooks = get_session().event_hooks
    if _check_wait not in hooks["response"]:
        get_session().event_hooks = {**hooks, "response": [*hooks["response"], _check_wait]}


def _check_wait(response: Any) -> None:
    if (wait := _wanted_wait(response)) > MAX_WAIT_S:
        raise StorageError(f"{hub_host()} is busy and asks to wait {wait:,} seconds; run again then")


def _wanted_wait(response: Any) -> int:
    """Seconds that an answer asks to wait before the next request; 0 where it asks for nothing."""
    if getattr(response, "status_code", None) not in (429, 503):
        return 0
    after = response.headers.get("retry-after", "")
    used_up = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", response.headers.get("ratelimit", ""))
    return max(int(after) if after.isdecimal() else 0, int(used_up[1]) if used_up else 0)

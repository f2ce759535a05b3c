"""What goes wrong with stores: how often a call is tried again, and what is told of it without a secret.

There is one policy of retries. Which failures are worth it each kind of store says for itself.
"""

from __future__ import annotations

import errno
import itertools
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from hfbatch.errors import AccessRefused, HfbatchError, StorageError

T = TypeVar("T")

USE_INSTEAD = "use a local disk, or an S3-compatible bucket with conditional writes (If-None-Match)"
RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)  # upper ends of the random waits between attempts
RETRY_UNTIL = 600.0  # seconds after which no further attempt begins, where the attempts themselves are slow
TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # 409: S3's "a conflicting write is under way"


def with_retries(call: Callable[[], T], transient: Callable[[Exception], bool]) -> T:
    """call(), repeated while it fails transiently: at most 6 attempts, exponential backoff with full jitter."""
    started = time.monotonic()
    for attempt in itertools.count():
        try:
            return call()
        except Exception as error:
            last = attempt >= len(RETRY_SECONDS) or time.monotonic() - started > RETRY_UNTIL
            if last or not transient(error):
                raise
        time.sleep(random.uniform(0, RETRY_SECONDS[attempt]))
    raise AssertionError("unreachable: count() does not end")


def redact(url: str) -> str:
    """`url` without what may be secret: user info, query, fragment. A path without "://" stays as it is.

    Where it is not certain that a part is harmless it goes: an AWS secret may hold '/', so everything up to
    the last '@' is dropped when a ':' stands before the first '/'.
    """
    return "::".join(_redact_one(part) for part in url.split("::"))


def _redact_one(url: str) -> str:
    protocol, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    if ":" in host and "@" in rest:
        host, slash, path = re.split(r"[?#]", rest.rpartition("@")[2], maxsplit=1)[0].partition("/")
    return protocol + separator + host.rpartition("@")[2] + slash + path


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status somewhere in an exception's chain: botocore's, gcsfs', azure's, aiohttp's, httpx'."""
    while error is not None:
        unread = type(error).__module__ == "aiohttp.http_exceptions"  # its 400 for an answer that broke off is its own
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for name in ("response", "status", "status_code", "code"):  # one by one: aiohttp's `code` warns
            status = response if name == "response" else getattr(error, name, None)
            status = getattr(status, "status_code", status)
            if isinstance(status, int) and not unread:
                return status
        error = error.__cause__
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether credentials are missing or do not suffice."""
    named = re.search(r"Credential|Token|SSO|AuthenticationError|RefreshError|ProfileNotFound", type(error).__name__)
    forbidden = isinstance(error, PermissionError) or str(error).startswith("Forbidden")  # gcsfs' 403 is an OSError
    return bool(named) or forbidden or http_status(error) in (401, 403)


def storage_failure(act: str, url: str, error: Exception) -> HfbatchError:
    """What to raise when `act` (a verb) on the redacted `url` failed. The error's own text may hold secrets."""
    absent = isinstance(error, FileNotFoundError)
    reason = getattr(error, "strerror", None) or ("no such object" if absent else type(error).__name__)
    status = http_status(error)
    cause = getattr(error.__cause__, "response", None)
    if isinstance(cause, dict):
        reason = cause.get("Error", {}).get("Code", reason)
    if status is not None:
        reason += f", HTTP {status}"
    place = f"cannot {act} {url}: {reason}"
    no_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if no_space or status == 507 or reason.startswith("QuotaExceeded"):  # 507: MinIO's; QuotaExceeded: Ceph's 403
        return StorageError(
            f"{place}: the disk is full; free space, then the same command resumes: what is committed stays"
        )
    if is_refusal(error):
        return AccessRefused(f"{place}; log in, or grant this user the right to read, list, write and delete there")
    if absent:
        return StorageError(f"{place}; check the path: the bucket or folder must exist")
    return StorageError(f"{place}; check the path, the disk and the network, then run again: what is committed stays")

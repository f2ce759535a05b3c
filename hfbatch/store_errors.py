"""What goes wrong with stores, told without a secret: redacted URLs, and our errors for everybody's exceptions."""

from __future__ import annotations

import errno
import re

from hfbatch.errors import AccessRefused, HfbatchError, StorageError


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
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for status in (response, *(getattr(error, name, None) for name in ("status", "status_code", "code"))):
            status = getattr(status, "status_code", status)
            if isinstance(status, int):
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
    reason = getattr(error, "strerror", None) or type(error).__name__
    status = http_status(error)
    cause = getattr(error.__cause__, "response", None)
    if isinstance(cause, dict):
        reason = cause.get("Error", {}).get("Code", reason)
    if status is not None:
        reason += f", HTTP {status}"
    place = f"cannot {act} {url}: {reason}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{place}: the disk is full; free space and run again, what is committed stays")
    if is_refusal(error):
        return AccessRefused(f"{place}; log in, or grant this user the right to read, list, write and delete there")
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{place}; check the path: the bucket or folder must exist")
    return StorageError(f"{place}; check the path, the disk and the network, then run again: what is committed stays")

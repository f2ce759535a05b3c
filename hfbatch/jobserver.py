"""An address in, Ray's client for the job server there out; or one error that says why it is not used.

Whoever reaches a job server that asks for no token runs code on its cluster, so who may ask is looked at first.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from hfbatch.access import redact
from hfbatch.errors import AccessRefused, Problem, SpecError, SystemicError

_ANSWER_S = 20.0
_CHATTER = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_TOKEN = "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH"


def connect(address: str, *, insecure: bool = True) -> Any:
    """Ray's JobSubmissionClient for http(s)://host:port. Headers come from RAY_JOB_HEADERS, as for `ray job`.

    SpecError: not such an address. AccessRefused: its credentials are missing or wrong; or, without `insecure`, it is
    open to everybody and not on loopback. SystemicError: out of reach, or of a Ray that this hfbatch cannot use.
    """
    checked, headers = _checked(address), _headers()
    if _ask_as_stranger(checked) == 200 and not insecure and not _is_loopback(checked):
        raise AccessRefused(
            f"{address}: the cluster asks nobody for a token, so whoever reaches this port runs code there, with the "
            "credentials of its nodes; start it with RAY_AUTH_MODE=token, reach it through a tunnel to this machine "
            "(ssh -L, kubectl port-forward), or, where its network is closed, add --insecure-cluster"
        )
    with talking(checked), _this_address(checked):
        from ray.job_submission import JobSubmissionClient

        for name in _CHATTER:
            logging.getLogger(name).setLevel(logging.WARNING)
        client = JobSubmissionClient(checked, headers=headers, verify=os.environ.get("REQUESTS_CA_BUNDLE") or True)
    _check_ray(str(client._server_ray_version))  # it has just asked; there is no public way to the answer
    return client


@contextmanager
def talking(address: str, job_id: str = "") -> Iterator[None]:
    """What Ray's client raises, as what it means."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise AccessRefused(f"{address}: the cluster refused the token, or there was none; {_TOKEN}") from error
    except (RuntimeError, OSError, ValueError) as error:
        if job_id and "status code 404" in str(error):
            fix = "its dashboard lists them; a restart forgets them (`hfbatch status OUTPUT` still knows its runs)"
            raise SpecError([Problem("ID", "", f"the cluster at {address} has no job {job_id!r}", fix)]) from error
        raise SystemicError(
            f"{address}: {redact(str(error).strip())}; is it the address of a Ray dashboard?"
        ) from error


def _checked(address: str) -> str:
    """The address without a slash at its end. Any scheme but http would name a module for Ray's client to import."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        message = f"{redact(address)!r} is not the address of a job server"
        raise SpecError([Problem("--address", "", message, "write --address http://HEAD:8265, the dashboard's")])
    if "@" in parts.netloc:
        raise AccessRefused(f"--address {redact(address)}: an address holds no credentials; {_TOKEN}")
    return address.rstrip("/")


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _headers() -> dict[str, str]:
    """RAY_JOB_HEADERS: a JSON object, such as {"Authorization": "Bearer ..."} for a proxy before the cluster."""
    with suppress(ValueError):
        headers = json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}")
        if isinstance(headers, dict) and all(isinstance(each, str) for each in headers.values()):
            return headers
    raise SpecError([Problem("RAY_JOB_HEADERS", "", "is not a JSON object of texts", 'write {"NAME": "VALUE"}')])


def _ask_as_stranger(address: str) -> int:
    """The HTTP status for somebody without credentials who asks for the list of jobs: 200 where anybody may."""
    parts = urlsplit(address)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(parts.netloc, timeout=_ANSWER_S, context=_trust())
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=_ANSWER_S)
        try:
            connection.request("GET", f"{parts.path}/api/jobs/")
            return connection.getresponse().status
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        hint = "set REQUESTS_CA_BUNDLE to the file of the authority that signed its certificate"
        raise SystemicError(f"{address}: {error.verify_message}; {hint}") from error
    except (OSError, http.client.HTTPException) as error:
        hint = "is the cluster up, and its dashboard on a port that this machine reaches?"
        raise SystemicError(f"{address}: cannot be reached: {error}; {hint}") from error


def _trust() -> ssl.SSLContext:
    """The authorities that Ray's client trusts too."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle and Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle or None)


@contextmanager
def _this_address(address: str) -> Iterator[None]:
    """Ray's client takes this variable, and else RAY_ADDRESS, over the address that it is given."""
    name = "RAY_API_SERVER_ADDRESS"
    before, os.environ[name] = os.environ.get(name), address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _check_ray(there: str) -> None:
    needs = [Requirement(each) for each in metadata.requires("hfbatch") or ()]
    usable = next(need.specifier for need in needs if need.name == "ray" and need.specifier)
    if not usable.contains(there, prereleases=True):
        version, here = metadata.version("hfbatch"), metadata.version("ray")
        raise SystemicError(
            f"the cluster has Ray {there}, and hfbatch {version} needs ray{usable} (here is {here}); start the cluster "
            f"from an image with ray[default]=={here} and hfbatch=={version}"
        )

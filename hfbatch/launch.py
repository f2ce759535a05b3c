"""Inside a Kubernetes Job's pod: one RayJob made, or found again, and followed; the exit code of its hfbatch comes out.

KubeRay tells of a RayJob only that it failed. Ray's message in its status names the exit code of `hfbatch run`, and
with that the Job's podFailurePolicy can tell what a rerun helps. A pod that takes the place of a moved one finds the
RayJob by its label and goes on following. Nothing but the standard library: this process only waits.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from hfbatch.errors import AccessRefused, HfbatchError, Incomplete, Problem, SpecError, StorageError, SystemicError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABEL = "hfbatch-job"
_PATIENCE = 30  # failed looks in a row
_TIMEOUT_S = 30
_STOPPED = 143  # Ray stops a job by SIGTERM
_CODE = re.compile(r"Job entrypoint command failed with exit code (-?\d+)")


@dataclass(frozen=True)
class RayJobs:
    """The RayJobs of one namespace, over Kubernetes' own API."""

    url: str  # of the API server
    account: Path = ACCOUNT  # a service account's folder: token, ca.crt, namespace

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> RayJobs:
        """Those of the pod this runs in. SystemicError elsewhere."""
        try:
            host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
        except KeyError:
            raise SystemicError("this is no pod of Kubernetes; `hfbatch run` runs a job anywhere") from None
        return cls(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")

    def labelled(self, job: str) -> list[dict[str, Any]]:
        """Those that the Job `job` made."""
        return list(self._call("GET", f"?labelSelector={quote(f'{LABEL}={job}')}")["items"])

    def get(self, name: str) -> dict[str, Any]:
        """One of them."""
        return self._call("GET", f"/{name}")

    def create(self, manifest: str) -> dict[str, Any]:
        """A new one from YAML."""
        return self._call("POST", "", manifest)

    def _call(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        """The answer. AccessRefused, SpecError: final; StorageError: another try may help."""
        namespace = (self.account / "namespace").read_text().strip()
        token = (self.account / "token").read_text().strip()  # read anew each time: Kubernetes exchanges it
        request = Request(
            f"{self.url}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}",
            None if body is None else body.encode(),
            {"Authorization": f"Bearer {token}", "Accept": "application/json", "Content-Type": "application/yaml"},
            method=method,
        )
        try:
            with self._opener().open(request, timeout=_TIMEOUT_S) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except HTTPError as error:
            raise _refusal(error, namespace) from None
        except (URLError, OSError, ValueError) as error:
            raise StorageError(f"Kubernetes does not answer ({error}); the next try goes on from here") from None

    def _opener(self) -> OpenerDirector:
        """Trusts the cluster's certificate alone, and passes by the proxy that an image may name for the web."""
        if not self.url.startswith("https://"):
            return build_opener(ProxyHandler({}))
        context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        return build_opener(ProxyHandler({}), HTTPSHandler(context=context))


def launch(manifest: str, job: str, uid: str, rayjobs: RayJobs, say: Callable[[str], None], every_s: float = 10) -> int:
    """Follow the RayJob of the Job `job`, made from `manifest` where there is none; hfbatch's exit code."""
    before = rayjobs.labelled(job)
    found = next((each for each in before if exit_code_of(each.get("status") or {}) in (None, 0)), None)
    how = "made" if found is None else "followed again"
    found = found or rayjobs.create(manifest.replace("$(JOB_NAME)", job).replace("$(JOB_UID)", uid))
    name = found["metadata"]["name"]
    say(f"RayJob {name}: {how}; kubectl describe rayjob {name}")
    return _follow(name, rayjobs, say, every_s)


def _follow(name: str, rayjobs: RayJobs, say: Callable[[str], None], every_s: float) -> int:
    failed, told = 0, ""
    while True:
        try:
            status = rayjobs.get(name).get("status") or {}
            failed = 0
        except StorageError:
            failed += 1
            if failed >= _PATIENCE:
                raise
            status = {}
        state = status.get("jobDeploymentStatus", told)
        if state != told:
            say(f"RayJob {name}: {state}")
            told = state
        code = exit_code_of(status)
        if code is not None:
            say(f"RayJob {name}: exit code {code}\n{status.get('message', '')}".rstrip())
            return code
        time.sleep(every_s)


def exit_code_of(status: Mapping[str, Any]) -> int | None:
    """The exit code of hfbatch in a RayJob's status: None while it runs, 4 where it was lost on the way."""
    if status.get("jobDeploymentStatus") not in ("Complete", "Failed"):
        return None
    if status.get("jobStatus") in ("SUCCEEDED", "STOPPED"):
        return 0 if status["jobStatus"] == "SUCCEEDED" else _STOPPED
    told = _CODE.match(status.get("message", ""))
    code = int(told[1]) if told else Incomplete.exit_code
    return code if code > 0 else 128 - code  # -15: ended by SIGTERM


def _refusal(error: HTTPError, namespace: str) -> HfbatchError:
    """What the API server's refusal means here."""
    try:
        said = str(json.load(error).get("message", ""))[:1000]
    except (ValueError, OSError):
        said = ""
    what = f"Kubernetes says {error.code} {error.reason}{f': {said}' if said else ''}"
    if error.code in (401, 403):
        return AccessRefused(f"{what}; apply the Role and RoleBinding that `hfbatch schedule` wrote to {namespace}")
    if error.code >= 500 or error.code in (408, 409, 429):
        return StorageError(f"{what}; the next try goes on from here")
    fix = "install KubeRay 1.6 or later" if error.code == 404 else "mend the manifest, and apply it again"
    return SpecError([Problem("rayjobs.ray.io", "", what, fix)])

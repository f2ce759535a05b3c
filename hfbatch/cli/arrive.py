"""The first thing of a submitted job on its cluster: becomes `hfbatch`, if the same hfbatch and its secrets are there.

It travels with the job and is not imported from what is installed there, so that it can say what is missing. Only the
standard library is used.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import metadata
from typing import NoReturn

BROKEN, REFUSED = 70, 77  # SystemicError's and AccessRefused's exit codes


def main() -> NoReturn:
    """`arrive.py --hfbatch VERSION [--secret NAME ...] -- ARGUMENTS`: ends as `hfbatch ARGUMENTS` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hfbatch", required=True, help="the version that packed the job")
    parser.add_argument("--secret", action="append", default=[], help="an environment variable that must be set here")
    parser.add_argument("arguments", nargs="+")
    asked = parser.parse_args()
    _check_version(asked.hfbatch)
    _check_secrets(asked.secret)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ core writes to stderr past Python's logging
    # The same process, so that the signal that cancels the job reaches the run.
    os.execv(sys.executable, [sys.executable, "-m", "hfbatch.cli", *asked.arguments])


def _check_version(packed_by: str) -> None:
    found = _version("hfbatch")
    if found == packed_by:
        return
    here = f"Python {platform.python_version()} ({sys.executable}), Ray {_version('ray')}"
    _end(
        BROKEN,
        f"hfbatch {packed_by} packed this job, and the cluster has {f'hfbatch {found}' if found else 'no hfbatch'}: "
        f"{here}\n  fix: pip install 'hfbatch=={packed_by}' on every node (in the image), or submit with the cluster's "
        "version; `python` there must be the one that Ray runs in",
    )


def _check_secrets(names: list[str]) -> None:
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        _end(
            REFUSED,
            f"the cluster's environment has no {', '.join(missing)}\n  fix: set it on every node (Kubernetes: "
            "secretKeyRef in the pods' env); hfbatch sends no secret along with a job",
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _end(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

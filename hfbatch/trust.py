"""May code that came with a model run? Only with a key, a flag, and full commits that somebody can have read.

Weights are safetensors, which are numbers only, and transformers' own classes read them; that needs no trust. Code of
a model's repository runs only with `trust_remote_code: true`, the flag (or argument) of this run, and full commits:
`revision` for the model, `code_revision` for code that transformers takes from another repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfbatch.errors import AccessRefused, Problem, SpecError
from hfbatch.explain import given
from hfbatch.spec import JobSpec

COMMIT = re.compile(r"[0-9a-f]{40}")
_PINS = {
    "revision": "write the commit's 40 characters",
    "code_revision": "write the 40 characters of the commit that holds the code: that of revision, or one of the "
    "repository that auto_map in config.json names",
}


class TrustRefused(AccessRefused, SpecError):
    """Code was asked for without all that it takes; carries everything that is missing, with its place."""


def check_trust(spec: JobSpec, allowed: bool) -> None:
    """TrustRefused unless `spec` runs no code of the model, or names its commits and this run has consent.

    `allowed` is the consent of whoever starts the run; a job file cannot give it to itself. Asks nobody, ever.
    """
    missing = [problem for number in range(len(spec.each)) for problem in _missing(spec, number, allowed)]
    if missing:
        raise TrustRefused(missing)


def _missing(spec: JobSpec, number: int, allowed: bool) -> list[Problem]:
    """What keeps the code of one step's model from running, where it asks for that."""
    model, missing = spec.each[number].model, list[Problem]()
    if not model.trust_remote_code:
        return missing
    # A local directory is pinned by the hash of its content, and its code is part of that.
    if not Path(model.id).expanduser().is_dir():
        for key, fix in _PINS.items():
            written = getattr(model, key)
            if not COMMIT.fullmatch(written or ""):
                message = f"trust_remote_code needs a full commit as {key}, got {given(written)}"
                missing.append(spec.origin.problem(spec.loc(number, "model", key), message, fix))
    if not allowed:
        message = (
            "runs code from the model's repository on every worker; read that code, then add --trust-remote-code "
            "to the command (trust_remote_code=True in Python)"
        )
        missing.append(spec.origin.problem(spec.loc(number, "model", "trust_remote_code"), message))
    return missing


@contextmanager
def without_code(model_id: str, allowed: bool) -> Iterator[None]:
    """What transformers says of a model that cannot be loaded without its own code, as AccessRefused."""
    try:
        yield
    except ValueError as error:
        if allowed or "trust_remote_code" not in str(error):
            raise
        raise AccessRefused(
            f"{model_id} cannot be loaded without code of its own; read that code, then write trust_remote_code: true "
            "with full commits as revision and code_revision under model, and add --trust-remote-code to the command; "
            "or take a model that transformers knows"
        ) from error


def code_repositories(folder: Path) -> list[str]:
    """The other repositories that the model in `folder` takes code from: `owner/name--module.Class` in an auto_map."""
    found: set[str] = set()
    for file in folder.glob("*.json"):
        try:
            content = json.loads(file.read_bytes()) if file.stat().st_size < 1 << 20 else None  # a vocabulary
        except ValueError:
            continue  # whoever needs the file will say so
        found |= {name.partition("--")[0] for name in _class_names(content) if "--" in name}
    return sorted(found)


def _class_names(node: Any) -> Iterator[str]:
    """Every text below an `auto_map`."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from _texts(value) if key == "auto_map" else _class_names(value)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _texts(value)

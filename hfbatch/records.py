"""The two records an output rests on, and how they are written down: Receipt, of a shard; Agreed, of the plan.

Both are JSON that carries its own checksum. One that does not read back as it was written is Damage, never a guess.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hfbatch.errors import Damage
from hfbatch.shards import Piece, Shard

REPAIR = "`hfbatch repair` makes it again"
KNOWN = "_hfbatch/known"  # folder of what objects know (known.py)
_ID = r"(\d{6,}-[0-9a-f]{16})"
_FOLDER = rf"(?:(?:data|_hfbatch/staged)/(?:[^/=]+=[^/]*/)*|{KNOWN}/[0-9a-f]{{8}}/)"
_NAME = re.compile(rf"^(?:{_FOLDER}{_ID}-[0-9a-f]{{8}}\.parquet|_hfbatch/commits/[0-9a-f]{{8}}/{_ID}\.json)$")


@dataclass(frozen=True)
class Receipt:
    """A commit record: the object that holds a shard's rows, and what making it took."""

    shard: str
    generation: str
    data: str | None  # name of the Parquet object; None for a shard without rows
    rows: int
    nbytes: int
    sha256: str
    errors: Mapping[str, int] = field(default_factory=dict)  # code -> rows
    stats: Mapping[str, Any] = field(default_factory=dict)  # see columns.Ticket
    run_id: str = ""
    carried: int = 0  # rows taken over from an earlier object rather than inferred

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return sum(self.errors.values())

    def to_json(self) -> bytes:
        """As it is stored."""
        return sealed(asdict(self))

    @classmethod
    def from_json(cls, text: bytes | str, place: str = "a commit record") -> Receipt:
        """The inverse of `to_json`; Damage that names `place` when it is not what was written."""
        content = unsealed(text, place)
        try:
            return cls(**content)
        except TypeError as error:
            raise Damage(f"{place}: is no commit record ({error})") from error


@dataclass(frozen=True)
class Agreed:
    """The cut that all runs on an output keep to until a higher number replaces it."""

    number: int
    generation: str
    shards: tuple[Shard, ...]

    def to_json(self) -> bytes:
        """As it is stored."""
        shards = [
            [s.id, [[p.path, p.fingerprint, p.start, p.stop] for p in s.pieces], s.base, s.retry, s.staged]
            + ([s.folder] if s.folder else [])
            for s in self.shards
        ]
        return sealed({"generation": self.generation, "shards": shards}, indent=None)

    @classmethod
    def from_json(cls, number: int, text: bytes, place: str = "a plan") -> Agreed:
        """The inverse of `to_json`; Damage that names `place` when it is not what was written."""
        content = unsealed(text, place)
        try:
            shards = tuple(Shard(id, tuple(Piece(*p) for p in pieces), *how) for id, pieces, *how in content["shards"])
            return cls(number, content["generation"], shards)
        except (TypeError, ValueError, KeyError) as error:
            raise Damage(f"{place}: is no plan ({error})") from error


def pinned(
    written: Mapping[str, Any], commits: Sequence[str], rules: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A job as it was written, with the commit of each model; a local directory is named without one.

    `commits`: one a step; `rules`: those that `guardrails:` names, by rule.
    """
    written = copy.deepcopy(dict(written))
    for name, commit in (rules or {}).items():
        section, _, rule = name.partition(".")
        asked = written["guardrails"][section][rule]["model"]
        asked |= {} if commit.startswith("sha256:") else {"revision": commit}

    def one(tree: Mapping[str, Any], commit: str) -> dict[str, Any]:
        known = commit and not commit.startswith("sha256:")
        return {**tree, "model": {**tree["model"], "revision": commit}} if known else dict(tree)

    if not written.get("steps"):
        return one(written, commits[0])
    return {**written, "steps": [one(step, commit) for step, commit in zip(written["steps"], commits, strict=True)]}


def steps_in(identity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each step of a job computes, from the job's identity (job.py)."""
    return identity.get("steps") or [identity]


def lineage_in(identity: Mapping[str, Any]) -> set[str]:
    """The columns that stand behind those of the steps."""
    prefixes = [step["prefix"] if "name" in step else "" for step in steps_in(identity)]
    named = {prefix + name for prefix in prefixes for name in ("model_id", "model_revision", "parameters")}
    return named | {"error", "run_id"}


def data_name(shard: str, generation: str, folder: str = "") -> str:
    """Where a shard's rows stand; `folder` as in Shard."""
    return f"data/{f'{folder}/' if folder else ''}{shard}-{generation[:8]}.parquet"


def known_name(step: str, shard: str, generation: str) -> str:
    """Where it stands what a shard's object knows for the step of that generation."""
    return f"{KNOWN}/{step[:8]}/{shard}-{generation[:8]}.parquet"


def folder_in(data: str) -> str:
    """The folder in the name of an object below data/."""
    return data.removeprefix("data/").rpartition("/")[0]


def staged_name(data: str) -> str:
    """Where the object named `data` waits until the run that made it publishes."""
    return data.replace("data/", "_hfbatch/staged/", 1)


def published_name(staged: str) -> str:
    """The inverse of `staged_name`."""
    return staged.replace("_hfbatch/staged/", "data/", 1)


def shard_of(name: str) -> str | None:
    """The id of the shard whose object, commit record or knowledge this is; None for a name that is none of these."""
    match = _NAME.match(name)
    return (match[1] or match[2]) if match else None


def dump(content: Any, indent: int | None = 1) -> bytes:
    """JSON as it is stored."""
    return json.dumps(content, indent=indent, ensure_ascii=False, default=str).encode()


def load(text: bytes | str, place: str) -> dict[str, Any]:
    """A stored JSON object. Damage when it is none."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise Damage(f"{place}: is not readable as JSON ({error}); {REPAIR}") from error
    if not isinstance(content, dict):
        raise Damage(f"{place}: is {type(content).__name__}, not an object; {REPAIR}")
    return content


def sealed(content: dict[str, Any], indent: int | None = 1) -> bytes:
    """`content` with a checksum over itself."""
    return dump({**content, "checksum": _checksum(content)}, indent)


def unsealed(text: bytes | str, place: str) -> dict[str, Any]:
    """The content that was sealed. Damage when it is another."""
    content = load(text, place)
    checksum = content.pop("checksum", None)
    if checksum != _checksum(content):
        raise Damage(f"{place}: was changed after it was written (its checksum does not fit); {REPAIR}")
    return content


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

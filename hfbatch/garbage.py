"""What an output keeps and nobody needs, and its removal: safe beside live runs, whoever does it and how often.

Nothing goes that the ruling plan names or builds on, that was published last, or whose number is above the ruling
plan's: what is left of shards, no plan will ever name again (shards.py says why). runs/ stays: it is the history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hfbatch.lease import NAME as LEASE
from hfbatch.lease import is_alive, read_holder
from hfbatch.ledger import Ledger
from hfbatch.records import KNOWN, Agreed, load, published_name, shard_of
from hfbatch.shards import number_of
from hfbatch.status import known_output
from hfbatch.store import TMP

DAY_S = 86400.0


@dataclass(frozen=True)
class Garbage:
    """An object that nobody needs."""

    name: str
    nbytes: int
    why: str


def find_garbage(output: str) -> list[Garbage]:
    """All of it but the half-written files of a local disk, which `collect` alone finds. Removes nothing.

    SpecError when no run ever wrote there, Damage when what tells garbage from the rest cannot be read.
    """
    ledger, ruling = known_output(output)
    found = {**dict(_dead(ledger, ruling)), **dict(_leftovers(ledger))}
    return [Garbage(name, ledger.store.size(name) or 0, why) for name, why in sorted(found.items())]


def collect(output: str) -> list[Garbage]:
    """Remove all of it, and half-written files that nobody has touched for a day. Returns what went."""
    ledger, _ = known_output(output)
    found = find_garbage(output)
    half_written = {name: ledger.store.size(name) or 0 for name in ledger.store.list(TMP)}
    swept = ledger.store.sweep(DAY_S)
    # Records before objects: no record may lack its object.
    order = sorted(found, key=lambda each: not each.name.startswith("_hfbatch/commits/"))
    ledger.store.delete([each.name for each in order])
    return found + [Garbage(name, half_written.get(name, 0), "half-written, a day ago") for name in swept]


def _dead(ledger: Ledger, ruling: Agreed) -> Iterator[tuple[str, str]]:
    """Objects and records of shards that no plan will name again, and what is in data/ and still staged too."""
    current = ledger.current() or {}
    published = current.get("plan") == ruling.number
    needed = {shard.id for shard in ruling.shards} | _manifest(ledger, current)
    if not published:
        needed |= {shard.base for shard in ruling.shards if shard.base is not None}
    data = set(ledger.store.list("data"))
    for folder in ("data", "_hfbatch/staged", "_hfbatch/commits", KNOWN):
        for name in ledger.store.list(folder):
            shard = shard_of(name)
            if shard is None or number_of(shard) > ruling.number:
                continue
            if shard not in needed:
                yield name, "superseded"
            elif published and published_name(name) in data - {name}:
                yield name, "published since"


def _manifest(ledger: Ledger, current: dict[str, Any]) -> set[str]:
    """Ids of the shards on which readers of data/ count."""
    if not current:
        return set()
    name = str(current["manifest"])
    return {entry["shard"] for entry in load(ledger.store.get(name) or b"", ledger.store.url(name))["objects"]}


def _leftovers(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Plans that were replaced long ago, and what runs left that were killed."""
    yield from ((name, "an old plan") for name in ledger.old_plans())
    probes = ledger.store.list("_hfbatch/probe")  # before the lease: who probes holds one
    holder = read_holder(ledger.store)
    if holder is not None and is_alive(holder):
        return
    yield from ((name, "a probe of a run that was killed") for name in probes)
    if holder is not None:
        yield LEASE, "a lease of a run that was killed"

"""What is committed, and what is agreed: the state of an output folder, kept in small objects of its store.

    _SUCCESS                                    removed when a run starts work, written last
    data/<shard>-<gen8>.parquet                 only whole, committed files
    _hfbatch/FORMAT.json, CURRENT
    _hfbatch/gens/<gen8>.json                   what a generation is: all that affects a value
    _hfbatch/plans/<number>.json                the agreed cut into shards; put if absent, the highest number rules
    _hfbatch/commits/<gen8>/<shard>.json        THE commit point, put if absent
    _hfbatch/runs/<run_id>/manifest.json, report.json

Every decision that two runs could take differently is one put-if-absent, so no lock and no clock is needed: whoever
comes second reads what the first decided.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from hfbatch.errors import Conflict
from hfbatch.shards import Piece, Shard
from hfbatch.store import Store

FORMAT = 1
_DATA_NAME = re.compile(r"^data/[0-9a-f]{20}-[0-9a-f]{8}\.parquet$")
_KEPT_PLANS = 3


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

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return sum(self.errors.values())

    def to_json(self) -> bytes:
        """As it is stored."""
        return _dump(asdict(self))

    @classmethod
    def from_json(cls, text: bytes | str) -> Receipt:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Agreed:
    """The cut that all runs on an output keep to until a higher number replaces it."""

    number: int
    generation: str
    shards: tuple[Shard, ...]

    def to_json(self) -> bytes:
        """As it is stored."""
        shards = [[s.id, [[p.path, p.fingerprint, p.start, p.stop] for p in s.pieces]] for s in self.shards]
        return _dump({"generation": self.generation, "shards": shards}, indent=None)

    @classmethod
    def from_json(cls, number: int, text: bytes) -> Agreed:
        """The inverse of `to_json`."""
        content = json.loads(text)
        shards = (Shard(id, tuple(Piece(*piece) for piece in pieces)) for id, pieces in content["shards"])
        return cls(number, content["generation"], tuple(shards))


class Ledger:
    """Reads and writes the state of one output."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # reading

    def agreed(self) -> Agreed | None:
        """The plan with the highest number; None for a new output."""
        for _ in range(_KEPT_PLANS):
            names = self.store.list("_hfbatch/plans")
            if not names:
                return None
            text = self.store.get(names[-1])
            if text is not None:
                return Agreed.from_json(_number(names[-1]), text)
        raise Conflict(f"{self.store.url('_hfbatch/plans')}: plans vanish while they are read; is another run at work?")

    def identity(self, generation: str) -> dict[str, Any]:
        """What the generation is made of: all that affects a value."""
        text = self.store.get(f"_hfbatch/gens/{generation[:8]}.json")
        return json.loads(text)["identity"] if text else {}

    def committed(self, generation: str) -> set[str]:
        """Ids of the shards of `generation` that have a commit record whose object, if it has one, is there."""
        records = {_stem(name) for name in self.store.list(_commits(generation))}
        objects = {_stem(name).split("-")[0] for name in self.store.list("data") if name.endswith(_suffix(generation))}
        whole = records & objects
        empty = (receipt for receipt in self.receipts(generation, sorted(records - objects)) if receipt.data is None)
        return whole | {receipt.shard for receipt in empty}

    def receipts(self, generation: str, shards: Iterable[str]) -> list[Receipt]:
        """The commit records of these shards; those that have none are left out."""
        names = [f"{_commits(generation)}/{shard}.json" for shard in shards]
        with ThreadPoolExecutor(max_workers=16) as pool:
            return [Receipt.from_json(text) for text in pool.map(self.store.get, names) if text is not None]

    def foreign(self) -> list[str]:
        """Objects under data/ that hfbatch did not write; a reader of data/*.parquet would mix them in."""
        return [name for name in self.store.list("data") if not _DATA_NAME.match(name)]

    def success(self) -> dict[str, Any] | None:
        """The content of _SUCCESS; None while the output is not complete."""
        text = self.store.get("_SUCCESS")
        return json.loads(text) if text else None

    def runs(self) -> list[str]:
        """Ids of all runs, the oldest first."""
        return sorted({name.split("/")[2] for name in self.store.list("_hfbatch/runs")})

    def run_file(self, run_id: str, name: str) -> dict[str, Any] | None:
        """One JSON file of a run's folder."""
        text = self.store.get(f"_hfbatch/runs/{run_id}/{name}")
        return json.loads(text) if text else None

    # writing, in the order of a run

    def begin(self, run_id: str, generation: str, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write down which run starts and what its generation is."""
        self.store.put_if_absent("_hfbatch/FORMAT.json", _dump({"format": FORMAT}))
        found = json.loads(self.store.get("_hfbatch/FORMAT.json") or b"{}").get("format")
        if found != FORMAT:
            raise Conflict(f"{self.store.url('')}: written in format {found}, this hfbatch writes {FORMAT}; upgrade it")
        content = _dump({"generation": generation, "identity": identity})
        self.store.put_if_absent(f"_hfbatch/gens/{generation[:8]}.json", content)
        self.store.put(f"_hfbatch/runs/{run_id}/started.json", _dump(about))

    def agree(self, generation: str, shards: Sequence[Shard], seen: Agreed | None) -> Agreed:
        """Make this cut the ruling one, if `seen` still is. Conflict when another run was faster."""
        if seen is not None and (seen.generation, seen.shards) == (generation, tuple(shards)):
            return seen
        plan = Agreed((seen.number if seen else 0) + 1, generation, tuple(shards))
        self.store.put_if_absent(_plan_name(plan.number), plan.to_json())
        ruling = self.agreed()
        if ruling != plan:
            raise Conflict(f"{self.store.url('')}: another run has just begun on this output; run again to join it")
        return plan

    def reopen(self) -> None:
        """The output is no longer complete: take _SUCCESS away before the first new row."""
        self.store.delete(["_SUCCESS"])

    def commit(self, receipt: Receipt) -> Receipt:
        """Make the shard committed; the receipt that stands, which is another's if that came first.

        `receipt` speaks of the object that stands now. An older record that speaks of another one outlived its
        object (a clean-up that was cut short) and is replaced.
        """
        name = f"{_commits(receipt.generation)}/{receipt.shard}.json"
        if not self.store.put_if_absent(name, receipt.to_json()):
            standing = Receipt.from_json(self.store.get(name) or receipt.to_json())
            if standing.sha256 == receipt.sha256:
                return standing
            self.store.put(name, receipt.to_json())
        return receipt

    def publish(self, run_id: str, plan: Agreed, receipts: Sequence[Receipt], report: Mapping[str, Any]) -> None:
        """Manifest, away with what is superseded, CURRENT, _SUCCESS: after it data/*.parquet is the output."""
        if self.agreed() != plan:
            raise Conflict(f"{self.store.url('')}: another run has taken over this output; its plan rules now")
        manifest = f"_hfbatch/runs/{run_id}/manifest.json"
        listed = [{"data": r.data, "shard": r.shard, "rows": r.rows, "sha256": r.sha256} for r in receipts]
        pointer = {"run_id": run_id, "generation": plan.generation, "manifest": manifest}
        rows = sum(receipt.rows for receipt in receipts)
        self.store.put(manifest, _dump({**pointer, "plan": plan.number, "rows": rows, "objects": listed}))
        self.store.put(f"_hfbatch/runs/{run_id}/report.json", _dump(report))
        self._clear({receipt.data for receipt in receipts if receipt.data}, plan)
        self.store.put("_hfbatch/CURRENT", _dump(pointer))
        self.store.put("_SUCCESS", _dump(pointer))

    def write_report(self, run_id: str, report: Mapping[str, Any]) -> None:
        """The report of a run that does not publish."""
        self.store.put(f"_hfbatch/runs/{run_id}/report.json", _dump(report))

    def _clear(self, current: set[str], plan: Agreed) -> None:
        """Remove what no longer belongs: commit records first, so that no record ever lacks its object."""
        stale = [name for name in self.store.list("data") if _DATA_NAME.match(name) and name not in current]
        known = {f"{_commits(plan.generation)}/{shard.id}.json" for shard in plan.shards}
        records = [name for name in self.store.list("_hfbatch/commits") if name not in known]
        self.store.delete(records)
        self.store.delete(stale)
        self.store.delete(self.store.list("_hfbatch/plans")[:-_KEPT_PLANS])


def data_name(shard: str, generation: str) -> str:
    """Where a shard's rows stand."""
    return f"data/{shard}{_suffix(generation)}"


def _suffix(generation: str) -> str:
    return f"-{generation[:8]}.parquet"


def _commits(generation: str) -> str:
    return f"_hfbatch/commits/{generation[:8]}"


def _plan_name(number: int) -> str:
    return f"_hfbatch/plans/{number:09d}.json"


def _number(name: str) -> int:
    return int(_stem(name))


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json").removesuffix(".parquet")


def _dump(content: Any, indent: int | None = 1) -> bytes:
    return json.dumps(content, indent=indent, ensure_ascii=False, default=str).encode()

"""What is committed, and what is agreed: the state of an output folder, kept in small objects of its store.

    _SUCCESS                                    removed when a run starts work, written last
    data/<shard>-<gen8>.parquet                 only whole, committed files; in folders day=... with partition_by
    _hfbatch/FORMAT.json, CURRENT               CURRENT: the manifest that was published last
    _hfbatch/lease.json                         who is at work (lease.py); saves work, guards nothing
    _hfbatch/gens/<gen8>.json                   what a generation is: all that affects a value
    _hfbatch/plans/<number>.json                the agreed cut into shards; put if absent, the highest number rules
    _hfbatch/audits/<number>.json               that plan has passed its gates: whoever comes next finishes it
    _hfbatch/commits/<gen8>/<shard>.json        THE commit point, put if absent
    _hfbatch/staged/<shard>-<gen8>.parquet      as data/, until the run publishes: they would double rows there
    _hfbatch/known/<step8>/<shard>-<gen8>.parquet   hashes of the rows of an object (known.py); nothing rests on them
    _hfbatch/runs/<run_id>/                     started.json, manifest.json, report.json, result.json

Every decision that two runs could take differently is one put-if-absent, so no lock and no clock is needed: whoever
comes second reads what the first decided. What is deleted is dead for good (shards.py says why), so a clean-up that
comes late, or twice, or from a run that was overtaken, takes nothing that anybody needs. And whoever puts an object
looks afterwards whether its plan still rules, and takes away what the ruling plan does not know.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from hfbatch.errors import Conflict, Damage
from hfbatch.faults import point
from hfbatch.records import KNOWN, Agreed, Receipt, dump, load, published_name, shard_of, staged_name
from hfbatch.shards import Shard, number_of
from hfbatch.store import Store

FORMAT = 1
_KEPT_PLANS = 3
_PLAN = re.compile(r"_hfbatch/plans/\d{9}\.json")


class Ledger:
    """Reads and writes the state of one output."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # reading

    def agreed(self) -> Agreed | None:
        """The plan with the highest number; None for a new output."""
        for _ in range(_KEPT_PLANS):
            names = self._plans()
            if not names:
                return None
            text = self.store.get(names[-1])
            if text is not None:
                return Agreed.from_json(_number(names[-1]), text, self.store.url(names[-1]))
        raise Conflict(f"{self.store.url('_hfbatch/plans')}: plans vanish while they are read; is another run at work?")

    def rules(self, plan: int, shard: str) -> bool:
        """Whether plan number `plan`, or a later one that names this shard too, is the one that rules."""
        names = self._plans()
        if names and _number(names[-1]) == plan:
            return True
        ruling = self.agreed()
        return ruling is not None and any(shard == named.id for named in ruling.shards)

    def old_plans(self) -> list[str]:
        """Names of the plans, and of their audits, that nobody reads any more; the newest few stay."""
        plans, audits = self._plans(), self.store.list("_hfbatch/audits")
        return plans[:-_KEPT_PLANS] + [name for name in audits if plans and _stem(name) < _stem(plans[-1])]

    def _plans(self) -> list[str]:
        """Names of the plans, the one that rules last."""
        return [name for name in self.store.list("_hfbatch/plans") if _PLAN.fullmatch(name)]

    def identity(self, generation: str) -> dict[str, Any]:
        """What the generation is made of: all that affects a value."""
        found = self._json(f"_hfbatch/gens/{generation[:8]}.json")
        return found["identity"] if found else {}

    def committed(self, generation: str) -> set[str]:
        """Ids of the shards of `generation` that have a commit record whose object, if it has one, is there."""
        records = {_stem(name) for name in self.store.list(_commits(generation))}
        objects = self.standing("data") | self.standing("_hfbatch/staged")
        whole = records & objects
        empty = (receipt for receipt in self.receipts(generation, sorted(records - objects)) if receipt.data is None)
        return whole | {receipt.shard for receipt in empty}

    def standing(self, folder: str = "data") -> set[str]:
        """Ids of the shards whose objects stand in data/, or in _hfbatch/staged."""
        return {shard for name in self.store.list(folder) if (shard := shard_of(name)) is not None}

    def place(self, receipt: Receipt) -> str | None:
        """The object of a shard, wherever it stands; None when it has none, or it is gone."""
        places = (receipt.data, staged_name(receipt.data)) if receipt.data else ()
        return next((name for name in places if self.store.size(name) is not None), None)

    def receipts(self, generation: str, shards: Iterable[str]) -> list[Receipt]:
        """The commit records of these shards; those that have none are left out."""
        names = [f"{_commits(generation)}/{shard}.json" for shard in shards]
        with ThreadPoolExecutor(max_workers=16) as pool:
            texts = zip(names, pool.map(self.store.get, names), strict=True)
            return [Receipt.from_json(text, self.store.url(name)) for name, text in texts if text is not None]

    def foreign(self) -> list[str]:
        """Objects under data/ that hfbatch did not write; a reader of data/*.parquet would mix them in."""
        return [name for name in self.store.list("data") if shard_of(name) is None]

    def success(self) -> dict[str, Any] | None:
        """The content of _SUCCESS; None while the output is not complete."""
        return self._json("_SUCCESS")

    def current(self) -> dict[str, Any] | None:
        """What was published last: its run, plan and manifest; None if nothing ever was."""
        return self._json("_hfbatch/CURRENT")

    def published(self) -> Agreed | None:
        """The plan that was published last; None if nothing ever was, or that plan is not kept, or not readable."""
        number = int((self.current() or {}).get("plan", 0))
        text = self.store.get(_plan_name(number)) if number else None
        with suppress(Damage):  # nothing rests on it
            return None if text is None else Agreed.from_json(number, text)
        return None

    def runs(self) -> list[str]:
        """Ids of all runs, the oldest first."""
        return sorted({name.split("/")[2] for name in self.store.list("_hfbatch/runs")})

    def run_file(self, run_id: str, name: str) -> dict[str, Any] | None:
        """One JSON file of a run's folder."""
        return self._json(f"_hfbatch/runs/{run_id}/{name}")

    # writing, in the order of a run

    def begin(self, run_id: str, generation: str, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write down which run starts and what its generation is."""
        point("before-begin")
        self.store.put_if_absent("_hfbatch/FORMAT.json", dump({"format": FORMAT}))
        found = (self._json("_hfbatch/FORMAT.json") or {}).get("format")
        if found != FORMAT:
            raise Conflict(f"{self.store.url('')}: written in format {found}, this hfbatch writes {FORMAT}; upgrade it")
        self.store.put_if_absent(
            f"_hfbatch/gens/{generation[:8]}.json", dump({"generation": generation, "identity": identity})
        )
        self.write_run_file(run_id, "started.json", about)
        point("after-begin")

    def agree(self, generation: str, shards: Sequence[Shard], seen: Agreed | None) -> Agreed:
        """Make this cut the ruling one, if `seen` still is. Conflict when another run was faster."""
        if seen is not None and (seen.generation, seen.shards) == (generation, tuple(shards)):
            return seen
        plan = Agreed((seen.number if seen else 0) + 1, generation, tuple(shards))
        point("before-agree")
        self.store.put_if_absent(_plan_name(plan.number), plan.to_json())
        point("after-agree")
        if self.agreed() != plan:
            raise Conflict(f"{self.store.url('')}: another run has just begun on this output; run again to join it")
        return plan

    def reopen(self) -> None:
        """The output is no longer complete: take _SUCCESS away before the first new row."""
        point("before-reopen")
        self.store.delete(["_SUCCESS"])
        point("after-reopen")

    def commit(self, receipt: Receipt) -> Receipt:
        """Make the shard committed; the receipt that stands, which is another's if that came first.

        `receipt` speaks of the object that stands now. An older record that speaks of another one outlived its
        object, which somebody deleted, and is replaced.
        """
        name = f"{_commits(receipt.generation)}/{receipt.shard}.json"
        if not self.store.put_if_absent(name, receipt.to_json()):
            standing = Receipt.from_json(self.store.get(name) or receipt.to_json(), self.store.url(name))
            if standing.sha256 == receipt.sha256:
                return standing
            self.store.put(name, receipt.to_json())
        return receipt

    def withdraw(self, receipt: Receipt) -> None:
        """Take back the commit of a shard that the ruling plan does not know."""
        self.store.delete([f"{_commits(receipt.generation)}/{receipt.shard}.json"])
        if receipt.data:
            known = [name for name in self.store.list(KNOWN) if shard_of(name) == receipt.shard]
            self.store.delete([*known, staged_name(receipt.data), receipt.data])

    def publish(self, run_id: str, plan: Agreed, receipts: Sequence[Receipt], report: Mapping[str, Any]) -> None:
        """Manifest, superseded objects out of data/ and new ones in, CURRENT, _SUCCESS: then data/ is the output."""
        self._must_rule(plan)
        manifest = f"_hfbatch/runs/{run_id}/manifest.json"
        pointer = {"run_id": run_id, "generation": plan.generation, "plan": plan.number, "manifest": manifest}
        listed = [{"data": r.data, "shard": r.shard, "rows": r.rows, "sha256": r.sha256} for r in receipts]
        rows = sum(receipt.rows for receipt in receipts)
        point("before-manifest")
        self.store.put(manifest, dump({**pointer, "rows": rows, "objects": listed}))
        self.write_run_file(run_id, "report.json", report)
        point("after-manifest")
        self._swap(plan, receipts)
        point("before-current")
        self.store.put("_hfbatch/CURRENT", dump(pointer))
        self._follow()
        point("after-current")
        self.clean(plan)
        self._succeed(plan, pointer)

    def _swap(self, plan: Agreed, receipts: Sequence[Receipt]) -> None:
        """First what is superseded leaves data/, then what was staged enters: no row is ever there twice.

        Commit records go before their objects, so that no record lacks its object.
        """
        point("before-swap")
        known = {shard.id for shard in plan.shards}
        for folder in ("_hfbatch/commits", KNOWN, "data"):
            self.store.delete([name for name in self.store.list(folder) if _is_dead(name, plan.number, known)])
        point("before-promote")
        staged = [name for name in self.store.list("_hfbatch/staged") if shard_of(name) in known]
        targets = [published_name(name) for name in staged]
        created: list[str] = []

        def promote(source: str, target: str) -> None:
            if self.store.copy_if_absent(source, target):
                created.append(target)

        try:
            with ThreadPoolExecutor(max_workers=16) as pool:
                list(pool.map(promote, staged, targets))
        finally:  # a source may have gone because this run was overtaken
            self._must_rule(plan, created)
        point("after-promote")
        lacking = {receipt.shard for receipt in receipts if receipt.data} - self.standing()
        if lacking:
            self._must_rule(plan)
            raise Damage(f"{self.store.url('data')}: {len(lacking)} committed objects have vanished; run again")
        point("after-swap")

    def _succeed(self, plan: Agreed, pointer: Mapping[str, Any]) -> None:
        """Write _SUCCESS, over one of an earlier plan but never over one of a later."""
        point("before-success")
        while not self.store.put_if_absent("_SUCCESS", dump(pointer)):
            if (self.success() or {}).get("plan") == plan.number:
                break  # another run of this very plan was faster
            self._must_rule(plan)
            self.store.delete(["_SUCCESS"])
        self._follow()
        self._must_rule(plan)
        point("after-success")

    def _follow(self) -> None:
        """Who puts CURRENT or _SUCCESS looks at the other afterwards, so that CURRENT is never the older of the two."""
        success = self.success()
        if success is not None and success["plan"] > (self.current() or {}).get("plan", 0):
            self.store.put("_hfbatch/CURRENT", dump(success))

    def _must_rule(self, plan: Agreed, put: Sequence[str] = ()) -> None:
        """Conflict when another plan rules by now; of the objects this run has `put`, those it lacks go."""
        ruling = self.agreed()
        if ruling == plan:
            return
        named = {shard.id for shard in ruling.shards} if ruling else set[str]()
        self.store.delete([name for name in put if shard_of(name) not in named])
        raise Conflict(f"{self.store.url('')}: another run has taken over this output; its plan rules now")

    def clean(self, plan: Agreed) -> list[str]:
        """Remove what nobody needs once `plan` is published. Returns the names."""
        point("before-gc")
        staged = [name for name in self.store.list("_hfbatch/staged") if _is_dead(name, plan.number, ())]
        removed = staged + self.old_plans()
        self.store.delete(removed)
        point("after-gc")
        return removed

    def write_run_file(self, run_id: str, name: str, content: Mapping[str, Any]) -> None:
        """One JSON file of a run's folder."""
        self.store.put(f"_hfbatch/runs/{run_id}/{name}", dump(content))

    def _json(self, name: str) -> dict[str, Any] | None:
        text = self.store.get(name)
        return None if text is None else load(text, self.store.url(name))


def _is_dead(name: str, plan: int, known: Collection[str]) -> bool:
    """Whether an object or a commit record is of a shard that plan number `plan` could know and does not."""
    shard = shard_of(name)
    return shard is not None and number_of(shard) <= plan and shard not in known


def _commits(generation: str) -> str:
    return f"_hfbatch/commits/{generation[:8]}"


def _plan_name(number: int) -> str:
    return f"_hfbatch/plans/{number:09d}.json"


def _number(name: str) -> int:
    return int(_stem(name))


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json")

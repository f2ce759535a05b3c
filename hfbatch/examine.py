"""Does an output hold what was committed, all of it and nothing else? Every flaw is found before any is told.

Records are compared with their checksums, objects with their records (size, sha256), and what an object says of
itself (footer, rows, errors, columns) with record and plan. An object is read once, whole; a few at a time. What a
run has not done yet is no flaw: that is `complete`. Nothing is written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from hfbatch.errors import Conflict, Damage, Incomplete
from hfbatch.job import canonical
from hfbatch.ledger import FORMAT, Ledger
from hfbatch.objects import check_object
from hfbatch.records import REPAIR, Agreed, Receipt, data_name, load, shard_of
from hfbatch.shards import Shard, number_of
from hfbatch.status import no_output
from hfbatch.store import open_store

_PLAN = re.compile(r"_hfbatch/plans/\d{9}\.json")
_AT_ONCE = 4  # objects read together; one is as large as a shard

# What is flawed, and so what it takes to mend it: a shard is inferred again, a small object is written again, the
# plan is put together again, a dead object goes when the output is published again; somebody else's stays his.
Kind: TypeAlias = Literal["shard", "object", "plan", "publication", "foreign", "value"]


@dataclass(frozen=True)
class Flaw:
    """One thing that is not as it was committed."""

    place: str  # URL of an object, or file and row
    what: str
    fix: str
    kind: Kind
    subject: str = ""  # the shard's id, or the object's name
    record: str = ""  # of a shard: its commit record, where that is what cannot be used

    def __str__(self) -> str:
        return f"{self.place}: {self.what}\n  fix: {self.fix}"


@dataclass(frozen=True)
class Examined:
    """What was looked at and what was found."""

    output: str
    shards: int  # of the ruling plan
    committed: int  # of them, with a record that reads back
    complete: bool  # published, as the plan has it
    rows: int  # by the records
    nbytes: int  # read
    flaws: tuple[Flaw, ...]

    def check(self) -> None:
        """Damage with every flaw; else Incomplete where the output is not finished."""
        if self.flaws:
            told = "\n".join(str(flaw) for flaw in self.flaws)
            many = "1 flaw" if len(self.flaws) == 1 else f"{len(self.flaws):,} flaws"
            raise Damage(f"{told}\n{self.output}: {many}")
        if not self.complete:
            state = "not published" if self.committed == self.shards else "not complete"
            text = f"{self.output}: {state}: {self.committed:,} of {self.shards:,} shards are committed, and sound"
            raise Incomplete(f"{text}; the command that made it continues")

    def _repr_html_(self) -> str:
        from hfbatch.html import examined_card

        return examined_card(self)


def examine(output: str) -> Examined:
    """Look at all of `output`. SpecError when no run ever wrote there; StorageError when it cannot be read."""
    ledger = Ledger(open_store(output))
    if not ledger.store.list("_hfbatch"):
        raise no_output(ledger)
    strange = [name for name in ledger.store.list("_hfbatch/plans") if not _PLAN.fullmatch(name)]
    if strange:
        flaw = Flaw(ledger.store.url(strange[0]), "is no plan of hfbatch", "move it away", "foreign", strange[0])
        return Examined(ledger.store.url(), 0, 0, False, 0, 0, (flaw,))
    for _ in range(3):  # a run that is at work may replace what is looked at
        try:
            agreed = ledger.agreed()
        except Damage as error:
            return _without_plan(ledger, str(error))
        if agreed is None:
            return _without_plan(ledger, f"{ledger.store.url('_hfbatch/plans')}: is empty")
        found = _Examination(ledger, agreed).result()
        if not found.flaws or ledger.agreed() == agreed:
            return found
    raise Conflict(f"{ledger.store.url()}: its plan changes while it is read; wait for the run that is at work")


def _without_plan(ledger: Ledger, told: str) -> Examined:
    place, _, what = told.partition(": ")
    what = f"{what.removesuffix(f'; {REPAIR}')}; without the plan nothing else can be checked"
    flaw = Flaw(place, what, "`hfbatch repair` puts it together again", "plan")
    return Examined(ledger.store.url(), 0, 0, False, 0, 0, (flaw,))


class _Examination:
    """One pass over an output; `flaws` grows."""

    def __init__(self, ledger: Ledger, agreed: Agreed) -> None:
        self.ledger, self.agreed = ledger, agreed
        self.flaws: list[Flaw] = []

    def result(self) -> Examined:
        """Look at everything, the small first."""
        columns = self._check_format_and_generation()
        published, promised = self._publication()
        receipts = list(self._receipts({str(entry.get("shard")) for entry in promised or ()}))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda pair: check_object(self.ledger, pair[0], pair[1], columns), receipts))
        for (shard, receipt), (_, what) in zip(receipts, found, strict=True):
            if what is not None:
                place = self.ledger.place(receipt) or receipt.data or f"{self._records}/{receipt.shard}.json"
                self._flaw(place, what, "shard", shard.id)
        mine = [receipt for shard, receipt in receipts if receipt.shard == shard.id]
        whole = len(mine) == len(self.agreed.shards)
        if published and whole and promised not in (None, listed(mine)):
            self._flaw("_hfbatch/CURRENT", "the manifest it names is not that of what is committed", "publication")
        self._check_data(mine, published)
        return Examined(
            output=self.ledger.store.url(),
            shards=len(self.agreed.shards),
            committed=len(mine),
            complete=published and whole,
            rows=sum(receipt.rows for receipt in mine),
            nbytes=sum(nbytes for nbytes, _ in found),
            flaws=tuple(self.flaws),
        )

    @property
    def _records(self) -> str:
        return f"_hfbatch/commits/{self.agreed.generation[:8]}"

    def _check_format_and_generation(self) -> dict[str, str] | None:
        """The columns that the generation has; None where that cannot be told."""
        name = f"_hfbatch/gens/{self.agreed.generation[:8]}.json"
        found, generation = self._read("_hfbatch/FORMAT.json"), self._read(name)
        if found is None and not self._is_flawed("_hfbatch/FORMAT.json"):
            self._flaw("_hfbatch/FORMAT.json", "is gone", "object")
        elif found is not None and found.get("format") != FORMAT:
            raise Conflict(f"{self.ledger.store.url()}: written in format {found.get('format')}; upgrade hfbatch")
        identity = (generation or {}).get("identity")
        if hashlib.sha256(canonical(identity).encode()).hexdigest() == self.agreed.generation:
            return dict(identity["output_columns"]) if identity else None
        if not self._is_flawed(name):
            self._flaw(name, "is gone" if generation is None else "is not what the plan's generation is", "object")
        return None

    def _publication(self) -> tuple[bool, list[dict[str, Any]] | None]:
        """Whether the ruling plan is published, and what the manifest that was published last lists, if it can."""
        success, current = self._read("_SUCCESS"), self._read("_hfbatch/CURRENT")
        stands = success is not None and success.get("plan") == self.agreed.number
        named = current is not None and current.get("plan") == self.agreed.number
        if stands and not named and not self._is_flawed("_hfbatch/CURRENT"):
            self._flaw("_hfbatch/CURRENT", "does not name the plan that _SUCCESS names", "publication")
        if current is None:
            return False, None
        name = str(current.get("manifest"))
        manifest = self._read(name)
        if manifest is None and not self._is_flawed(name):
            self._flaw(name, "is gone, and it is the manifest that was published", "publication")
        if manifest is None:
            return stands and named, None
        return stands and named, [entry for entry in manifest.get("objects", ()) if isinstance(entry, dict)]

    def _receipts(self, promised: Collection[str]) -> Iterator[tuple[Shard, Receipt]]:
        """The commit records that can be used: each shard's own, or that of the shard whose rows it is to take over.

        `promised`: shards that were committed once, because they were published.
        """
        shards = self.agreed.shards
        with ThreadPoolExecutor(max_workers=16) as pool:
            texts = list(pool.map(self.ledger.store.get, [f"{self._records}/{shard.id}.json" for shard in shards]))
        for shard, text in zip(shards, texts, strict=True):
            owner, name = shard.id, f"{self._records}/{shard.id}.json"
            if text is None and shard.id in promised:
                self._flaw(name, "is gone, and its shard was committed", "shard", shard.id)
                continue
            if text is None and shard.base is not None:
                owner, name = shard.base, f"{self._records}/{shard.base}.json"
                text = self.ledger.store.get(name)
            if text is not None and (receipt := self._receipt(text, name, owner, shard)):
                yield shard, receipt

    def _receipt(self, text: bytes, name: str, owner: str, shard: Shard) -> Receipt | None:
        try:
            receipt = Receipt.from_json(text, name)
        except Damage as error:
            self._flaw(name, _cause(error, name), "shard", shard.id, record=name)
            return None
        if (receipt.shard, receipt.generation) != (owner, self.agreed.generation):
            self._flaw(name, f"is the record of another shard, {receipt.shard}", "shard", shard.id, record=name)
            return None
        return receipt

    def _check_data(self, receipts: Sequence[Receipt], published: bool) -> None:
        """Nothing else may stand in data/, once what was superseded had to leave it."""
        committed = {receipt.shard: receipt.data for receipt in receipts}
        agreed, generation = self.agreed.shards, self.agreed.generation
        known = {s.id: committed.get(s.id, data_name(s.id, generation, s.folder)) for s in agreed}
        for name in self.ledger.store.list("data"):
            shard = shard_of(name)
            if shard is None or (shard in known and known[shard] != name):
                what = "is not hfbatch's, and readers of data/*.parquet mix its rows in"
                self._flaw(name, what, "foreign", fix="move it out of data/")
            elif shard not in known and published and number_of(shard) <= self.agreed.number:
                self._flaw(name, "is superseded, and its rows are there twice", "publication", name)

    def _read(self, name: str) -> dict[str, Any] | None:
        """A small object; a flaw, and None, where it is not readable."""
        text = self.ledger.store.get(name)
        try:
            return None if text is None else load(text, name)
        except Damage as error:
            self._flaw(name, _cause(error, name), "object")
            return None

    def _is_flawed(self, name: str) -> bool:
        return any(flaw.subject == name for flaw in self.flaws)

    def _flaw(
        self, name: str, what: str, kind: Kind, subject: str = "", record: str = "", fix: str = "`hfbatch repair`"
    ) -> None:
        fix = f"{fix} infers its rows again" if kind == "shard" else f"{fix} sets it right" if "`" in fix else fix
        self.flaws.append(Flaw(self.ledger.store.url(name), what, fix, kind, subject or name, record))


def _cause(error: Damage, name: str) -> str:
    """What is wrong with `name`, without what a Flaw says anyway: its place and the fix."""
    return str(error).removeprefix(f"{name}: ").removesuffix(f"; {REPAIR}")


def listed(receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    """What a manifest says of these shards."""
    return [{"data": r.data, "shard": r.shard, "rows": r.rows, "sha256": r.sha256} for r in receipts]

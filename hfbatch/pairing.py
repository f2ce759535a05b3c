"""Two outputs in, their rows side by side out, a shard at a time: what `compare` reads.

A row is the same in both where file, fingerprint and row are, which the objects themselves say (carry.Held), however
the two were cut into shards; memory is that of a few shards. Or where a key column has the same value: then both are
divided by the key on disk first, so that a part of each fits in memory.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch.carry import ROWS, Held
from hfbatch.errors import Damage, Problem, SpecError
from hfbatch.ledger import Ledger
from hfbatch.objects import UNREADABLE
from hfbatch.records import Receipt, lineage_in, steps_in
from hfbatch.sequences import Array
from hfbatch.shards import Shard
from hfbatch.status import known_output

_OPEN = 4  # objects of the second output that are kept, as shards of the two may overlap
_PART_BYTES, _MOST_PARTS = 64 << 20, 200  # of the objects, compressed; as many files are open at once, twice

Version = tuple[str, str]  # a file's path and fingerprint


@dataclass(frozen=True)
class Pair:
    """Rows that are in both outputs, in the same order."""

    a: pa.Table
    b: pa.Table
    place: Callable[[int], str]  # row of these tables -> what it is called


@dataclass(frozen=True)
class Object:
    """The rows of one shard, and where they come from."""

    table: pa.Table
    places: Mapping[Version, tuple[Array, Array]]  # (row in the file, ascending; position in the table)

    def place(self, position: int) -> str:
        """File and row, counted from 0."""
        for (path, _), (rows, positions) in self.places.items():
            found = np.flatnonzero(positions == position)
            if len(found):
                return f"{path} row {rows[found[0]]}"
        raise IndexError(position)


class Side:
    """One of the two outputs: what is committed of it."""

    def __init__(self, output: str) -> None:
        """SpecError where no run ever wrote there, or nothing is committed yet."""
        self.ledger, self.agreed = known_output(output)
        committed = self.ledger.committed(self.agreed.generation)
        shards = [shard for shard in self.agreed.shards if shard.id in committed]
        receipts = {each.shard: each for each in self.ledger.receipts(self.agreed.generation, (s.id for s in shards))}
        self.shards = [(shard, receipts[shard.id]) for shard in shards if shard.id in receipts]
        self.objects = [(shard, receipt) for shard, receipt in self.shards if receipt.data is not None]
        self.rows = sum(receipt.rows for _, receipt in self.shards)
        self.complete = len(self.shards) == len(self.agreed.shards)
        if not self.shards:
            raise SpecError([Problem("OUTPUT", self.url, "has no committed rows yet", "run its job first")])

    @property
    def url(self) -> str:
        """Where it is."""
        return self.ledger.store.url()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that affects a value, as job.Job has it."""
        return self.ledger.identity(self.agreed.generation)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the newest run of this generation wrote down as it began."""
        started = (self.ledger.run_file(run_id, "started.json") or {} for run_id in reversed(self.ledger.runs()))
        return next((each for each in started if each.get("generation") == self.agreed.generation), {})

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of its objects; none where all shards are empty."""
        if not self.objects:
            return pa.schema([])
        with _opened(self.ledger, self.objects[0][1]) as file:
            return file.schema_arrow

    @property
    def kept(self) -> set[str]:
        """The input columns among its columns."""
        job = (self.about.get("bound") or {}).get("job") or {}
        read = {name for step in steps_in(self.identity) for name in step.get("input_columns", {}).values()}
        return set(job["keep"]) if "keep" in job else read

    def read(self, receipt: Receipt, columns: Sequence[str]) -> Object:
        """The rows of one object."""
        with _opened(self.ledger, receipt) as file:
            held = Held.from_json(file.metadata.metadata[ROWS])
            table = file.read([name for name in columns if name in file.schema_arrow.names])
        places, first = dict[Version, tuple[Array, Array]](), 0
        for path, version, start, stop in held.pieces:
            positions = np.flatnonzero((held.numbers >= first) & (held.numbers < first + stop - start))
            rows = held.numbers[positions] - first + start
            old = places.get((path, version), (rows[:0], positions[:0]))
            places[path, version] = (np.concatenate([old[0], rows]), np.concatenate([old[1], positions]))
            first += stop - start
        return Object(table, places)


@contextmanager
def _opened(ledger: Ledger, receipt: Receipt) -> Iterator[pq.ParquetFile]:
    """The object of a shard; Damage where it is gone or cannot be read."""
    place = ledger.place(receipt)
    if place is None:
        raise Damage(f"{ledger.store.url(receipt.data or '')}: is gone; `hfbatch repair` makes it again")
    try:
        with ledger.store.open_input(place) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            yield file
    except UNREADABLE as error:
        raise Damage(f"{ledger.store.url(place)}: is damaged ({error}); `hfbatch repair` makes it again") from error


def by_place(a: Side, b: Side, columns: Sequence[str]) -> Iterator[Pair]:
    """The rows that both have, with those of `columns` that each has; in the order of `a`."""
    overlaps, kept = _Overlaps(b.objects), OrderedDict[str, Object]()
    for shard, receipt in a.objects:
        mine = a.read(receipt, columns)
        for other in overlaps.of(shard):
            theirs = kept.pop(other.shard, None) or b.read(other, columns)
            kept[other.shard] = theirs
            while len(kept) > _OPEN:
                kept.popitem(last=False)
            here, there = _common(mine, theirs)
            if len(here):
                yield Pair(mine.table.take(here), theirs.table.take(there), _places(mine, here))


def _places(side: Object, positions: Array) -> Callable[[int], str]:
    return lambda row: side.place(int(positions[row]))


def _common(a: Object, b: Object) -> tuple[Array, Array]:
    """Positions in both of the rows that both have, in the order of `a`."""
    here, there = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for version, (rows, positions) in a.places.items():
        if version in b.places:
            other_rows, other_positions = b.places[version]
            _, i, j = np.intersect1d(rows, other_rows, assume_unique=True, return_indices=True)
            here.append(positions[i])
            there.append(other_positions[j])
    mine, theirs = np.concatenate(here), np.concatenate(there)
    order = np.argsort(mine, kind="stable")
    return mine[order], theirs[order]


class _Overlaps:
    """Which objects hold rows of a shard of another output."""

    def __init__(self, objects: Sequence[tuple[Shard, Receipt]]) -> None:
        self.receipts = [receipt for _, receipt in objects]
        ranges = defaultdict[Version, list[tuple[int, int, int]]](list)  # disjoint: (start, stop, number of the object)
        for number, (shard, _) in enumerate(objects):
            for piece in shard.pieces:
                ranges[piece.path, piece.fingerprint].append((piece.start, piece.stop, number))
        self.ranges = {version: sorted(found) for version, found in ranges.items()}

    def of(self, shard: Shard) -> Iterator[Receipt]:
        """In their own order."""
        numbers = set[int]()
        for piece in shard.pieces:
            found = self.ranges.get((piece.path, piece.fingerprint), [])
            at = max(0, bisect_right(found, (piece.start, math.inf, 0)) - 1)
            while at < len(found) and found[at][0] < piece.stop:
                if found[at][1] > piece.start:
                    numbers.add(found[at][2])
                at += 1
        return (self.receipts[number] for number in sorted(numbers))


def changed_files(a: Side, b: Side) -> list[str]:
    """Files that both know, with another content."""
    versions = [defaultdict[str, set[str]](set) for _ in range(2)]
    for found, side in zip(versions, (a, b), strict=True):
        for shard, _ in side.shards:
            for piece in shard.pieces:
                found[piece.path].add(piece.fingerprint)
    return sorted(path for path in versions[0].keys() & versions[1].keys() if versions[0][path] != versions[1][path])


def by_key(a: Side, b: Side, key: str, columns: Sequence[str]) -> Iterator[Pair]:
    """The rows whose `key` (as text) is the same; a null is like no other. SpecError where a key is there twice."""
    for side in (a, b):
        if key not in side.schema.names:
            behind = lineage_in(side.identity)
            fix = f"the columns there are {', '.join(name for name in side.schema.names if name not in behind)}"
            raise SpecError([Problem("--on", "", f"{side.url} has no column {key!r}", fix)])
    size = sum(receipt.nbytes for side in (a, b) for _, receipt in side.objects)
    parts = min(_MOST_PARTS, 1 + size // _PART_BYTES)
    with tempfile.TemporaryDirectory(prefix="hfbatch-compare-") as folder:
        for name, side in (("a", a), ("b", b)):
            _divide(side, key, [key, *(column for column in columns if column != key)], parts, Path(folder) / name)
        for part in range(parts):
            one, two = (_part(Path(folder) / name, part) for name in ("a", "b"))
            if one is not None and two is not None:
                yield from _joined(((one, a), (two, b)), key)


def _divide(side: Side, key: str, columns: Sequence[str], parts: int, folder: Path) -> None:
    """The rows with a key in files by its hash."""
    folder.mkdir()
    with ExitStack() as stack:
        files = dict[int, pa.ipc.RecordBatchFileWriter]()
        for _, receipt in side.objects:
            table = side.read(receipt, columns).table
            keys = table[key].to_pylist()
            hashes = np.array([-1 if each is None else zlib.crc32(str(each).encode()) % parts for each in keys])
            for part in np.unique(hashes[hashes >= 0]).tolist():
                if part not in files:
                    sink = stack.enter_context(pa.OSFile(str(folder / f"{part}.arrow"), "wb"))
                    files[part] = stack.enter_context(pa.ipc.new_file(sink, table.schema))
                files[part].write_table(table.take(np.flatnonzero(hashes == part)))


def _part(folder: Path, part: int) -> pa.Table | None:
    file = folder / f"{part}.arrow"
    return pa.ipc.open_file(file.read_bytes()).read_all() if file.exists() else None


def _joined(parts: Sequence[tuple[pa.Table, Side]], key: str) -> Iterator[Pair]:
    found = []
    for table, side in parts:
        keys = [str(each) for each in table[key].to_pylist()]
        if len(rows := {each: row for row, each in enumerate(keys)}) < len(keys):
            twice = next(each for row, each in enumerate(keys) if rows[each] != row)
            fix = "take a column whose values are all different"
            raise SpecError([Problem("--on", "", f"{side.url}: {key} {twice!r} is there twice", fix)])
        found.append(rows)
    names = [name for name in found[0] if name in found[1]]
    if names:
        here, there = ([rows[name] for name in names] for rows in found)
        yield Pair(parts[0][0].take(here), parts[1][0].take(there), lambda row: f"{key} {names[row]}")

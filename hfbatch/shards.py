"""Rows of files in, shards out: the rows that are committed together, and so the unit of resume.

A shard's id says which plan cut it and, as a hash, what it holds (file, fingerprint, row range, filter), so resume
needs no id column and opens no finished file. The cut is agreed once per output (ledger.py): shards that still hold
good are kept as they are, and only rows that no shard covers are cut anew. So neither another machine file nor new
files disturb what is committed.

An id that a plan dropped never comes back: the same rows get a new id, with the new plan's number. That is what
makes clean-up safe without locks or clocks: an object whose number is not above the ruling plan's, and which that
plan does not name, is dead for good, whoever deletes it and whenever.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hfbatch.formats import Block

FEWEST_ROWS = 1024  # each block costs about 70 ms, whatever it holds
MOST_PARTS = 32  # smaller inputs are cut finer, so that several actors share them and a rerun repeats little


@dataclass(frozen=True)
class SourceFile:
    """What the cut needs to know of a file. `blocks` are its natural read units, in order."""

    path: str  # as the job file names it
    fingerprint: str
    blocks: tuple[Block, ...]
    folder: str = ""  # where its rows belong in data/; see partitions.py

    @property
    def rows(self) -> int:
        """Rows in all blocks."""
        return sum(block.rows for block in self.blocks)


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one file."""

    path: str
    fingerprint: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows that is, before `where`."""
        return self.stop - self.start


@dataclass(frozen=True)
class Shard:
    """Pieces of one file or of several small ones, committed as one Parquet file."""

    id: str
    pieces: tuple[Piece, ...]
    base: str | None = None  # an earlier shard of the same generation, whose results for these rows are carried over
    retry: bool = False  # except for the rows that failed there
    staged: bool = False  # its object stands aside until the run publishes: it would double rows of data/
    folder: str = ""  # of data/, where its object belongs: a shard's files are all of one

    @classmethod
    def of(
        cls,
        pieces: Iterable[Piece],
        where: str | None,
        number: int = 1,
        base: str | None = None,
        retry: bool = False,
    ) -> Shard:
        """The shard of these pieces in plan `number`, under the id that their content gives."""
        pieces = tuple(pieces)
        content = [where, *([p.path, p.fingerprint, p.start, p.stop] for p in pieces)]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        return cls(f"{number:06d}-{digest}", pieces, base, retry)

    @property
    def rows(self) -> int:
        """Rows of all pieces, before `where`."""
        return sum(piece.rows for piece in self.pieces)


@dataclass(frozen=True)
class Limits:
    """The most that one shard holds."""

    rows: int
    nbytes: int


@dataclass(frozen=True)
class Basis:
    """What a new cut builds on: the plan that ruled before it, and what has become of its shards."""

    number: int = 1  # of the plan to be made
    shards: Sequence[Shard] = ()
    committed: Collection[str] = ()
    standing: Collection[str] = ()  # ids whose objects readers of data/ see now, of older plans too
    published: bool = False  # readers count on what stands in data/
    gated: bool = False  # nothing enters data/ before it has passed its audit
    retry: Collection[str] = ()  # committed shards whose failed rows are to be inferred again
    redo: Collection[str] = ()  # damaged shards, all of whose rows are
    last: Sequence[Shard] = ()  # of the plan that was published last, where its generation is the same


def number_of(shard: str) -> int:
    """The number of the plan that cut the shard with this id."""
    return int(shard.partition("-")[0])


def limits_for(total_rows: int, shard_rows: int, shard_bytes: int, row_bytes: int) -> Limits:
    """Limits for an input of `total_rows`, of which each gives at most `row_bytes` of output."""
    rows = max(FEWEST_ROWS, -(-total_rows // MOST_PARTS))
    return Limits(max(1, min(rows, shard_rows, 8 * shard_bytes // max(1, row_bytes))), shard_bytes)


def cut(
    files: Sequence[SourceFile], limits: Limits, where: str | None = None, basis: Basis | None = None
) -> tuple[Shard, ...]:
    """Shards that cover each row of `files` exactly once; those of `basis` that still hold good stay.

    Large files are cut, along their blocks where blocks are small enough; small files of one folder are bundled. Where
    a part of a committed shard holds good, that part is a shard that carries its results over.
    """
    basis = basis or Basis()
    known = {file.path: file for file in files}
    kept = [shard for old in basis.shards for shard in _kept(old, known, where, basis)]
    kept += list(_returned(kept, known, where, basis))
    covered: defaultdict[str, list[Piece]] = defaultdict(list)
    for shard in kept:
        for piece in shard.pieces:
            covered[piece.path].append(piece)
    new = [Shard.of(pieces, where, basis.number) for pieces in _bundle(files, covered, limits)]
    shards = kept + new
    old = {shard.id for shard in basis.shards}
    ids = {shard.id for shard in shards}
    superseding = not ids.issuperset(old) or (basis.number > 1 and not old)  # whose writers may still be at work
    aside = basis.gated or basis.published or superseding or not ids.issuperset(basis.standing)
    shards = [shard if shard.id in old else replace(shard, staged=aside) for shard in shards]
    shards = [replace(shard, folder=known[shard.pieces[0].path].folder) for shard in shards]
    position = {file.path: index for index, file in enumerate(files)}
    return tuple(sorted(shards, key=lambda shard: (position[shard.pieces[0].path], shard.pieces[0].start)))


def _kept(shard: Shard, known: Mapping[str, SourceFile], where: str | None, basis: Basis) -> Iterator[Shard]:
    """What becomes of a shard of the plan before: itself, or one that carries over what still holds good of it."""
    pieces = [good for piece in shard.pieces if (good := _good_part(piece, known)) is not None]
    if not pieces or shard.id in basis.redo:
        return
    if shard.id in basis.retry:
        yield Shard.of(pieces, where, basis.number, base=shard.id, retry=True)
    elif pieces == list(shard.pieces):
        yield shard
    elif shard.id in basis.committed:
        yield Shard.of(pieces, where, basis.number, base=shard.id)
    elif shard.base is not None:
        yield Shard.of(pieces, where, basis.number, base=shard.base, retry=shard.retry)


def _returned(
    kept: Sequence[Shard], known: Mapping[str, SourceFile], where: str | None, basis: Basis
) -> Iterator[Shard]:
    """What was published last and dropped since, and holds good again: a plan between the two was given up."""
    covered: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for shard in kept:
        for piece in shard.pieces:
            covered[piece.path].append((piece.start, piece.stop))
    for shard in basis.last:
        if shard.id not in basis.committed or shard.id in basis.redo:
            continue
        good = [part for piece in shard.pieces if (part := _good_part(piece, known)) is not None]
        gaps = ((part, gap) for part in good for gap in _gaps(part.start, part.stop, sorted(covered[part.path])))
        pieces = [replace(part, start=low, stop=high) for part, (low, high) in gaps]
        if pieces:
            yield Shard.of(pieces, where, basis.number, base=shard.id)


def _good_part(piece: Piece, known: Mapping[str, SourceFile]) -> Piece | None:
    """The rows of `piece` that the file still has."""
    file = known.get(piece.path)
    if file is None or file.fingerprint != piece.fingerprint or piece.start >= file.rows:
        return None
    return replace(piece, stop=min(piece.stop, file.rows))


def _bundle(files: Sequence[SourceFile], covered: dict[str, list[Piece]], limits: Limits) -> Iterator[list[Piece]]:
    """Groups of uncovered pieces of one folder, within the limits; a file that needs several groups shares none."""
    group: list[Piece] = []
    rows = nbytes = 0
    folder = ""
    for file in sorted(files, key=lambda file: file.folder):
        if group and file.folder != folder:
            yield _merged(group)
            group, rows, nbytes = [], 0, 0
        folder = file.folder
        units = list(_units(file, covered.get(file.path, []), limits))
        shared = (
            sum(u.rows for u, _ in units) + rows <= limits.rows and sum(b for _, b in units) + nbytes <= limits.nbytes
        )
        if group and not shared:
            yield _merged(group)
            group, rows, nbytes = [], 0, 0
        for unit, size in units:
            if group and (rows + unit.rows > limits.rows or nbytes + size > limits.nbytes):
                yield _merged(group)
                group, rows, nbytes = [], 0, 0
            group.append(unit)
            rows, nbytes = rows + unit.rows, nbytes + size
        if group and group[0].path == file.path and not shared:
            yield _merged(group)
            group, rows, nbytes = [], 0, 0
    if group:
        yield _merged(group)


def _units(file: SourceFile, covered: list[Piece], limits: Limits) -> Iterator[tuple[Piece, int]]:
    """The uncovered rows of a file as pieces within the limits, each with its bytes; equal parts of a large block."""
    start = 0
    taken = sorted((piece.start, piece.stop) for piece in covered)
    for block in file.blocks:
        for low, high in _gaps(start, start + block.rows, taken):
            nbytes = block.nbytes * (high - low) // max(1, block.rows)
            parts = min(high - low, max(-(-(high - low) // limits.rows), -(-nbytes // limits.nbytes), 1))
            edges = [low + (high - low) * part // parts for part in range(parts + 1)]
            for left, right in pairwise(edges):
                yield Piece(file.path, file.fingerprint, left, right), nbytes // parts
        start += block.rows


def _gaps(low: int, high: int, taken: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of [low, high) that lie in none of the sorted, disjoint `taken`."""
    for left, right in taken:
        if right <= low or left >= high:
            continue
        if left > low:
            yield low, left
        low = right
    if low < high:
        yield low, high


def _merged(group: list[Piece]) -> list[Piece]:
    """Neighbouring pieces of one file as one."""
    merged: list[Piece] = []
    for piece in group:
        last = merged[-1] if merged else None
        if last and (last.path, last.stop) == (piece.path, piece.start):
            merged[-1] = Piece(piece.path, piece.fingerprint, last.start, piece.stop)
        else:
            merged.append(piece)
    return merged

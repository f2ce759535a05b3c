"""Rows of files in, shards out: the rows that are committed together, and so the unit of resume.

A shard's id is a hash of what it holds (file, fingerprint, row range, filter), so resume needs no id column and
opens no finished file. The cut is agreed once per output (ledger.py): shards that still hold good are kept as they
are, and only rows that no shard covers are cut anew. So neither another machine file nor new files disturb what is
committed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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

    @classmethod
    def of(cls, pieces: Iterable[Piece], where: str | None) -> Shard:
        """The shard of these pieces, under the id that their content gives."""
        pieces = tuple(pieces)
        content = [where, *([p.path, p.fingerprint, p.start, p.stop] for p in pieces)]
        return cls(hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20], pieces)

    @property
    def rows(self) -> int:
        """Rows of all pieces, before `where`."""
        return sum(piece.rows for piece in self.pieces)


@dataclass(frozen=True)
class Limits:
    """The most that one shard holds."""

    rows: int
    nbytes: int


def limits_for(total_rows: int, shard_rows: int, shard_bytes: int, row_bytes: int) -> Limits:
    """Limits for an input of `total_rows`, of which each gives at most `row_bytes` of output."""
    rows = max(FEWEST_ROWS, -(-total_rows // MOST_PARTS))
    return Limits(max(1, min(rows, shard_rows, 8 * shard_bytes // max(1, row_bytes))), shard_bytes)


def cut(
    files: Sequence[SourceFile], limits: Limits, where: str | None = None, previous: Sequence[Shard] = ()
) -> tuple[Shard, ...]:
    """Shards that cover each row of `files` exactly once; those of `previous` that still hold good stay.

    Large files are cut, along their blocks where blocks are small enough; small files are bundled.
    """
    known = {file.path: file for file in files}
    kept = [shard for shard in previous if all(_holds_good(piece, known) for piece in shard.pieces)]
    covered: defaultdict[str, list[Piece]] = defaultdict(list)
    for shard in kept:
        for piece in shard.pieces:
            covered[piece.path].append(piece)
    fresh = [Shard.of(pieces, where) for pieces in _bundle(files, covered, limits)]
    position = {file.path: index for index, file in enumerate(files)}
    return tuple(sorted(kept + fresh, key=lambda shard: (position[shard.pieces[0].path], shard.pieces[0].start)))


def _holds_good(piece: Piece, known: dict[str, SourceFile]) -> bool:
    file = known.get(piece.path)
    return file is not None and file.fingerprint == piece.fingerprint and piece.stop <= file.rows


def _bundle(files: Sequence[SourceFile], covered: dict[str, list[Piece]], limits: Limits) -> Iterator[list[Piece]]:
    """Groups of uncovered pieces, each within the limits; a file that needs several groups shares none."""
    group: list[Piece] = []
    rows = nbytes = 0
    for file in files:
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

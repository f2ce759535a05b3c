"""Results that stand already, for rows that a new shard holds too: what is carried over is not inferred again.

So a changed file costs its own rows and not those of its neighbours in a bundle, and `hfbatch retry` costs the rows
that failed. An object says in its footer which rows it holds; rows are the same when file, fingerprint and number are.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch.ledger import Ledger
from hfbatch.records import data_name, staged_name
from hfbatch.sequences import Array

FOOTER, ROWS = b"hfbatch", b"hfbatch.rows"  # keys of a Parquet footer: the Receipt, and which rows the object holds

Pieces: TypeAlias = Sequence[tuple[str, str, int, int]]  # (file, fingerprint, first row, row after the last)


@dataclass(frozen=True)
class Held:
    """Which rows of its pieces an object holds, in order: all of them, or those that passed `where`."""

    pieces: Pieces
    numbers: Array  # (rows,) int64, counted over the pieces from 0

    def to_json(self) -> bytes:
        """As it stands in the footer; a filtered shard's rows as a bitmap."""
        total = sum(stop - start for _, _, start, stop in self.pieces)
        passed = None
        if len(self.numbers) != total:
            bits = np.zeros(total, dtype=bool)
            bits[self.numbers] = True
            passed = base64.b85encode(zlib.compress(np.packbits(bits).tobytes())).decode()
        return json.dumps({"pieces": self.pieces, "passed": passed}, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Held:
        """The inverse of `to_json`."""
        content: dict[str, Any] = json.loads(text)
        pieces = [(path, fingerprint, start, stop) for path, fingerprint, start, stop in content["pieces"]]
        total = sum(stop - start for _, _, start, stop in pieces)
        if content["passed"] is None:
            return cls(pieces, np.arange(total, dtype=np.int64))
        packed = np.frombuffer(zlib.decompress(base64.b85decode(content["passed"])), dtype=np.uint8)
        return cls(pieces, np.flatnonzero(np.unpackbits(packed, count=total)).astype(np.int64))

    def place(self, position: int) -> tuple[str, int]:
        """(file, row in it) of the object's row at `position`."""
        number = int(self.numbers[position])
        for path, _, start, stop in self.pieces:
            if number < stop - start:
                return path, start + number
            number -= stop - start
        raise IndexError(f"no piece holds row {position}")


def carried_over(
    ledger: Ledger, base: str, generation: str, pieces: Pieces, retry: bool = False, folder: str = ""
) -> tuple[Array, pa.Table]:
    """The rows of shard `base` that `pieces` hold too: their numbers (rows,) counted over `pieces`, and their results.

    With `retry` without those that failed. Nothing where the object is gone: then all rows are inferred. `folder`: of
    both shards, whose files are the same.
    """
    table = _read(ledger, data_name(base, generation, folder))
    if table is None:
        return np.zeros(0, dtype=np.int64), pa.table({})
    held = Held.from_json(table.schema.metadata[ROWS])
    numbers = renumbered(held, pieces)
    wanted = numbers >= 0
    if retry:
        wanted &= np.asarray(table["error"].is_null())
    at = np.flatnonzero(wanted)
    return numbers[at], table.take(at)


def renumbered(held: Held, pieces: Pieces) -> Array:
    """(rows,) int64: the number over `pieces` of each row that `held` has; -1 for those that no piece holds."""
    renumbered = np.full(len(held.numbers), -1, dtype=np.int64)
    first = 0
    for path, fingerprint, start, stop in held.pieces:
        mine = (held.numbers >= first) & (held.numbers < first + stop - start)
        rows, at = held.numbers[mine] - first + start, np.flatnonzero(mine)
        offset = 0
        for other, version, low, high in pieces:
            if (other, version) == (path, fingerprint):
                shared = (rows >= low) & (rows < high)
                renumbered[at[shared]] = rows[shared] - low + offset
            offset += high - low
        first += stop - start
    return renumbered


def _read(ledger: Ledger, name: str) -> pa.Table | None:
    for place in (name, staged_name(name)):
        if ledger.store.size(place) is not None:
            with ledger.store.open_input(place) as stream:
                return pq.ParquetFile(stream, page_checksum_verification=True).read()
    return None

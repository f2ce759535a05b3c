"""The rows of an output that failed: which file, which row, what happened. Streamed; a live output will do.

Only objects whose commit record counts errors are opened, and of those the `error` column and the footer are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from hfbatch.carry import ROWS, Held
from hfbatch.errors import Conflict, Damage
from hfbatch.ledger import Ledger
from hfbatch.objects import UNREADABLE
from hfbatch.records import Agreed, Receipt
from hfbatch.shards import Shard
from hfbatch.status import known_output


@dataclass(frozen=True)
class FailedRow:
    """A row that could not be predicted."""

    file: str  # as the job file names it
    row: int  # in that file, counted from 0
    code: str
    message: str


def failed_rows(output: str, code: str | None = None) -> Iterator[FailedRow]:
    """The failed rows in the order of the input; with `code` only those that failed so.

    A row that is just being tried again counts as it did before. Raises SpecError when no run ever wrote there, Damage
    when an object is gone or cannot be read.
    """
    ledger, agreed = known_output(output)
    for shard, receipt in _with_errors(ledger, agreed):
        if code is None or receipt.errors.get(code):
            yield from (row for row in _read(ledger, agreed, shard, receipt) if code in (None, row.code))


def count_failed(output: str) -> dict[str, int]:
    """How many rows failed by code, most first; from the commit records alone. Raises what `failed_rows` does."""
    total = Counter[str]()
    for _, receipt in _with_errors(*known_output(output)):
        total.update(receipt.errors)
    return dict(total.most_common())


def _with_errors(ledger: Ledger, agreed: Agreed) -> list[tuple[Shard, Receipt]]:
    """The shards in whose rows there are errors, with the record that says so: the shard's, or that of its base."""
    committed = ledger.committed(agreed.generation)
    standing = {shard.id if shard.id in committed else shard.base or shard.id: shard for shard in agreed.shards}
    receipts = ledger.receipts(agreed.generation, standing)
    return [(standing[receipt.shard], receipt) for receipt in receipts if receipt.failed]


def _read(ledger: Ledger, agreed: Agreed, shard: Shard, receipt: Receipt) -> Iterator[FailedRow]:
    """The failed rows of one object that `shard` holds still."""
    place = ledger.place(receipt)
    if place is None:
        if ledger.agreed() != agreed:
            raise Conflict(f"{ledger.store.url()}: another run has just changed it; run this again")
        raise Damage(f"{ledger.store.url(receipt.data or '')}: is gone; `hfbatch repair` makes it again")
    pieces = {piece.path: range(piece.start, piece.stop) for piece in shard.pieces}
    try:
        with ledger.store.open_input(place) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            held, first = Held.from_json(file.metadata.metadata[ROWS]), 0
            for batch in file.iter_batches(columns=["error"]):
                for position in np.flatnonzero(batch["error"].is_valid()):
                    path, row = held.place(first + int(position))
                    code, _, message = batch["error"][int(position)].as_py().partition(": ")
                    if row in pieces.get(path, ()):
                        yield FailedRow(path, row, code, message)
                first += len(batch)
    except UNREADABLE as error:
        raise Damage(f"{ledger.store.url(place)}: is damaged ({error}); `hfbatch repair` makes it again") from error

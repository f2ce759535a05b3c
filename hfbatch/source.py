"""Shards -> blocks of rows: each shard becomes one Arrow table whose rows carry their number, and the shard's ticket.

Read by Ray tasks; memory is that of one shard, whatever the size of the file.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray.data

from hfbatch import columns as col
from hfbatch.carry import Pieces, carried_over
from hfbatch.formats import FileRef
from hfbatch.job import Job
from hfbatch.ledger import Ledger
from hfbatch.reading import numbered_batches
from hfbatch.sequences import Array
from hfbatch.shards import Shard
from hfbatch.store import open_store


def dataset(shards: Sequence[Shard], files: Mapping[str, FileRef]) -> ray.data.Dataset:
    """One row and one block a shard, in order; `ReadShard` turns it into the shard's rows."""
    items = []
    for shard in shards:
        refs = [files[piece.path].part(piece.start, piece.stop) for piece in shard.pieces]
        items.append({"shard": pickle.dumps((shard, refs))})
    return ray.data.from_items(items, override_num_blocks=len(items))


class ReadShard:
    """A callable of blocks: a packed shard in, its rows out."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """One table a shard, with row numbers, an empty error column and the ticket."""
        for packed in block["shard"].to_pylist():
            shard, refs = pickle.loads(packed)
            yield self.read(shard, refs)

    def read(self, shard: Shard, refs: Sequence[FileRef]) -> pa.Table:
        """The shard's rows that pass `where`, but those whose results are carried over.

        Where that leaves none, a single row stands for the shard.
        """
        started = time.perf_counter()
        batches = list(numbered_batches(self.job, shard.pieces, refs))
        schema = self.job.input_schema.append(pa.field(col.ROW, pa.int64()))
        table = pa.Table.from_batches(batches, schema=schema)
        numbers = table[col.ROW].to_numpy()
        pieces = [(piece.path, piece.fingerprint, piece.start, piece.stop) for piece in shard.pieces]
        known = self._known(shard, pieces)
        if len(known):
            table = table.filter(pa.array(~np.isin(numbers, known)))
        ticket = col.Ticket(
            shard=shard.id,
            rows=len(table),
            digest=col.digest(numbers),
            pieces=pieces,
            stats={"read_s": time.perf_counter() - started, "read_bytes": table.nbytes},
            carried=len(numbers) - len(table),
            base=shard.base,
            retry=shard.retry,
            staged=shard.staged,
            folder=shard.folder,
        )
        if not len(table):
            nothing = {entry.name: pa.nulls(1, entry.type) for entry in self.job.input_schema}
            table = pa.table({**nothing, col.ROW: pa.array([col.EMPTY_ROW], pa.int64())}, schema=schema)
        table = table.append_column(col.ERROR, pa.nulls(len(table), pa.string()))
        return ticket.on(table.combine_chunks())

    def _known(self, shard: Shard, pieces: Pieces) -> Array:
        """Numbers of the rows that need no inference."""
        if shard.base is None:
            return np.zeros(0, dtype=np.int64)
        ledger = Ledger(open_store(self.job.output))
        return carried_over(ledger, shard.base, self.job.generation, pieces, shard.retry, shard.folder)[0]

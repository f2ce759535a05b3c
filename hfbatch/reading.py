"""Pieces of files -> record batches of the rows that pass `where`, each with its number.

What a run reads shard by shard (source.py) and what looks at a few rows beforehand (sample.py, previewing.py) go
through here, so that both see the same rows in the same types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from hfbatch import columns as col
from hfbatch.formats import FileRef, read_rows
from hfbatch.job import Job
from hfbatch.limit import matches
from hfbatch.sequences import Array
from hfbatch.shards import Piece


def numbered_batches(
    job: Job, pieces: Sequence[Piece], refs: Sequence[FileRef], schema: pa.Schema | None = None
) -> Iterator[pa.RecordBatch]:
    """The columns of `schema` (default: job.input_schema) and ROW, which counts the rows of `pieces` before `where`.

    `refs`: the file of each piece, or the part of it that holds the piece. `schema` must hold what `where` reads.
    """
    schema, number = job.input_schema if schema is None else schema, 0
    numbered = schema.append(pa.field(col.ROW, pa.int64()))
    for piece, ref in zip(pieces, refs, strict=True):
        for batch in read_rows(ref, piece.start, piece.stop, schema.names):
            rows: Array = np.arange(number, number + len(batch), dtype=np.int64)
            number += len(batch)
            if job.where is not None:
                kept = matches(batch, job.where, schema)
                batch, rows = batch.take(pa.array(kept)), rows[kept]
            arrays = [batch[entry.name].cast(entry.type) for entry in schema]
            yield pa.RecordBatch.from_arrays([*arrays, pa.array(rows)], schema=numbered)

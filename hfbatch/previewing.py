"""The first rows of a job through the real model, in this process; nothing is written anywhere.

The rows are those that a run would put first: in the order of the input, and of those that `where` lets through.
"""

from __future__ import annotations

from itertools import accumulate

import pyarrow as pa

from hfbatch import columns as col
from hfbatch.carry import Pieces
from hfbatch.inprocess import InProcess
from hfbatch.planner import Plan
from hfbatch.reading import numbered_batches


def preview_plan(plan: Plan, rows: int) -> pa.Table:
    """The output of the first `rows` rows, with the columns that a run would write; `run_id` is empty.

    What stands in the output plays no part. No model is loaded where there are no rows. Raises SpecError where the
    weights do not serve the task, StorageError where the input cannot be read.
    """
    read, pieces = first_rows(plan, rows)
    return InProcess(plan)(read, pieces) if len(read) else plan.job.output_schema.empty_table()


def first_rows(plan: Plan, rows: int) -> tuple[pa.Table, Pieces]:
    """The first `rows` rows of the input that pass `where`, with ROW, and the pieces that it counts over."""
    pieces = [piece for shard in plan.shards for piece in shard.pieces]
    refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in pieces]
    left, found = rows, list[pa.RecordBatch]()
    for batch in numbered_batches(plan.job, pieces, refs):
        found.append(batch.slice(0, left))
        left -= len(found[-1])
        if left <= 0:
            break
    table = pa.Table.from_batches(found, schema=plan.job.input_schema.append(pa.field(col.ROW, pa.int64())))
    last = table[col.ROW][-1].as_py() if len(table) else -1
    ends = accumulate(piece.rows for piece in pieces)
    used = [piece for piece, end in zip(pieces, ends, strict=True) if end - piece.rows <= last]
    return table, [(piece.path, piece.fingerprint, piece.start, piece.stop) for piece in used]

"""Rows whose result is there already: that of an equal row, in the block or in a committed object. No model sees them.

Before a step's model, `Reuse` finds them by a hash of what the step reads (hashing.py) and marks them; after it,
`settled` gives them what the others made, errors too. In between they are rows without sequences, as rows with an error
are. What two processes have in hand at the same time may be inferred twice; that costs, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch import columns as col
from hfbatch import known
from hfbatch.hashing import hash_rows
from hfbatch.recent import Recent, asked_for, recent
from hfbatch.sequences import Array
from hfbatch.tasks.base import KEY, Task

if TYPE_CHECKING:
    from hfbatch.job import Job, Step


@dataclass
class Reuse:
    """What one step may do without inferring. Picklable; remembers the rows of the shard it saw last."""

    step: Step
    output: str
    rows: bool  # equal rows of the block, too
    recall: str | None  # results of committed objects: "" of all, else of all but this generation's; None: of none
    _owners: dict[bytes, int] = field(default_factory=dict)  # hash -> number of the first such row of the shard
    _shard: str = ""

    def __call__(self, table: pa.Table, rows: pa.Table, good: Array, task: Task) -> tuple[pa.Table, Array]:
        """The block with what is known of it, and those of the rows `good` (indices) that are left for the model.

        `rows`: what the task reads. Adds HASH, SAME and the KNOWN columns.
        """
        if task.keyed and not task.random:
            rows = rows.drop_columns([KEY])
        rows = rows.take(pa.array(good)) if rows.num_columns else rows.slice(0, len(good))  # `take` loses their number
        hashes, numbers = hash_rows(rows), table[col.ROW].to_numpy()
        same: Array = np.full(len(table), -1, dtype=np.int64)
        table = self._recalled(table, good, hashes, same)
        if self.rows:
            self._find_owners(col.ticket_of(table).shard, good, numbers, hashes, same)
        whole = np.full(len(table), -1, dtype=np.int64)
        whole[good] = np.arange(len(good))
        table = col.with_column(table, col.HASH, hashes.take(pa.array(whole, mask=whole < 0)))
        return col.with_column(table, col.SAME, pa.array(same, mask=same < 0)), good[same[good] < 0]

    def _recalled(self, table: pa.Table, good: Array, hashes: pa.Array, same: Array) -> pa.Table:
        """The block with the results that stand already; their rows in `same` are their own."""
        found, results = self._found(hashes)
        if not len(found):
            return table
        same[good[found]] = table[col.ROW].to_numpy()[good[found]]
        source = np.full(len(table), -1, dtype=np.int64)
        source[good[found]] = np.arange(len(found))
        results = results.take(pa.array(source, mask=source < 0))
        for name in results.column_names:
            table = col.with_column(table, col.KNOWN + name, results[name])
        return table

    def _found(self, hashes: pa.Array) -> tuple[Array, pa.Table]:
        """Which of `hashes` have a result elsewhere, as indices, and these; of this process first."""
        step, schema = self.step, known.results_schema(self.step.writes)
        found, made = np.zeros(0, dtype=np.int64), schema.empty_table()
        if self.rows:
            found, made = recent(step.generation).of(hashes, schema)
        if self.recall is None:
            return found, made
        left = np.setdiff1d(np.arange(len(hashes)), found)
        standing = known.results(self.output, step.generation, self.recall or None)
        others, more = standing.of(hashes.take(pa.array(left)), step.writes)
        return np.concatenate([found, left[others]]), pa.concat_tables([made, more])

    def _find_owners(self, shard: str, good: Array, numbers: Array, hashes: pa.Array, same: Array) -> None:
        """In `same`, for each row that another of the shard equals, the number of the first such row."""
        if shard != self._shard:
            self._owners, self._shard = {}, shard
        for row, digest in zip(good.tolist(), hashes.to_pylist(), strict=True):
            if same[row] < 0:
                owner = self._owners.setdefault(digest, int(numbers[row]))
                if owner != numbers[row]:
                    same[row] = owner


def reuse_of(job: Job, step: Step) -> Reuse | None:
    """How `step` of `job` goes about it; None where nothing is to be remembered."""
    if not job.remembers or step not in job.steps:  # of what a rule asks a model, nothing is kept
        return None
    recall = None if job.afresh else "" if job.dedupe else job.generation
    return Reuse(step, job.output, job.dedupe and not job.afresh, recall)


def inferred(table: pa.Table) -> Array:
    """(rows,) bool: which rows are the model's; those that are not have their result from another row."""
    if col.SAME not in table.column_names:
        return np.ones(len(table), dtype=bool)
    return np.asarray(table[col.SAME].is_null())


def settled(step: Step, table: pa.Table, made: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """The block and what its step made, with results for the rows that no model saw; and stats of these.

    `made` (rows,) has nulls for them. The block gets the step's KNOWS, and RAN.
    """
    if col.HASH not in table.column_names:
        return table, made, {}
    owner, recalled = _owners(table)
    pick = pa.array(owner + len(table) * recalled)  # of what was made, or behind it of what was recalled
    tokens = pa.chunked_array(
        [*_column(table, col.TOKENS, pa.int32()).chunks, *_recalled(table, known.TOKENS, pa.int32()).chunks]
    )
    tokens = pc.fill_null(tokens.take(pick), 0)
    others = np.flatnonzero(~inferred(table))
    if len(others):
        recalled_columns = [_recalled(table, entry.name, entry.type) for entry in made.schema]
        there = pa.Table.from_arrays(recalled_columns, schema=made.schema)
        made = pa.concat_tables([made, there]).take(pick)
        errors = pc.coalesce(table[col.ERROR], table[col.ERROR].take(pa.array(owner)))
        table = col.with_column(table, col.ERROR, errors)
    knows = _knows(table, tokens)
    if (kept := asked_for(step.generation)) is not None:
        _keep(kept, made, knows, inferred(table))
    table = col.with_column(table, col.KNOWS + step.name, knows)
    table = col.with_column(table, col.RAN, _ran(table, pa.array(owner), recalled))
    return table, made, {"reused": len(others), "saved_tokens": int(tokens.to_numpy()[others].sum())}


def _owners(table: pa.Table) -> tuple[Array, Array]:
    """(rows,) the index of the row whose result each has, mostly its own; and whether that one's is a recalled one."""
    numbers, same = table[col.ROW].to_numpy(), pc.fill_null(table[col.SAME], -1).to_numpy()
    owner, order, others = np.arange(len(table)), np.argsort(numbers), np.flatnonzero(same >= 0)
    owner[others] = order[np.minimum(np.searchsorted(numbers[order], same[others]), len(order) - 1)]
    if (numbers[owner[others]] != same[others]).any():
        raise AssertionError("a row has its result from one of another block")
    return owner, (same == numbers)[owner]


def _keep(kept: Recent, made: pa.Table, knows: pa.Array, inferred: Array) -> None:
    """Let the next blocks know what was inferred."""
    rows = pa.array(np.flatnonzero(np.asarray(knows.is_valid()) & inferred))
    hashes, tokens = (knows.field(name).take(rows) for name in ("hash", "tokens"))
    results = made.take(rows).append_column(known.RUN, pa.nulls(len(rows), pa.string()))
    kept.add(hashes, results.append_column(known.TOKENS, tokens))


def _knows(table: pa.Table, tokens: pa.ChunkedArray) -> pa.Array:
    """(rows,) known.ROW: null where the row has an error, or is left out."""
    hashes, failed = table[col.HASH].combine_chunks(), table[col.ERROR].is_valid().combine_chunks()
    absent = pc.or_(failed, hashes.is_null())
    return pa.StructArray.from_arrays([hashes, tokens.combine_chunks()], fields=list(known.ROW), mask=absent)


def _ran(table: pa.Table, owner: pa.Array, recalled: Array) -> pa.ChunkedArray:
    """(rows,) string: of the runs that inferred what the row has so far the last; null: this one; empty: none."""
    before = table[col.RAN] if col.RAN in table.column_names else pa.repeat(pa.scalar(""), len(table))
    then = pc.max_element_wise(before, _recalled(table, known.RUN, pa.string()).take(owner), skip_nulls=False)
    now = pc.if_else(pa.array(recalled), then, pa.scalar(None, pa.string()))
    return pc.if_else(pa.array(col.idle(table)), before, now)


def _recalled(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    return _column(table, col.KNOWN + name, kind)


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A column; nulls where the block has none of that name."""
    return table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table), kind)])

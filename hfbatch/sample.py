"""Some rows of a plan, spread evenly over what there is to infer, and what they say of all the others.

Drawn as short runs of neighbours, one in each of RUNS equal stretches: the seed is the plan's, so the same plan shows
the same figures. Of a large row group that a stretch holds whole only the head is read, as Parquet cannot be decoded
from its middle. How far the runs differ says how far an estimate may be off.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from hfbatch import columns as col
from hfbatch.batch import pack_by_length, padded_tokens
from hfbatch.histograms import length_bins
from hfbatch.job import Job
from hfbatch.planner import Plan
from hfbatch.preprocess import Preprocess, begun
from hfbatch.reading import numbered_batches
from hfbatch.sequences import SHAPE, Array, Ragged, Sequences
from hfbatch.shards import Piece
from hfbatch.where import columns_of

RUNS = 40  # stretches of the input, each with a run of neighbours in it
HEAD, HEAD_BYTES = 4096, 8 << 20  # of a row group: how deep a run begins in one that its stretch holds whole
MOST_BYTES = 256 << 20  # of all rows drawn: of photographs there are fewer than were asked for
MOST_READ = 64  # times the rows wanted are read at most, where `where` lets few through
NAIVE_ROWS = 32  # of a batch in arrival order, as one would write it by hand
_AT_ONCE, _LARGE_AT_ONCE = 256, 16  # rows tokenised together; of images and sound
_CERTAIN = 1.96  # standard errors: 95 % of estimates lie that close


@dataclass(frozen=True)
class Sample:
    """Rows drawn from a plan."""

    table: pa.Table  # what the task reads, ROW, ERROR and the ticket, as the source gives a shard
    run: Array  # (rows,) int64: which run of neighbours a row is of
    runs: int
    read: int  # rows before `where`
    population: int  # rows before `where` that it stands for
    waiting: bool  # these are the rows that a run would infer; else nothing is left, and it stands for all rows

    @property
    def exact(self) -> bool:
        """Whether it holds all rows that there are."""
        return self.read == self.population


class Look(BaseModel):
    """What a sample shows, and what it says of all rows that it stands for."""

    model_config = ConfigDict(frozen=True)

    rows_read: int  # before `where`
    rows: int  # that passed
    rows_skipped: int  # committed: a run infers them no more
    rows_to_do: int  # that a run would infer, after `where`; an estimate, unless all rows were read
    tokens: int  # that the model would see of them: an estimate
    tokens_spread: int  # how far that may be off, with 95 % certainty
    tokens_mean: float  # of a sequence, as the next two
    tokens_median: float
    tokens_longest: int
    token_lengths: list[int]  # sequences of the sample of up to 1, 2, 4, 8 ... tokens; the 16th: all that are longer
    truncated_share: float | None  # of rows; None: the task does not cut
    duplicate_share: float  # of rows whose input another row of the sample had before
    errors: dict[str, int]  # code -> rows of the sample that fail before the model sees them
    batch_tokens: int  # the budget that the next but one counts with
    padding_naive: float | None  # of what batches of 32 in arrival order hold; None: nothing is ever padded
    padding_budget: float | None  # of what hfbatch's batches hold; layers without padding see none of it


def draw(plan: Plan, rows: int) -> Sample:
    """About `rows` rows that pass `where`, or all where there are fewer. Reads input files only."""
    waiting, rows = bool(plan.todo), min(rows, max(RUNS, int(MOST_BYTES / _row_bytes(plan))))
    pieces = _whole(piece for shard in (plan.todo or plan.shards) for piece in shard.pieces)
    population, wanted = sum(piece.rows for piece in pieces), rows
    while True:
        runs = _spread(plan, pieces, wanted)
        table, numbers = _read(plan, [piece for run in runs for piece in run])
        read = sum(piece.rows for run in runs for piece in run)
        if len(table) >= rows / 2 or read >= population or wanted >= MOST_READ * rows:
            break
        wanted *= 4
    ends = list(accumulate(sum(piece.rows for piece in run) for run in runs))
    return Sample(table, np.searchsorted(ends, numbers, side="right"), len(runs), read, population, waiting)


def _whole(pieces: Iterable[Piece]) -> list[Piece]:
    """With neighbours of a file as one, as if no shard had been cut."""
    made = list[Piece]()
    for piece in pieces:
        if made and (made[-1].path, made[-1].stop) == (piece.path, piece.start):
            made[-1] = replace(made[-1], stop=piece.stop)
        else:
            made.append(piece)
    return made


def _row_bytes(plan: Plan) -> float:
    """Of the input in the mean, all its columns counted."""
    blocks = [block for file in plan.files.values() for block in file.blocks]
    return max(1.0, sum(block.nbytes for block in blocks) / max(1, sum(block.rows for block in blocks)))


def _spread(plan: Plan, pieces: Sequence[Piece], rows: int) -> list[list[Piece]]:
    """Runs of neighbours, in order, that share no row."""
    total = sum(piece.rows for piece in pieces)
    if total <= rows:
        return [[piece] for piece in pieces]
    ends, chance = list(accumulate(piece.rows for piece in pieces)), random.Random(plan.job.generation)
    count = min(RUNS, rows)
    length, runs = rows // count, list[list[Piece]]()
    for number in range(count):
        low, high = total * number // count, total * (number + 1) // count
        start = chance.randrange(low, max(low, high - length) + 1)
        index = bisect_right(ends, start)
        depth = start - (ends[index] - pieces[index].rows)
        start -= _too_deep(plan, pieces[index], depth, most=min(depth, start - low))
        runs.append(list(_cut(pieces, ends, start, start + length)))
    return runs


def _too_deep(plan: Plan, piece: Piece, depth: int, most: int) -> int:
    """How many rows to go back, at most `most`, towards the head of the block that holds row `depth` of `piece`."""
    first, row = 0, piece.start + depth
    for block in plan.files[piece.path].blocks:
        if row < first + block.rows:
            within, head = row - first, max(1, min(HEAD, HEAD_BYTES * block.rows // max(1, block.nbytes)))
            return within - within % head if within <= most else 0
        first += block.rows
    return 0


def _cut(pieces: Sequence[Piece], ends: Sequence[int], start: int, stop: int) -> Iterator[Piece]:
    """Rows [start, stop), counted over all `pieces`."""
    for index in range(bisect_right(ends, start), len(pieces)):
        piece, first = pieces[index], ends[index] - pieces[index].rows
        if first >= stop:
            return
        low, high = max(start, first) - first, min(stop, ends[index]) - first
        yield replace(piece, start=piece.start + low, stop=piece.start + high)


def _read(plan: Plan, pieces: Sequence[Piece]) -> tuple[pa.Table, Array]:
    """The rows of `pieces` as a block, and their numbers (rows,)."""
    job = plan.job
    first = job.steps[0]
    filters = [where for where in (job.where, first.where) if where is not None]
    wanted = {*first.reads.values(), *(name for where in filters for name in columns_of(where))}
    schema = pa.schema([entry for entry in job.input_schema if entry.name in wanted] or [job.input_schema.field(0)])
    refs = [plan.files[piece.path].part(piece.start, piece.stop) for piece in pieces]
    numbered = schema.append(pa.field(col.ROW, pa.int64()))
    table = pa.Table.from_batches(numbered_batches(job, pieces, refs, schema), schema=numbered).combine_chunks()
    places = [(piece.path, piece.fingerprint, piece.start, piece.stop) for piece in pieces]
    # With a base, as rows that are tried again have: a sample that fails alike is no reason to give up.
    ticket = col.Ticket("sample", len(table), "", places, base="sample")
    return ticket.on(table.append_column(col.ERROR, pa.nulls(len(table), pa.string()))), table[col.ROW].to_numpy()


def look_at(plan: Plan, sample: Sample, batch_tokens: int = 0) -> Look:
    """Tokenise the sample as the run would for its first step. `batch_tokens`: of a batch, where a run has found it."""
    seen = _Seen(plan.job)
    size = _LARGE_AT_ONCE if seen.preprocess.task.streams else _AT_ONCE
    for start in range(0, len(sample.table), size):
        seen.add(sample.table, np.arange(start, min(start + size, len(sample.table))))
    lengths, owners = seen.joined()
    task, budget = seen.preprocess.task, plan.machine.max_batch_tokens
    default = task.batch_tokens[plan.machine.gpus_per_actor not in ("auto", 0)]
    budget = batch_tokens or (default if budget == "auto" else budget)
    rows = len(sample.table)
    tokens, spread = _estimate(sample, np.bincount(owners, weights=lengths, minlength=rows))
    return Look(
        rows_read=sample.read,
        rows=rows,
        rows_skipped=sum(shard.rows for shard in plan.shards if shard.id in plan.done),
        rows_to_do=round(rows * sample.population / max(1, sample.read)) if sample.waiting else 0,
        tokens=tokens,
        tokens_spread=spread,
        tokens_mean=round(float(lengths.mean()), 2) if len(lengths) else 0.0,
        tokens_median=float(np.median(lengths)) if len(lengths) else 0.0,
        tokens_longest=int(lengths.max(initial=0)),
        token_lengths=length_bins(lengths),
        truncated_share=round(seen.truncated / max(1, rows), 4) if seen.cuts else None,
        duplicate_share=round(seen.repeated / max(1, rows), 4),
        errors=dict(seen.errors.most_common()),
        batch_tokens=budget,
        padding_naive=_padding(lengths, _in_order(len(lengths))) if seen.pads else None,
        padding_budget=_padding(lengths, pack_by_length(lengths, budget, plan.machine.max_batch_rows))
        if seen.pads
        else None,
    )


class _Seen:
    """What is kept of rows that went through preprocess: numbers, and nothing of the rows themselves."""

    def __init__(self, job: Job) -> None:
        self.step = replace(job.steps[0], redacted={})  # rules are not applied, so that their models need not be there
        self.preprocess = Preprocess(self.step)
        self.lengths, self.owners = list[Array](), list[Array]()
        self.errors, self.inputs = Counter[str](), set[bytes]()
        self.truncated = self.repeated = 0
        self.cuts = self.pads = False

    def add(self, table: pa.Table, index: Array) -> None:
        """The rows `index` of `table`."""
        from hfbatch.layout import input_lengths  # torch

        rows = col.part(table, index)
        for values in rows.select(sorted(set(self.step.reads.values()))).to_pylist():
            digest = hashlib.blake2b(pickle.dumps(values, protocol=5), digest_size=16).digest()
            self.repeated += digest in self.inputs
            self.inputs.add(digest)
        made = self.preprocess(begun(self.step, rows))
        self.errors.update(error.partition(":")[0] for error in made[col.ERROR].drop_null().to_pylist())
        sequences = col.sequences_of(made, col.INPUT)
        if not len(sequences):
            return
        self.lengths.append(np.asarray(input_lengths(sequences, self.preprocess.task)))
        self.owners.append(index[sequences.row])
        if "truncated" in sequences.columns:
            self.cuts = True
            self.truncated += len(np.unique(sequences.row[sequences.dense("truncated").astype(bool)]))
        self.pads = self.pads or _is_padded(sequences, self.preprocess.task.inputs)

    def joined(self) -> tuple[Array, Array]:
        """(sequences,) tokens of each, and the row of the sample that it is of."""
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *self.lengths]), np.concatenate([none, *self.owners])


def _is_padded(sequences: Sequences, inputs: Sequence[str]) -> bool:
    """Whether a batch of them is as long as its longest: text is, pictures of one shape are not."""
    return any(
        isinstance(column, Ragged) and name in inputs and name + SHAPE not in sequences.columns
        for name, column in sequences.columns.items()
    )


def _estimate(sample: Sample, tokens: Array) -> tuple[int, int]:
    """Tokens of all rows that the sample stands for, and how far off that may be; `tokens` (rows,)."""
    if sample.exact or not sample.read:
        return int(tokens.sum()), 0
    scale, left = sample.population / sample.read, 1 - sample.read / sample.population
    of_runs = np.bincount(sample.run, weights=tokens, minlength=sample.runs)
    error = math.sqrt(sample.runs * left) * float(of_runs.std(ddof=1)) if sample.runs > 1 else float(tokens.sum())
    return round(scale * float(tokens.sum())), round(_CERTAIN * scale * error)


def _in_order(sequences: int) -> list[Array]:
    return np.array_split(np.arange(sequences), range(NAIVE_ROWS, sequences, NAIVE_ROWS))


def _padding(lengths: Array, batches: Sequence[Array]) -> float:
    padded = sum(padded_tokens(batch, lengths) for batch in batches)
    return round(1 - int(lengths.sum()) / padded, 4) if padded else 0.0

"""A sample of committed rows, inferred again here from what their lineage says, and compared column by column.

Without Ray: the model runs in this process, with batches as usual. Text and whole numbers must be equal; floating
numbers may differ as they do from batch to batch and device to device.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch import columns as col
from hfbatch.again import Overrides, spec_of
from hfbatch.carry import ROWS, Held
from hfbatch.errors import Damage
from hfbatch.examine import Examined, Flaw
from hfbatch.formats import read_rows
from hfbatch.inprocess import InProcess
from hfbatch.ledger import Ledger
from hfbatch.objects import UNREADABLE
from hfbatch.planner import Plan, check_no_conflict, make_plan
from hfbatch.records import Receipt
from hfbatch.spec import Machine
from hfbatch.status import known_output
from hfbatch.store import open_store

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # absolute plus relative, by the model's dtype
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Rechecked:
    """What a sample showed."""

    seed: int
    rows: int  # inferred again
    unchecked: tuple[str, ...]  # files that are gone or have changed since, with how many rows of the sample
    flaws: tuple[Flaw, ...]

    def added_to(self, found: Examined) -> Examined:
        """All flaws together."""
        return replace(found, flaws=found.flaws + self.flaws)


@dataclass(frozen=True)
class Sampled:
    """Some rows of one object: what was read for them, and what is committed."""

    url: str  # of the object
    shard: str
    pieces: list[tuple[str, str, int, int]]  # one a row
    inputs: pa.Table  # the job's input schema
    committed: pa.Table


def recheck_output(
    output: str,
    rows: int,
    seed: int | None,
    machine: Machine,
    overrides: Overrides = None,
    trust_remote_code: bool = False,
) -> Rechecked:
    """`recheck` with the job that made `output`. Raises what `make_plan` does too."""
    _, agreed = known_output(output)
    spec = spec_of(output, agreed.generation, overrides)
    return recheck(make_plan(spec, machine, trust_remote_code=trust_remote_code), rows, seed)


def recheck(plan: Plan, rows: int, seed: int | None = None) -> Rechecked:
    """Infer `rows` committed rows again, or all where there are fewer. `plan` is of the output's own job.

    Conflict when that job would give other values by now. Memory is that of the sample.
    """
    check_no_conflict(plan)
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    ledger = Ledger(open_store(plan.job.output))
    committed = ledger.committed(plan.job.generation)
    ids = [shard.id for shard in (plan.agreed.shards if plan.agreed else ()) if shard.id in committed]
    chosen = _chosen(ledger.receipts(plan.job.generation, ids), rows, seed)
    unchecked: defaultdict[str, int] = defaultdict(int)
    samples = [each for receipt, at in chosen if (each := _sampled(plan, ledger, receipt, at, unchecked))]
    infer = InProcess(plan) if samples else None
    flaws = [flaw for block in _blocks(samples) if infer for flaw in _compared(plan, block, infer)]
    lost = tuple(f"{path} ({count:,} of the rows)" for path, count in sorted(unchecked.items()))
    return Rechecked(seed, sum(len(each.inputs) for each in samples), lost, tuple(flaws))


def _chosen(receipts: Sequence[Receipt], rows: int, seed: int) -> list[tuple[Receipt, list[int]]]:
    """The objects and positions in them that the seed picks, in the plan's order."""
    ends = list(accumulate(receipt.rows for receipt in receipts))
    total = ends[-1] if ends else 0
    picked: defaultdict[int, list[int]] = defaultdict(list)
    for number in sorted(random.Random(seed).sample(range(total), min(rows, total))):
        index = bisect_right(ends, number)
        picked[index].append(number - ends[index] + receipts[index].rows)
    return [(receipts[index], positions) for index, positions in picked.items()]


def _sampled(
    plan: Plan, ledger: Ledger, receipt: Receipt, positions: Sequence[int], unchecked: defaultdict[str, int]
) -> Sampled | None:
    """The rows at `positions` of one object; those whose input is not what it was are counted in `unchecked`."""
    place = ledger.place(receipt)
    if place is None:
        raise Damage(f"{ledger.store.url(receipt.data or '')}: is gone; `hfbatch repair` makes it again")
    try:
        with ledger.store.open_input(place) as stream:
            table = pq.ParquetFile(stream, page_checksum_verification=True).read()
        held = Held.from_json(table.schema.metadata[ROWS])
    except UNREADABLE as error:
        raise Damage(f"{ledger.store.url(place)}: is damaged ({error}); `hfbatch repair` makes it again") from error
    versions, pieces, kept = {path: version for path, version, _, _ in held.pieces}, [], []
    for position in positions:
        path, row = held.place(position)
        file = plan.files.get(path)
        if file is None or file.file.fingerprint != versions[path]:
            unchecked[path] += 1
            continue
        pieces.append((path, versions[path], row, row + 1))
        kept.append(position)
    if not kept:
        return None
    return Sampled(ledger.store.url(place), receipt.shard, pieces, _inputs(plan, pieces), table.take(kept))


def _inputs(plan: Plan, pieces: Sequence[tuple[str, str, int, int]]) -> pa.Table:
    """(rows,) the input of each of these rows, in order; a file's rows are ascending."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for path, _, row, _ in pieces:
        rows[path].append(row)
    schema, parts = plan.job.input_schema, []
    for path, wanted in rows.items():
        start = wanted[0]
        for batch in read_rows(plan.files[path], start, wanted[-1] + 1, schema.names):
            here = [row - start for row in wanted if start <= row < start + len(batch)]
            parts.append(pa.Table.from_batches([batch]).take(here).cast(schema))
            start += len(batch)
    return pa.concat_tables(parts)


def _blocks(samples: Sequence[Sampled]) -> Iterator[list[Sampled]]:
    """Samples of so many objects together as make a block."""
    block = list[Sampled]()
    for each in samples:
        block.append(each)
        if sum(len(sample.inputs) for sample in block) >= _BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block


def _compared(plan: Plan, block: Sequence[Sampled], infer: InProcess) -> Iterator[Flaw]:
    """What differs in the rows of a block."""
    table = pa.concat_tables([sample.inputs for sample in block])
    table = table.append_column(col.ROW, pa.array(range(len(table)), pa.int64()))
    inferred = infer(table, [piece for sample in block for piece in sample.pieces]).to_pylist()
    rows = (
        (sample, f"{path} row {row}", committed)
        for sample in block
        for (path, _, row, _), committed in zip(sample.pieces, sample.committed.to_pylist(), strict=True)
    )
    tolerance = max(TOLERANCE[step.dtype] for step in plan.job.steps)
    for (sample, place, committed), now in zip(rows, inferred, strict=True):
        for name in plan.job.output_schema.names:
            if name != "run_id" and not _same(name, committed[name], now[name], tolerance):
                what = f"{name}: committed {_short(committed[name])}, inferred {_short(now[name])}"
                fix = f"where no library has changed since, delete {sample.url} and `hfbatch repair` makes it again"
                yield Flaw(place, what, fix, "value", sample.shard)


def _same(name: str, left: Any, right: Any, tolerance: float) -> bool:
    if name == "error" and left is not None and right is not None:
        return bool(left.partition(":")[0] == right.partition(":")[0])  # the rest is a library's, and may change
    if name == "guardrails":  # details have scores in them, as text
        left, right = ([(note["name"], note["action"]) for note in notes or ()] for notes in (left, right))
    return _equal(left, right, tolerance)


def _equal(left: Any, right: Any, tolerance: float) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        same = left == right or (math.isnan(left) and math.isnan(right))
        return same or abs(left - right) <= tolerance + tolerance * abs(right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_equal(a, b, tolerance) for a, b in zip(left, right, strict=True))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_equal(left[key], right[key], tolerance) for key in left)
    return bool(left == right)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

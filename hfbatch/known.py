"""What committed objects know: beside each, for one step of its job, the hash of every row that it has a result of.

    _hfbatch/known/<step8>/<shard>-<gen8>.parquet    hash, tokens: in the order of the rows of the data object

Its footer says of which step (the whole generation), of which object (its name, and a digest of what that says of
itself) and in which columns. So an equal row is found again in another file, in a later run, and after another step
of the job was changed. Nothing rests on it: what is missing, damaged or foreign is told in the log and passed over,
and its rows are inferred again.

Memory: 28 bytes for each row that is known, twice that while runs are merged, and MOST_ROWS rows at most (0.9 GB a
process), the newest first: where 10^8 rows stand, the oldest two thirds would be inferred again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch import columns as col
from hfbatch.access import redact
from hfbatch.carry import FOOTER, ROWS, Held, Pieces, renumbered
from hfbatch.errors import HfbatchError
from hfbatch.hashing import HASH, Index, as_numbers
from hfbatch.records import KNOWN, Receipt, known_name, shard_of, staged_name
from hfbatch.sequences import Array
from hfbatch.store import Store, open_store

if TYPE_CHECKING:
    from hfbatch.job import Job

ABOUT = b"hfbatch.known"  # key of the footer
ROW = pa.struct([("hash", HASH), ("tokens", pa.int32())])  # what is known of a row; null where it has no result
RUN, TOKENS = ".run", ".tokens"  # of results, beside the step's own: which run inferred the row, and what it cost
MOST_ROWS = 1 << 25
MOST_OBJECTS = 64  # that are opened for the rows of one block: those that hold most of them
_AT_ONCE = 16
_FAILURES = (HfbatchError, OSError, ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException, zlib.error)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Of:
    """Whose results an object holds, and where."""

    step: str  # its generation
    columns: Mapping[str, str]  # the step's own name of a column -> the object's
    run: str  # the object's column that says which run inferred a row


@dataclass(frozen=True)
class Known:
    """What the footer of a known-object says."""

    of: Of
    data: str  # name of the object that holds the results
    footer: str  # digest of what that object says of itself

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes], name: str) -> Known:
        """ValueError, LookupError, TypeError: no known-object of this name."""
        said: dict[str, Any] = json.loads(metadata[ABOUT])
        of, data = said["of"], str(said["data"])
        if shard_of(data) != shard_of(name) or not data.startswith("data/"):
            raise ValueError(f"it speaks of {data}")
        return cls(Of(str(of["step"]), dict(of["columns"]), str(of["run"])), data, str(said["footer"]))

    def metadata(self) -> dict[bytes, bytes]:
        """The inverse of `from_metadata`."""
        return {ABOUT: json.dumps(asdict(self)).encode()}


def put(store: Store, receipt: Receipt, known: Known, held: Held, rows: pa.Array) -> None:
    """Write down what the object of `receipt` knows: `rows` (rows,) ROW, those of `held`, in its order."""
    name, written = known_name(known.of.step, receipt.shard, receipt.generation), pa.BufferOutputStream()
    columns = dict(zip(ROW.names, rows.flatten(), strict=True))  # `flatten` knows the struct's own nulls
    table = pa.table(columns).replace_schema_metadata({**known.metadata(), ROWS: held.to_json()})
    pq.write_table(table, written, compression="zstd", use_dictionary=False, write_page_checksum=True)
    with _passing_over(store, name):
        store.put(name, written.getvalue().to_pybytes())


def remember(job: Job, store: Store, block: pa.Table, receipt: Receipt, held: Held, footer: bytes) -> None:
    """Write down what the object of `receipt` knows, for each step that says so in the block: see columns.KNOWS.

    `held`: the object's rows; those that it carried over are known as they were. `footer`: what it says of itself.
    """
    assert receipt.data is not None
    ticket = col.ticket_of(block)
    for step in job.steps:
        parts = [(np.zeros(0, dtype=np.int64), pa.nulls(0, ROW))]
        if ticket.carried and ticket.base is not None:
            parts.append(carried(store, step.generation, ticket.base, receipt.generation, held.pieces))
        if (name := col.KNOWS + step.name) in block.column_names:
            parts.append((block[col.ROW].to_numpy(), block[name].combine_chunks()))  # last: of a row that failed before
        numbers, rows = np.concatenate([own for own, _ in parts]), pa.concat_arrays([own for _, own in parts])
        if not rows.null_count < len(rows):
            continue
        source = np.full(len(held.numbers), -1, dtype=np.int64)
        source[np.searchsorted(held.numbers, numbers)] = np.arange(len(numbers))
        of = Of(step.generation, dict(zip(step.writes.names, step.made, strict=True)), "run_id")
        put(store, receipt, Known(of, receipt.data, digest(footer)), held, rows.take(pa.array(source, mask=source < 0)))


def carried(store: Store, step: str, base: str, generation: str, pieces: Pieces) -> tuple[Array, pa.Array]:
    """What shard `base` knows, for a step, of the rows that `pieces` hold too: their numbers (rows,), and ROW.

    Numbers count over `pieces`. Nothing where nothing can be told.
    """
    name = known_name(step, base, generation)
    with _passing_over(store, name):
        content = store.get(name)
        if content is not None:
            known, held, rows = _read(content, name)
            numbers = renumbered(held, pieces)
            at = np.flatnonzero((numbers >= 0) & (known.of.step == step))
            return numbers[at], rows.take(pa.array(at))
    return np.zeros(0, dtype=np.int64), pa.nulls(0, ROW)


def digest(footer: bytes) -> str:
    """Of what FOOTER says in a data object: with its run and its timings, no other object's is the same."""
    return hashlib.sha256(footer).hexdigest()[:16]


@lru_cache(maxsize=8)
def results(output: str, step: str, generation: str | None) -> Results:
    """The same for all who ask in this process; see Results."""
    return Results(open_store(output), step, generation)


class Results:
    """The results of one step that stand in an output."""

    def __init__(self, store: Store, step: str, generation: str | None) -> None:
        """`step`: its generation. Objects of a job of this `generation` are left out; None: of none."""
        self.store, self.step, self.generation = store, step, generation
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._index, self._seen = Index(), set[str]()
        self._objects = list[tuple[Known, Array]]()  # and tokens (rows,) int32 of each

    def of(self, hashes: pa.Array, schema: pa.Schema) -> tuple[Array, pa.Table]:
        """Which of `hashes` (rows,) HASH have a result, as indices, and these: columns of `schema`, RUN, TOKENS.

        Looks first for what came since the last call. Raises nothing.
        """
        with self._lock:
            self._refresh()
            places, known = self._index.find(as_numbers(hashes)), self._objects
        objects, rows = places >> 32, places & 0xFFFFFFFF
        numbers, counts = np.unique(objects[places >= 0], return_counts=True)
        wanted = [int(number) for number in numbers[np.argsort(-counts, kind="stable")][:MOST_OBJECTS]]
        mine = [np.flatnonzero(objects == number) for number in wanted]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            made = list(pool.map(lambda each, at: self._take(*known[each], rows[at], schema), wanted, mine))
        found = [(at, part) for at, part in zip(mine, made, strict=True) if part is not None]
        index = np.concatenate([np.zeros(0, dtype=np.int64), *(at for at, _ in found)])
        return index, pa.concat_tables([results_schema(schema).empty_table(), *(part for _, part in found)])

    def _refresh(self) -> None:
        """Take in the objects that are new here, those of the newest plan first; all anew once one has gone."""
        with _passing_over(self.store, f"{KNOWN}/{self.step[:8]}"):
            listed = self.store.list(f"{KNOWN}/{self.step[:8]}")
            if not self._seen.issubset(listed):
                self._forget()
            names = [name for name in reversed(listed) if self._is_wanted(name)]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for start in range(0, len(names), _AT_ONCE):
                    part = names[start : start + _AT_ONCE]
                    for name, content in zip(part, pool.map(self.store.get, part), strict=True):
                        self._seen.add(name)
                        self._add(name, content)

    def _is_wanted(self, name: str) -> bool:
        own = self.generation is not None and name.endswith(f"-{self.generation[:8]}.parquet")
        return name not in self._seen and shard_of(name) is not None and not own

    def _add(self, name: str, content: bytes | None) -> None:
        if content is None or len(self._index) >= MOST_ROWS:
            return
        with _passing_over(self.store, name):
            known, _, found = _read(content, name)
            if known.of.step != self.step:  # another that begins with the same eight digits
                return
            rows = np.flatnonzero(np.asarray(found.is_valid()))
            hashes = found.field("hash").take(pa.array(rows))
            self._index.add(as_numbers(hashes), (len(self._objects) << 32) + rows)
            self._objects.append((known, found.field("tokens").fill_null(0).to_numpy()))
            if len(self._index) >= MOST_ROWS:
                _log.warning("%s: over %s rows are known here; older ones are inferred again", name, f"{MOST_ROWS:,}")

    def _take(self, known: Known, tokens: Array, rows: Array, schema: pa.Schema) -> pa.Table | None:
        """The results at `rows` of a data object; None where it is gone, or is not the one that was meant."""
        with _passing_over(self.store, known.data):
            for place in (known.data, staged_name(known.data)):
                if self.store.size(place) is not None:
                    with self.store.open_input(place) as stream:
                        made = _taken(stream, known, rows, schema)
                        return made.append_column(TOKENS, pa.array(tokens[rows])).cast(results_schema(schema))
        return None


def _taken(stream: BinaryIO, known: Known, rows: Array, schema: pa.Schema) -> pa.Table:
    """Only the row groups that are needed are read, and of them only the step's columns."""
    columns = [known.of.columns[name] for name in schema.names] + [known.of.run]
    with pq.ParquetFile(stream, page_checksum_verification=True) as file:
        if digest((file.metadata.metadata or {})[FOOTER]) != known.footer:
            raise ValueError("it was written anew since")
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.unique(np.searchsorted(ends, rows, side="right"))
        firsts = (ends - sizes)[groups]  # of each group, in the object; then in what is read of it
        read = np.cumsum([0, *np.array(sizes)[groups]])[:-1]
        own = np.searchsorted(groups, np.searchsorted(ends, rows, side="right"))
        table = file.read_row_groups(groups.tolist(), columns).select(columns)
    table = table.take(pa.array(rows - firsts[own] + read[own]))
    return table.rename_columns([*schema.names, RUN])


def results_schema(schema: pa.Schema) -> pa.Schema:
    """The step's columns, RUN and TOKENS."""
    return schema.append(pa.field(RUN, pa.string())).append(pa.field(TOKENS, pa.int32()))


def _read(content: bytes, name: str) -> tuple[Known, Held, pa.Array]:
    """What a known-object says; its last part is (rows,) ROW. Raises some of _FAILURES where it is none."""
    with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
        table = file.read()
    metadata = table.schema.metadata or {}
    known, held = Known.from_metadata(metadata, name), Held.from_json(metadata[ROWS])
    columns = [table[part.name].combine_chunks().cast(part.type) for part in ROW]
    if len(held.numbers) != len(table):
        raise ValueError(f"it has {len(table)} rows for {len(held.numbers)}")
    return known, held, pa.StructArray.from_arrays(columns, fields=list(ROW), mask=columns[0].is_null())


@contextmanager
def _passing_over(store: Store, name: str) -> Iterator[None]:
    """What goes wrong inside is told in the log, and that is all."""
    try:
        yield
    except _FAILURES as error:
        why = redact(f"{type(error).__name__}: {error}")
        _log.warning("%s is of no use, so its rows are inferred again (%s)", store.url(name), why)

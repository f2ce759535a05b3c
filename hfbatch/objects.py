"""Is one object what its commit record says? One read, and everything that can be compared is."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch.carry import FOOTER, ROWS, Held
from hfbatch.ledger import Ledger
from hfbatch.records import Receipt
from hfbatch.shards import Shard

# What reading a torn Parquet file or footer raises.
UNREADABLE = (OSError, ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException, zlib.error)


def check_object(
    ledger: Ledger, shard: Shard, receipt: Receipt, columns: Mapping[str, str] | None
) -> tuple[int, str | None]:
    """(bytes read, what is wrong with the object, or None). `receipt` is of `shard`, or of the shard it builds on.

    `columns`: names and types of the generation's columns; None where they are not known.
    """
    if receipt.data is None:
        return 0, f"its record counts {receipt.rows:,} rows and no object" if receipt.rows else None
    place = ledger.place(receipt) or ledger.place(receipt)  # it may have been moved between the two looks of the first
    if place is None:
        return 0, "is gone"
    with ledger.store.open_input(place) as stream:
        content = stream.read()
    if len(content) != receipt.nbytes:
        return len(content), f"has {len(content):,} bytes, its record says {receipt.nbytes:,}"
    if hashlib.sha256(content).hexdigest() != receipt.sha256:
        return len(content), "was changed after it was written (its sha256 does not fit)"
    try:
        return len(content), _check_rows(content, shard, receipt, columns)
    except UNREADABLE as error:
        return len(content), f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]})"


def _check_rows(content: bytes, shard: Shard, receipt: Receipt, columns: Mapping[str, str] | None) -> str | None:
    """The same of an object whose bytes are those that were written."""
    with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
        metadata = file.metadata.metadata or {}
        said, held = json.loads(metadata[FOOTER]), Held.from_json(metadata[ROWS])
        rows, errors = 0, Counter[str]()
        for batch in file.iter_batches():
            rows += len(batch)
            errors.update(text.partition(":")[0] for text in batch["error"].drop_null().to_pylist())
        found = {entry.name: _spelled(str(entry.type)) for entry in file.schema_arrow}
    if (said["shard"], said["generation"]) != (receipt.shard, receipt.generation):
        return f"is of shard {said['shard']}, its record of {receipt.shard}"
    if (rows, len(held.numbers)) != (receipt.rows, receipt.rows):
        return f"has {rows:,} rows, its record says {receipt.rows:,}"
    if errors != Counter(receipt.errors):
        return f"has {errors.total():,} failed rows, its record says {receipt.failed:,}"
    pieces = [(piece.path, piece.fingerprint, piece.start, piece.stop) for piece in shard.pieces]
    if receipt.shard == shard.id and list(held.pieces) != pieces:
        return "holds other rows of the input than the plan says"
    if columns is not None and found != {name: _spelled(kind) for name, kind in columns.items()}:
        return "has other columns than its generation"
    return None


def _spelled(kind: str) -> str:
    """A type as Parquet gives it back: it has a name of its own for what is in a list."""
    return kind.replace("<item: ", "<element: ")

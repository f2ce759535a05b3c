"""One shard's rows -> one committed Parquet object. The commit protocol, on the worker's side:

check rows in == rows out, write to a local spool, reopen and compare, put the object if absent, put the commit
record if absent. An object that is already there is adopted, not overwritten: it was whole when it appeared, and
says in its own footer what it holds.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch import columns as col
from hfbatch.errors import Conflict, ErrorBudgetExceeded, StorageError
from hfbatch.job import Job
from hfbatch.ledger import Ledger, Receipt, data_name
from hfbatch.store import open_store

_FOOTER = b"hfbatch"
ROW_GROUP_ROWS = 16384


class Commit:
    """A callable of blocks: a shard's finished rows in, one row with its receipt out."""

    def __init__(self, job: Job, run_id: str) -> None:
        self.job, self.run_id = job, run_id

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table with the receipt as JSON."""
        started = time.perf_counter()
        ticket = col.ticket_of(table)
        if self.job.errors.policy == "fail" and ticket.rows:
            _refuse_errors(table, ticket)
        rows = in_order(table, ticket, self.job.output_schema)
        receipt = write_shard(rows, ticket, self.job, self.run_id, started)
        return pa.table({"receipt": [receipt.to_json().decode()]})


def in_order(table: pa.Table, ticket: col.Ticket, schema: pa.Schema) -> pa.Table:
    """The output columns in row order. AssertionError if a row of the shard is missing, doubled or foreign."""
    numbers = table[col.ROW].to_numpy()
    order = np.argsort(numbers, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        table, numbers = table.take(order), numbers[order]
    if ticket.rows == 0 and list(numbers) == [col.EMPTY_ROW]:
        table, numbers = table.slice(0, 0), numbers[:0]
    if len(numbers) != ticket.rows or col.digest(numbers) != ticket.digest:
        raise AssertionError(f"shard {ticket.shard}: {ticket.rows} rows were read, {len(numbers)} others arrived")
    return table.select(schema.names).cast(schema)


def write_shard(rows: pa.Table, ticket: col.Ticket, job: Job, run_id: str, started: float) -> Receipt:
    """Commit `rows`. Returns the receipt that stands, an earlier one if this shard was already committed."""
    ledger = Ledger(open_store(job.output))
    errors = Counter(str(error).split(":")[0] for error in rows["error"].drop_null().to_pylist())
    receipt = Receipt(ticket.shard, job.generation, None, len(rows), 0, "", dict(errors), ticket.stats, run_id)
    if not len(rows):
        return ledger.commit(receipt)
    receipt = replace(receipt, data=data_name(ticket.shard, job.generation))
    with tempfile.TemporaryDirectory(prefix="hfbatch-spool-") as spool:
        path = Path(spool) / "shard.parquet"
        _write_parquet(rows, receipt, path)
        content = path.read_bytes()
        receipt = replace(receipt, nbytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        receipt = replace(receipt, stats={**receipt.stats, "write_s": time.perf_counter() - started})
        assert receipt.data is not None
        if not ledger.store.put_if_absent(receipt.data, path):
            receipt = adopted(ledger, receipt)
    return ledger.commit(receipt)


def adopted(ledger: Ledger, receipt: Receipt) -> Receipt:
    """The receipt of the object that already stands where this shard belongs. Conflict if it holds anything else."""
    assert receipt.data is not None
    with ledger.store.open_input(receipt.data) as stream:
        content = stream.read()
    file = pq.ParquetFile(pa.BufferReader(content))
    footer: dict[str, Any] = json.loads((file.metadata.metadata or {}).get(_FOOTER, b"{}"))
    same = (footer.get("shard"), footer.get("generation"), footer.get("rows"), file.metadata.num_rows)
    if same != (receipt.shard, receipt.generation, receipt.rows, receipt.rows):
        raise Conflict(
            f"{ledger.store.url(receipt.data)}: holds other rows than its name says; move it away, run again"
        )
    return Receipt(**{**footer, "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})


def _write_parquet(rows: pa.Table, receipt: Receipt, path: Path) -> None:
    """Write and reopen: what is published has the schema and the rows that were meant."""
    metadata = {**(rows.schema.metadata or {}), _FOOTER: json.dumps(asdict(receipt)).encode()}
    rows = rows.replace_schema_metadata(metadata)
    textual = [entry.name for entry in rows.schema if _is_textual(entry.type)]
    pq.write_table(
        rows, path, compression="zstd", row_group_size=ROW_GROUP_ROWS, use_dictionary=textual, write_page_checksum=True
    )
    written = pq.ParquetFile(path, page_checksum_verification=True)
    found = sum(len(batch) for batch in written.iter_batches(columns=["error"]))
    if found != len(rows) or not written.schema_arrow.equals(rows.schema):
        raise StorageError(f"{path}: reads back as {found} rows of {len(rows)}; is the disk full or failing?")


def _is_textual(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary))


def _refuse_errors(table: pa.Table, ticket: col.Ticket) -> None:
    for number, error in zip(table[col.ROW].to_pylist(), table["error"].to_pylist(), strict=True):
        if error is not None:
            raise ErrorBudgetExceeded(f"{ticket.place(number)}: {error} (errors.policy is fail)")

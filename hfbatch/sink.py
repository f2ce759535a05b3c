"""One shard's rows -> one committed Parquet object. The commit protocol, on the worker's side:

check rows in == rows out, write to a local spool, reopen and compare, put the object if absent, put the commit
record if absent. An object that is already there is adopted, not overwritten: it was whole when it appeared, and
says in its own footer what it holds. Before and after, look whether the plan still rules (ledger.py says why).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hfbatch import columns as col
from hfbatch.carry import FOOTER, ROWS, Held, carried_over
from hfbatch.errors import Conflict, Damage, ErrorBudgetExceeded, StorageError
from hfbatch.faults import point
from hfbatch.histograms import of_errors, of_notes, of_rows
from hfbatch.job import Job
from hfbatch.known import remember
from hfbatch.ledger import Ledger
from hfbatch.records import Receipt, data_name, staged_name
from hfbatch.sequences import Array
from hfbatch.store import open_store

ROW_GROUP_ROWS = 16384


class Commit:
    """A callable of blocks: a shard's finished rows in, one row with its receipt out."""

    def __init__(self, job: Job, run_id: str, plan: int) -> None:
        """`plan`: the number of the agreed plan that this run carries out."""
        self.job, self.run_id, self.plan = job, run_id, plan

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table with the receipt as JSON."""
        started = time.perf_counter()
        ticket = col.ticket_of(table)
        if self.job.errors.policy == "fail" and ticket.rows:
            _refuse_errors(table, ticket)
        ledger = Ledger(open_store(self.job.output))
        rows, numbers = whole_shard(table, ticket, self.job, ledger)
        errors, examples = of_errors(rows["error"].drop_null().to_pylist())
        drawn = (of_rows(rows, step.prefix, self.job.keep) for step in self.job.steps)
        shown = {**next(filter(None, drawn), {}), "examples": examples}  # of the first step that has something to show
        shown |= {"guardrails": of_notes(rows["guardrails"])} if self.job.guards is not None else {}
        receipt = Receipt(
            shard=ticket.shard,
            generation=self.job.generation,
            data=data_name(ticket.shard, self.job.generation, ticket.folder) if len(rows) else None,
            rows=len(rows),
            nbytes=0,
            sha256="",
            errors=errors,
            stats={**ticket.stats, **shown},
            run_id=self.run_id,
            carried=ticket.carried,
        )
        _must_rule(ledger, receipt, self.plan)
        created = False
        if receipt.data is not None:
            held, footer = Held(ticket.pieces, numbers), footer_of(receipt)
            receipt, created = publish(ledger, rows, held, receipt, ticket.staged)
            if created and self.job.remembers:
                remember(self.job, ledger.store, table, receipt, held, footer)
        if created:
            receipt = replace(receipt, stats={**receipt.stats, "write_s": time.perf_counter() - started})
        point("before-commit", receipt.shard)
        receipt = ledger.commit(receipt)
        point("after-commit", receipt.shard)
        _must_rule(ledger, receipt, self.plan, created)
        return pa.table({"receipt": [receipt.to_json().decode()]})


def whole_shard(table: pa.Table, ticket: col.Ticket, job: Job, ledger: Ledger) -> tuple[pa.Table, Array]:
    """All rows of the shard, those carried over included, with their numbers (rows,)."""
    table = table.filter(pa.array(table[col.ROW].to_numpy() != col.EMPTY_ROW))
    schema = job.output_schema.append(pa.field(col.ROW, pa.int64()))
    table = table.select(schema.names).cast(schema)
    if ticket.carried:
        assert ticket.base is not None
        known = (ticket.base, job.generation, ticket.pieces, ticket.retry, ticket.folder)
        numbers, old = carried_over(ledger, *known)
        if len(numbers) != ticket.carried:
            raise StorageError(f"{ledger.store.url()}: results to carry over vanished while they were read; run again")
        old = old.append_column(col.ROW, pa.array(numbers)).select(schema.names).cast(schema)
        table = pa.concat_tables([table, old])
    return in_order(table, ticket)


def in_order(table: pa.Table, ticket: col.Ticket) -> tuple[pa.Table, Array]:
    """The rows in order of their numbers, and these. AssertionError if one is missing, doubled or foreign."""
    numbers = table[col.ROW].to_numpy()
    order = np.argsort(numbers, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        table, numbers = table.take(order), numbers[order]
    expected = ticket.rows + ticket.carried
    if len(numbers) != expected or col.digest(numbers) != ticket.digest:
        raise AssertionError(f"shard {ticket.shard}: {expected} rows were read, {len(numbers)} others arrived")
    return table.drop_columns([col.ROW]), numbers


def publish(ledger: Ledger, rows: pa.Table, held: Held, receipt: Receipt, staged: bool) -> tuple[Receipt, bool]:
    """Put the object where its name says, or adopt the one that stands there.

    Returns the receipt that fits what stands, and whether this created it.
    """
    point("before-publish", receipt.shard)
    assert receipt.data is not None
    data = receipt.data
    with tempfile.TemporaryDirectory(prefix="hfbatch-spool-") as spool:
        path = Path(spool) / "shard.parquet"
        _write_parquet(rows, held, receipt, path)
        content = path.read_bytes()
        receipt = replace(receipt, nbytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        created = ledger.place(receipt) is None
        created = created and ledger.store.put_if_absent(staged_name(data) if staged else data, path)
        if created and staged and ledger.store.size(data) is not None:
            ledger.store.delete([staged_name(data)])  # meanwhile published, and what was staged cleared
            created = False
        if not created:
            receipt = adopted(ledger, receipt)
    point("after-publish", receipt.shard)
    return receipt, created


def _must_rule(ledger: Ledger, receipt: Receipt, plan: int, created: bool = False) -> None:
    """Conflict when a later plan rules that does not name this shard, which is then dead for good.

    A writer that slept through that change takes away what it `created` since, lest it double rows of data/.
    """
    if not ledger.rules(plan, receipt.shard):
        if created:
            ledger.withdraw(receipt)
        raise Conflict(f"{ledger.store.url('')}: another run has taken over this output; its plan rules now")


def adopted(ledger: Ledger, receipt: Receipt) -> Receipt:
    """The receipt of the object that already stands where this shard belongs. Conflict if it holds anything else."""
    place = ledger.place(receipt)
    if place is None:
        raise StorageError(f"{ledger.store.url(receipt.data or '')}: vanished while it was committed; run again")
    with ledger.store.open_input(place) as stream:
        content = stream.read()
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        found = sum(len(batch) for batch in file.iter_batches())
    except (OSError, pa.ArrowInvalid) as error:
        raise Damage(f"{ledger.store.url(place)}: is damaged ({error}); `hfbatch repair` makes it again") from error
    footer: dict[str, Any] = json.loads((file.metadata.metadata or {}).get(FOOTER, b"{}"))
    same = (footer.get("shard"), footer.get("generation"), footer.get("rows"), found)
    if same != (receipt.shard, receipt.generation, receipt.rows, receipt.rows):
        raise Conflict(f"{ledger.store.url(place)}: holds other rows than its name says; move it away, run again")
    return Receipt(**{**footer, "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})


def footer_of(receipt: Receipt) -> bytes:
    """What an object says of itself."""
    return json.dumps(asdict(receipt)).encode()


def _write_parquet(rows: pa.Table, held: Held, receipt: Receipt, path: Path) -> None:
    """Write and reopen: what is published has the schema and the rows that were meant."""
    said = {FOOTER: footer_of(receipt), ROWS: held.to_json()}
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), **said})
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

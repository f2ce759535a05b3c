"""The first rows of an output, as data and as text: every row a block, a column a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hfbatch.cli import text
from hfbatch.words import column_type, count

if TYPE_CHECKING:
    from hfbatch.job import Step
    from hfbatch.ledger import Ledger
    from hfbatch.planner import Plan

MODEL_LINEAGE = ("model_id", "model_revision", "parameters")  # as job.py has it, which this is quicker without
_SHOWN = 3  # of a list
_AT_ONCE = 16  # commit records read together


def read_head(plan: Plan, rows: int) -> pa.Table:
    """The first `rows` rows of the output, in the order of the input."""
    import pyarrow.parquet as pq

    from hfbatch.ledger import Ledger
    from hfbatch.store import open_store

    ledger, batches, left = Ledger(open_store(plan.job.output)), list[pa.RecordBatch](), rows
    for name in _objects(plan, ledger):
        if left <= 0:
            break
        with ledger.store.open_input(name) as stream:
            batches.append(next(pq.ParquetFile(stream).iter_batches(batch_size=left)))
        left -= len(batches[-1])
    return pa.Table.from_batches(batches) if batches else plan.job.output_schema.empty_table()


def _objects(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """The Parquet objects in order; a shard whose rows `where` refused has none."""
    for start in range(0, len(plan.shards), _AT_ONCE):
        shards = [shard.id for shard in plan.shards[start : start + _AT_ONCE]]
        yield from (each.data for each in ledger.receipts(plan.job.generation, shards) if each.data is not None)


def as_data(table: pa.Table) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    return [{name: _finite(value) for name, value in row.items()} for row in table.to_pylist()]


def show(table: pa.Table, steps: Sequence[Step]) -> None:
    """The rows without their lineage, which the report above them names."""
    lineage = {"run_id", *(step.lineage(name) for step in steps for name in MODEL_LINEAGE)}
    names = [name for name in table.column_names if name not in lineage]
    types = {name: table.schema.field(name).type for name in names}
    for number, row in enumerate(table.select(names).to_pylist(), start=1):
        text.out(f"\n{text.bold(f'row {number}')}\n{_block(row, types)}")
    if not len(table):
        text.out("\nthe output has no rows")


def _block(row: Mapping[str, Any], types: Mapping[str, pa.DataType]) -> str:
    room = (text.width() or 200) - max(map(len, row)) - 2 * text.GAP
    return text.facts(((name, text.cut(_value(value, types[name]), room)) for name, value in row.items()), text.GAP)


def _value(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, list):
        return _list(value, kind)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each, kind.field(name).type)}" for name, each in value.items())
    if isinstance(value, bytes):
        return count(len(value), "byte")
    if isinstance(value, float):
        return f"{value:.6g}"
    return "null" if value is None else text.one_line(str(value).lower() if isinstance(value, bool) else value)


def _list(value: list[Any], kind: pa.DataType) -> str:
    inner, fixed = kind.value_type, pa.types.is_fixed_size_list(kind)
    if not fixed and not pa.types.is_floating(inner) and not pa.types.is_nested(inner):
        return ", ".join(_value(item, inner) for item in value)
    if pa.types.is_struct(inner) or pa.types.is_map(inner):
        return "; ".join(_value(item, inner) for item in value)
    return f"{column_type(kind) if fixed else f'{len(value)} x {column_type(inner)}'}: {_numbers(value)}"


def _numbers(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:.3f}" if isinstance(value, float) else str(value)
    more = ", ..." if len(value) > _SHOWN else ""
    return "[" + ", ".join(_numbers(item) for item in value[:_SHOWN]) + more + "]"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Data files of every format for tests, written and read back."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq

from hfbatch.files import list_files
from hfbatch.formats import MOST_BATCH_ROWS, FileRef, Inspected, inspect, read_rows


def inspected(path: Path | str, format: Any = None) -> Inspected:
    [file] = list_files([str(path)], format)
    return inspect(file)


def read(found: Inspected, start: int = 0, stop: int | None = None, schema: pa.Schema | None = None) -> pa.Table:
    schema = schema or found.schema
    ref = pickle.loads(pickle.dumps(FileRef.of(found, schema)))
    batches = list(read_rows(ref, start, found.rows if stop is None else stop, schema.names))
    assert all(0 < batch.num_rows <= MOST_BATCH_ROWS for batch in batches)
    return pa.Table.from_batches(batches, schema=schema)


def sample(rows: int) -> pa.Table:
    return pa.table(
        {
            "n": pa.array(range(rows), pa.int64()),
            "text": [None if row % 7 == 3 else f'row {row}, "é"\n{"x" * (row % 5)}' for row in range(rows)],
            "score": [row / 4 for row in range(rows)],
            "ok": [row % 2 == 0 for row in range(rows)],
        }
    )


def write_parquet(table: pa.Table, path: Path, unit: int) -> None:
    pq.write_table(table, path, row_group_size=unit)


def write_arrow(table: pa.Table, path: Path, unit: int) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, unit)


def write_stream(table: pa.Table, path: Path, unit: int) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, unit)


def write_feather(table: pa.Table, path: Path, unit: int) -> None:
    pa.feather.write_feather(table, str(path), compression="zstd", chunksize=unit)


def write_jsonl(table: pa.Table, path: Path, unit: int) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()))


def write_csv(table: pa.Table, path: Path, unit: int) -> None:
    def cell(value: Any) -> str:
        quoted = '"' + value.replace('"', '""') + '"' if isinstance(value, str) else ""
        return quoted if isinstance(value, str) else "" if value is None else json.dumps(value)

    lines = [table.schema.names, *([cell(value) for value in row.values()] for row in table.to_pylist())]
    sign = "\t" if ".tsv" in path.name else ","
    path.write_text("".join(sign.join(line) + "\n" for line in lines))


def write_dataset(table: pa.Table, path: Path, unit: int) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset(table).save_to_disk(str(path))


Writer = Callable[[pa.Table, Path, int], None]
WRITERS: dict[str, Writer] = {
    "x.parquet": write_parquet,
    "x.arrow": write_arrow,
    "stream.arrow": write_stream,
    "x.feather": write_feather,
    "x.jsonl": write_jsonl,
    "x.csv": write_csv,
    "x.tsv": write_csv,
    "saved": write_dataset,
}

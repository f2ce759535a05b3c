"""Hive folders: a folder `day=2026-11-20` above a data file is a column `day` of its rows, always of type string.

The names stand in the path as the job file and the listing spell it, so the values are known before a file is opened:
files that `input.where` rules out by them are never read. Percent signs are decoded (`%2F` is a slash), and
`__HIVE_DEFAULT_PARTITION__` is null, as Hive, Spark, DuckDB and pyarrow write them. A column of the same name inside
the file gives way to the folder's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from hfbatch.files import ListedFile
from hfbatch.where import WhereError, may_hold

NULL = "__HIVE_DEFAULT_PARTITION__"


def values_of(file: ListedFile) -> dict[str, str | None]:
    """Column -> value for every folder `name=value` of the file's path; of two with one name the inner one counts."""
    parts = file.path.partition("::")[0].split("/")
    folders = parts if file.format == "dataset" else parts[:-1]
    pairs = (part.partition("=") for part in folders)
    return {unquote(name): _decoded(value) for name, equals, value in pairs if name and equals}


def with_folders(schema: pa.Schema, file: ListedFile) -> pa.Schema:
    """`schema` with the columns that the file's folders give."""
    for name in values_of(file):
        index, field = schema.get_field_index(name), pa.field(name, pa.string())
        schema = schema.append(field) if index < 0 else schema.set(index, field)
    return schema


def filled(batch: pa.RecordBatch, values: Mapping[str, str | None]) -> pa.RecordBatch:
    """`batch`, which has none of these columns, with them in every row."""
    for name, value in values.items():
        batch = batch.append_column(name, pa.repeat(pa.scalar(value, pa.string()), batch.num_rows))
    return batch


def folder_of(file: ListedFile, columns: Sequence[str]) -> str:
    """`country=de/day=2026-11-20`: where rows of this file belong in an output that is partitioned by `columns`."""
    values = values_of(file)
    return "/".join(f"{quote(name, safe='')}={_encoded(values[name])}" for name in columns)


def pruned(files: Sequence[ListedFile], where: str | None) -> list[ListedFile]:
    """The files that may hold a row for which `where` is true, as far as their folders tell.

    All of them where the expression is wrong: who binds it to the whole schema says how.
    """
    if where is None:
        return list(files)
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    values = [values_of(file) for file in files]
    for index, own in enumerate(values):
        groups[tuple(own)].append(index)
    kept = np.ones(len(files), dtype=bool)
    for names, members in groups.items():
        known = pa.table({name: pa.array([values[index][name] for index in members], pa.string()) for name in names})
        try:
            kept[members] = may_hold(where, known) if names else True
        except (WhereError, pa.ArrowException, TypeError, ValueError):
            return list(files)
    return [file for file, stays in zip(files, kept, strict=True) if stays]


def partition_problem(files: Iterable[ListedFile], columns: Sequence[str]) -> tuple[int, str, str] | None:
    """Why the output cannot be partitioned by `columns`: (which of them, message, fix); None where it can."""
    doubled = next((index for index, name in enumerate(columns) if name in columns[:index]), None)
    if doubled is not None:
        return doubled, f"column {columns[doubled]!r} is listed twice", "remove one of them"
    for file in files:
        known = values_of(file)
        for index, name in enumerate(columns):
            if name not in known:
                there = f"its folders give {', '.join(known)}" if known else "it has none"
                message = f"{name!r} is no folder of {file.path}: an output is partitioned by folders of the input"
                fix = f"{there}; put the file into a folder {quote(name, safe='')}=VALUE that input.path names or holds"
                return index, message, fix
    return None


def _decoded(value: str) -> str | None:
    return None if value == NULL else unquote(value)


def _encoded(value: str | None) -> str:
    return NULL if value is None else quote(value, safe="")

"""SQL over an output, run by DuckDB: SELECTs in, true or false or a number out.

DuckDB opens no file: it sees `output` and `last` as tables that pyarrow streams to it, and everything else, files,
network, extensions, settings, is locked. It is an extra (`pip install 'hfbatch[sql]'`), imported where there is SQL.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import pyarrow as pa

from hfbatch.gates.spec import QuerySpec
from hfbatch.store import LocalStore, Store

OUTPUT, LAST = "output", "last"
_MEMORY = "2GB"  # of a query; nothing is spilled to disk
_MISSING = "SQL needs DuckDB, which is not installed", "pip install 'hfbatch[sql]'"

Answer: TypeAlias = tuple[float | bool | None, str]  # what a query gave, and why it gave nothing


class SqlProblem(Exception):
    """A query that cannot be run, or does not give one value of the right type."""


def is_there() -> bool:
    """Whether DuckDB is installed."""
    return importlib.util.find_spec("duckdb") is not None


def problems(queries: Mapping[str, str | QuerySpec], schema: pa.Schema) -> Iterator[tuple[str, str, str]]:
    """(name, message, fix) of each query that could not be run on outputs of `schema`."""
    if queries and not is_there():
        yield next(iter(queries)), *_MISSING
        return
    empty = schema.empty_table()
    for name, query in queries.items():
        try:
            with _opened({OUTPUT: empty, LAST: empty}) as connection:
                _one_select(connection, query)
                _of_right_type(connection, query)
        except SqlProblem as problem:
            yield name, str(problem), f"the tables are {OUTPUT} and {LAST}, with {', '.join(schema.names[:12])}"


def answer(query: str | QuerySpec, output: Any, last: Any | None) -> Answer:
    """What `query` gives over two pyarrow datasets or tables; "no last run" where it needs one that is not there."""
    if not is_there():
        return None, "; ".join(_MISSING)
    try:
        with _opened({OUTPUT: output} | ({} if last is None else {LAST: last})) as connection:
            _one_select(connection, query)
            if last is None and LAST in _guarded(lambda: connection.get_table_names(_text(query))):
                return None, "no last run"
            _of_right_type(connection, query)
            value = _guarded(lambda: connection.execute(_text(query)).fetchall())
    except SqlProblem as problem:
        return None, str(problem)
    if len(value) != 1:
        return None, f"it gives {len(value)} rows, not one"
    given = value[0][0]
    return (None, "it gives null") if given is None else (given if isinstance(given, bool) else float(given), "")


def table_of(store: Store, objects: Sequence[str], schema: pa.Schema, folders: Sequence[str] = ()) -> Any:
    """Committed objects of `schema` as one pyarrow dataset, read as a query needs it; with columns of `folders`."""
    from pyarrow import dataset  # here, as the next: few jobs need it

    given = [pa.field(name, pa.string()) for name in folders]
    whole = pa.schema([*schema, *given])
    if not objects:
        return whole.empty_table()
    scanned = dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    parquet = dataset.ParquetFileFormat(default_fragment_scan_options=scanned)
    parts = dataset.partitioning(pa.schema(given), flavor="hive") if given else None
    system, paths = _opened_by_arrow(store, objects)
    return dataset.dataset(paths, schema=whole, format=parquet, filesystem=system, partitioning=parts)


def _opened_by_arrow(store: Store, objects: Sequence[str]) -> tuple[Any, list[str]]:
    """A file system of pyarrow, and where the objects stand in it."""
    from pyarrow import fs

    if isinstance(store, LocalStore):
        return fs.LocalFileSystem(), [store.url(name) for name in objects]
    from hfbatch.store_remote import FsspecStore

    assert isinstance(store, FsspecStore)
    paths = [store.fs._strip_protocol(store.url(name)) for name in objects]
    return fs.PyFileSystem(fs.FSSpecHandler(store.fs)), paths


def _text(query: str | QuerySpec) -> str:
    return query if isinstance(query, str) else query.query


@contextmanager
def _opened(tables: Mapping[str, Any]) -> Iterator[Any]:
    """A locked database with these tables."""
    import duckdb

    with duckdb.connect(":memory:", config={"memory_limit": _MEMORY, "temp_directory": ""}) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        yield connection


def _one_select(connection: Any, query: str | QuerySpec) -> None:
    import duckdb

    statements = _guarded(lambda: connection.extract_statements(_text(query)))
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise SqlProblem("is not one SELECT")


def _of_right_type(connection: Any, query: str | QuerySpec) -> None:
    types = [str(kind) for kind in _guarded(lambda: connection.sql(_text(query)).types)]
    if len(types) != 1:
        raise SqlProblem(f"gives {len(types)} columns, not one")
    if isinstance(query, str) and types != ["BOOLEAN"]:
        raise SqlProblem(f"gives {types[0]}, not true or false; compare it, or write {{query, min, max}}")
    if isinstance(query, QuerySpec) and not _is_number(types[0]):
        raise SqlProblem(f"gives {types[0]}, not a number")


def _is_number(kind: str) -> bool:
    names = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
    return kind.removeprefix("U").startswith(names)


def _guarded(work: Callable[[], Any]) -> Any:
    """Whatever DuckDB raises as one line."""
    import duckdb

    try:
        return work()
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise SqlProblem(" ".join(str(error).split())[:300]) from error

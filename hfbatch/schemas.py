"""Arrow types as hfbatch passes them on: plain, nullable, one schema over all files.

Dictionaries and run-ends are decoded, extension types become their storage, fields become nullable and lose their
metadata. string_view becomes string (Arrow can neither filter nor take views); large_string, large_list stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Leaf = Callable[[pa.DataType], pa.DataType]


class SchemaProblem(Exception):
    """Columns that do not fit together: `message` names files, column and types, `fix` the way out, `name` the file."""

    def __init__(self, message: str, fix: str | None = None, name: str = "") -> None:
        super().__init__(message, fix, name)
        self.message, self.fix, self.name = message, fix, name

    def __str__(self) -> str:
        return self.message


def map_type(kind: pa.DataType, leaf: Leaf) -> pa.DataType:
    """`kind` with `leaf` applied to every type that has no children."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return map_type(kind.storage_type, leaf)
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, map_type(field.type, leaf)) for field in kind])
    if types.is_map(kind):
        return pa.map_(map_type(kind.key_type, leaf), map_type(kind.item_type, leaf))
    if types.is_fixed_size_list(kind):
        return pa.list_(map_type(kind.value_type, leaf), kind.list_size)
    for holds, build in _LISTS:
        if holds(kind):
            return build(map_type(kind.value_type, leaf))
    return leaf(kind)


_LISTS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)


_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def _decoded(kind: pa.DataType) -> pa.DataType:
    encoded = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
    return plain_type(kind.value_type) if encoded else _VIEWS.get(kind, kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """`kind` without dictionaries, run-ends, views and extensions, at any depth."""
    return map_type(kind, _decoded)


def plain_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """`schema` of file `name` in plain types. SchemaProblem: two columns with one name, or no column."""
    doubled = [column for column in schema.names if schema.names.count(column) > 1]
    if doubled:
        raise SchemaProblem(f"{name}: two columns have the name {doubled[0]!r}", "write the file with different names")
    if not schema.names:
        raise SchemaProblem(f"{name}: the file has no columns", "leave it out of input.path")
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def merge_types(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds both (null with anything, int with float, structs by field), or None."""
    if one == other:
        return one
    try:
        merged = pa.unify_schemas([pa.schema([("x", one)]), pa.schema([("x", other)])], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return merged.field("x").type


def merge_schemas(named: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema over (name, schema) pairs: all columns, in order of first appearance, in types that hold all.

    SchemaProblem names the column, both places and both types where nothing holds both.
    """
    columns: dict[str, tuple[pa.DataType, str]] = {}
    for name, schema in named:
        for field in schema:
            kind, place = columns.get(field.name, (pa.null(), name))
            merged = merge_types(kind, field.type)
            if merged is None:
                raise SchemaProblem(
                    f"column {field.name!r} is {kind} in {place} and {field.type} in {name}",
                    "write the data with one type, or make input.path name one kind of file",
                    name,
                )
            columns[field.name] = (merged, place if merged == kind else name)
    return pa.schema([pa.field(name, kind) for name, (kind, _) in columns.items()])


class _Relabelled:
    """An array under another type of the same layout, handed over by Arrow's C data interface."""

    def __init__(self, array: pa.Array, kind: pa.DataType) -> None:
        self.array, self.kind = array, kind

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]:
        return self.kind.__arrow_c_schema__(), self.array.__arrow_c_array__()[1]


def _without_extensions(array: pa.Array) -> pa.Array:
    storage = map_type(array.type, lambda kind: kind)
    if storage == array.type:
        return array
    return pa.array(_Relabelled(array, storage))


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`batch` with exactly the columns of `schema`, in its types; a column that is not there is all null.

    SchemaProblem: a value does not fit, such as an int64 over 2^53 in a column that is double in another file.
    """
    columns = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        array = batch.column(index)
        if pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        if array.type != field.type:
            try:
                array = _without_extensions(array).cast(field.type)
            except pa.ArrowException as error:
                raise SchemaProblem(f"column {field.name!r}, {array.type}, as {field.type}: {error}") from error
        columns.append(array)
    return pa.RecordBatch.from_arrays(columns, schema=schema)

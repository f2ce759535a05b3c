"""A data frame of any library in, Arrow out, a block of rows at a time; and the same kind again, with more columns.

pandas, polars, pyarrow and datasets are told by the module of the frame's type, so nothing is imported for them: who
has such a frame has its library. Columns that nobody asks for are not touched.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hfbatch.errors import Problem, RowError, SpecError
from hfbatch.schemas import conform, plain_type

Errors = dict[int, RowError]  # by row of the block

_SAMPLE = 1000  # values of a column of Python objects that tell its type
_BAD_VALUE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError)


@dataclass(frozen=True)
class Frame(ABC):
    """Rows and columns, wherever they are."""

    frame: Any

    @property
    def names(self) -> list[Any]:
        """Its columns; a name may stand there twice."""
        return list(self.frame.columns)

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.frame)

    @abstractmethod
    def types(self, names: Sequence[str]) -> pa.Schema:
        """These columns, in plain types (schemas.py). SpecError where Arrow has none for what is in a column."""

    @abstractmethod
    def read(self, schema: pa.Schema, start: int, stop: int) -> tuple[pa.Table, Errors]:
        """Rows [start, stop) of the columns of `schema`, one chunk each; a value of another type is null, and told."""

    @abstractmethod
    def plus(self, made: pa.Table) -> Any:
        """The same kind of frame with the columns of `made` (as many rows, in its order) behind its own."""


class ArrowFrame(Frame):
    """A pyarrow.Table; the schema's metadata stay."""

    @property
    def names(self) -> list[Any]:
        """Its columns."""
        return list(self.frame.column_names)

    def types(self, names: Sequence[str]) -> pa.Schema:
        """Of these columns."""
        return _plain(self.frame.select(names).schema)

    def read(self, schema: pa.Schema, start: int, stop: int) -> tuple[pa.Table, Errors]:
        """Rows [start, stop)."""
        return _conformed(self.frame.select(schema.names).slice(start, stop - start), schema), {}

    def plus(self, made: pa.Table) -> pa.Table:
        """With the columns of `made`."""
        table = self.frame
        for field in made.schema:
            table = table.append_column(field, made[field.name])
        return table


class PolarsFrame(Frame):
    """A polars.DataFrame; lineage becomes Categorical."""

    def types(self, names: Sequence[str]) -> pa.Schema:
        """Of these columns."""
        return _plain(self.frame.select(names).head(0).to_arrow().schema)

    def read(self, schema: pa.Schema, start: int, stop: int) -> tuple[pa.Table, Errors]:
        """Rows [start, stop)."""
        return _conformed(self.frame.select(schema.names).slice(start, stop - start).to_arrow(), schema), {}

    def plus(self, made: pa.Table) -> Any:
        """With the columns of `made`."""
        return self.frame.hstack(sys.modules["polars"].from_arrow(made).get_columns())


class DatasetFrame(Frame):
    """A datasets.Dataset. It stays where it is, be that a memory-mapped file, with its features, split and format."""

    @property
    def names(self) -> list[Any]:
        """Its columns."""
        return list(self.frame.column_names)

    def types(self, names: Sequence[str]) -> pa.Schema:
        """Of these columns."""
        schema = self.frame.features.arrow_schema
        return _plain(pa.schema([schema.field(name) for name in names]))

    def read(self, schema: pa.Schema, start: int, stop: int) -> tuple[pa.Table, Errors]:
        """Rows [start, stop), in the order of its indices; media are not decoded."""
        return _conformed(self.frame.select_columns(schema.names).with_format("arrow")[start:stop], schema), {}

    def plus(self, made: pa.Table) -> Any:
        """With the columns of `made`."""
        datasets: Any = sys.modules["datasets"]
        added = datasets.Dataset(made.cast(_plain(made.schema)))
        features = datasets.Features({**self.frame.features, **added.features})
        if not self.rows:  # `concatenate_datasets` leaves out what has none
            return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
        both = datasets.concatenate_datasets([self.frame.with_format(None), added], split=self.frame.split, axis=1)
        form = self.frame.format
        if form["columns"] == self.names:
            form["columns"] = list(features)
        return both.with_format(**form.pop("format_kwargs"), **form)


class PandasFrame(Frame):
    """A pandas.DataFrame. Columns of Python objects may hold anything; their type is what most of the first values are.

    New whole numbers and booleans are pandas' nullable ones, whether a row failed or not.
    """

    def types(self, names: Sequence[str]) -> pa.Schema:
        """Of these columns."""
        return pa.schema([pa.field(name, self._type(name)) for name in names])

    def read(self, schema: pa.Schema, start: int, stop: int) -> tuple[pa.Table, Errors]:
        """Rows [start, stop); NaN is null."""
        columns, errors = [], Errors()
        for field in schema:
            values = self.frame[field.name].iloc[start:stop]
            column, wrong = _objects(values, field) if values.dtype == object else (_array(values, field.type), {})
            columns.append(column)
            errors = wrong | errors
        return pa.Table.from_arrays(columns, schema=schema), errors

    def plus(self, made: pa.Table) -> Any:
        """With the columns of `made`, and the index that it had."""
        added = made.to_pandas(types_mapper=_nullable().get)
        added.index = self.frame.index
        return self.frame.assign(**{name: added[name] for name in made.column_names})

    def _type(self, name: str) -> pa.DataType:
        values = self.frame[name]
        values = values.dropna().iloc[:_SAMPLE] if values.dtype == object else values.iloc[:_SAMPLE]
        try:
            return plain_type(pa.array(values, from_pandas=True).type)
        except _BAD_VALUE as error:
            kinds = [type(value) for value in values]
            most = max(kinds, key=kinds.count)
            try:
                return pa.array([value for value in values if type(value) is most]).type
            except _BAD_VALUE:
                fix = "make it text, numbers, bytes, or lists or dicts of these"
                message = f"column {name!r} holds {most.__name__}, which has no Arrow type"
                raise SpecError([Problem("column", "column", message, fix)]) from error


_KINDS: Mapping[str, type[Frame]] = {
    "pandas.DataFrame": PandasFrame,
    "polars.DataFrame": PolarsFrame,
    "pyarrow.Table": ArrowFrame,
    "datasets.Dataset": DatasetFrame,
}
_NEARLY = {
    "pandas.Series": "give frame.to_frame()",
    "polars.Series": "give frame.to_frame()",
    "polars.LazyFrame": "give frame.collect()",
    "pyarrow.RecordBatch": "give pyarrow.Table.from_batches([frame])",
    "datasets.DatasetDict": "give one split of it, such as frame['train']",
    "datasets.IterableDataset": "give ray.data.from_huggingface(frame)",
    "builtins.str": "read the file first; or for files of any size: hfbatch.run",
    "pathlib.Path": "read the file first; or for files of any size: hfbatch.run",
    "builtins.list": "give pandas.DataFrame(frame)",
    "builtins.dict": "give pandas.DataFrame(frame)",
}


def open_frame(frame: Any) -> Frame:
    """`frame` as a Frame. SpecError says what to give instead of what is none."""
    known = kinds_of(frame)
    for kind in known:
        if made := _KINDS.get(kind):
            return made(frame)
    fix = next((_NEARLY[kind] for kind in known if kind in _NEARLY), "give one of these")
    kinds = f"{', '.join(_KINDS)} or ray.data.Dataset"
    raise SpecError(
        [Problem("frame", "frame", f"{known[0].removeprefix('builtins.')} is no frame; those are {kinds}", fix)]
    )


def kinds_of(frame: Any) -> list[str]:
    """`package.Type` of the frame and of what it is derived from."""
    return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(frame).__mro__]


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` in the types of `schema`, one chunk a column."""
    batches = table.combine_chunks().to_batches()  # none where there are no rows
    return pa.Table.from_batches([conform(batch, schema) for batch in batches], schema=schema).combine_chunks()


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """A pandas column as an array."""
    made = pa.array(values, from_pandas=True)
    made = made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made
    return conform(pa.RecordBatch.from_arrays([made], ["x"]), pa.schema([("x", kind)]))["x"]


def _objects(values: Any, field: pa.Field) -> tuple[pa.Array, Errors]:
    """A pandas column of Python objects as an array; what is not of the field's type is null, and told."""
    try:
        return pa.array(values, field.type, from_pandas=True), {}
    except _BAD_VALUE:
        items, wrong = list(values), Errors()
    for row, value in enumerate(items):
        try:
            pa.array([value], field.type, from_pandas=True)
        except _BAD_VALUE:
            items[row] = None
            wrong[row] = RowError("wrong_type", f"{field.name} is {type(value).__name__}, not {field.type}")
    return pa.array(items, field.type, from_pandas=True), wrong


def _nullable() -> dict[pa.DataType, Any]:
    """The types of pandas for whole numbers and booleans that may be missing."""
    pandas: Any = sys.modules["pandas"]
    return {pa.int32(): pandas.Int32Dtype(), pa.int64(): pandas.Int64Dtype(), pa.bool_(): pandas.BooleanDtype()}

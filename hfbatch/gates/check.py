"""Gates and the schema that an output will have in, every gate that could never be judged out, with its place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from hfbatch.errors import Problem, SpecError
from hfbatch.gates import sql as gate_sql
from hfbatch.gates.golden import GoldenProblem, is_key, read_golden
from hfbatch.gates.shift import Labels, Numbers, tally_of
from hfbatch.gates.spec import GatesSpec
from hfbatch.origin import Loc
from hfbatch.spec import JobSpec
from hfbatch.words import column_type

_Found = Iterator[tuple[Loc, str, str]]


def check_gates(spec: JobSpec, schema: pa.Schema, keep: Sequence[str]) -> None:
    """SpecError with all gates that do not fit an output of `schema`. Reads the golden file, runs SQL over no rows."""
    if spec.gates is None:
        return
    found = [*_columns(spec.gates, schema, keep), *_golden(spec.gates, schema), *_sql(spec, spec.gates, schema)]
    problems: list[Problem] = [spec.origin.problem(("gates", *loc), message, fix) for loc, message, fix in found]
    if problems:
        raise SpecError(problems)


def truncated_columns(schema: pa.Schema, keep: Sequence[str]) -> list[str]:
    """The columns in which tasks say whether they have cut a row's text; of the input's own none is one."""
    made = (entry for entry in schema if entry.name not in keep and pa.types.is_boolean(entry.type))
    return [entry.name for entry in made if entry.name.endswith("truncated")]


def _columns(gates: GatesSpec, schema: pa.Schema, keep: Sequence[str]) -> _Found:
    if gates.truncated_share is not None and not truncated_columns(schema, keep):
        yield ("truncated_share",), "the output has no column `truncated`: nothing is cut", "leave the gate out"

    def numbers(kind: pa.DataType) -> bool:
        return isinstance(tally_of(kind), Numbers)

    def labels(kind: pa.DataType) -> bool:
        return isinstance(tally_of(kind), Labels)

    def either(kind: pa.DataType) -> bool:
        return tally_of(kind) is not None

    def whatever(kind: pa.DataType) -> bool:
        return True

    asked: tuple[tuple[str, Callable[[pa.DataType], bool], str], ...] = (
        ("null_share", whatever, ""),
        ("mean", numbers, "a number"),
        ("quantile", numbers, "a number"),
        ("label_share", labels, "text or boolean"),
        ("shift", either, "text, boolean or a number"),
    )
    for section, fits, wanted in asked:
        for name in getattr(gates, section):
            yield from _column((section, name), name, schema, fits, wanted)


def _column(loc: Loc, name: str, schema: pa.Schema, fits: Callable[[pa.DataType], bool], wanted: str) -> _Found:
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, n=1)
        fix = f"write '{near[0]}'" if near else f"the output has {', '.join(schema.names[:12])}"
        yield loc, f"the output has no column {name!r}", fix
    elif not fits(kind := schema.field(name).type):
        message = f"column {name!r} is {column_type(kind)}, the gate takes {wanted}"
        yield loc, message, "name another column, or ask it in sql"


def _golden(gates: GatesSpec, schema: pa.Schema) -> _Found:
    if gates.golden is None:
        return
    for key, name in (("key", gates.golden.key), ("label", gates.golden.label)):
        yield from _column(("golden", key), name, schema, is_key, "text or whole numbers")
    try:
        read_golden(gates.golden)
    except GoldenProblem as problem:
        yield ("golden", problem.key), problem.message, problem.fix or "name another file"


def _sql(spec: JobSpec, gates: GatesSpec, schema: pa.Schema) -> _Found:
    given = [pa.field(name, pa.string()) for name in spec.output.partition_by]
    for name, message, fix in gate_sql.problems(gates.queries, pa.schema([*schema, *given])):
        key: str | int = name if isinstance(gates.sql, dict) else int(name) - 1
        yield ("sql", key), message, fix

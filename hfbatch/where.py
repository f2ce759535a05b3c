"""`stars >= 3 and lang == 'en'` in, an Arrow filter expression out; or one WhereError that says what to write.

Python's grammar reads it (`ast.parse`), Arrow's compute functions carry it out: nothing is ever run as Python, and
only the forms listed in ALLOWED have a meaning. The finished expression is bound to the schema at once, so that a
wrong type is found here and not in the middle of a run.

Null is as in SQL: a comparison with null is null, and only rows that are true pass. `in`, `not in` and `is None`
never give null. `/` is true division, `%` has the sign of the divisor; a division by zero is null.
"""

from __future__ import annotations

import ast
import difflib
import functools
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.sequences import Array
from hfbatch.where_syntax import ALLOWED, PLACEHOLDER, WhereError, column_name, is_column, parse, short

__all__ = ["WhereError", "columns_of", "may_hold", "parse_where"]

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add_checked",
    ast.Sub: "subtract_checked",
    ast.Mult: "multiply_checked",
    ast.Div: "divide",
    ast.Mod: "modulo",
}


@functools.lru_cache(maxsize=32)
def parse_where(text: str, schema: pa.Schema) -> pc.Expression:
    """The filter for tables of `schema`. Raises WhereError; an expression that is returned binds to `schema`."""
    tree, names = parse(text)
    compiler = _Compiler(schema, names)
    expression = compiler.build(tree)
    try:
        schema.empty_table().filter(expression)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise compiler.mismatch(tree, error) from error
    return expression


def columns_of(text: str) -> set[str]:
    """The names of the columns that `text` reads. Raises WhereError where it cannot be parsed."""
    tree, names = parse(text)
    return {column_name(node.id, names) for node in ast.walk(tree) if isinstance(node, ast.Name) and is_column(node)}


def may_hold(text: str, known: pa.Table) -> Array:
    """(rows,) bool: False where `text` cannot be true for a row of `known`, whatever its other columns hold.

    Raises what `parse_where` does, for the parts that speak of columns of `known` alone.
    """
    tree, names = parse(text)
    return _may_hold(tree, _Compiler(known.schema, names), known.append_column("", pa.array(np.arange(len(known)))))


def _may_hold(node: ast.expr, compiler: _Compiler, known: pa.Table) -> Array:
    if set(compiler._columns(node)) <= set(known.schema.names):
        true = known.filter(compiler.build(node))[""].to_numpy()
        return np.isin(np.arange(len(known)), true)
    if isinstance(node, ast.BoolOp):
        parts = [_may_hold(value, compiler, known) for value in node.values]
        combined = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return np.asarray(combined.reduce(parts))
    return np.ones(len(known), dtype=bool)


class _Compiler:
    """Arrow expressions for the nodes of one tree."""

    def __init__(self, schema: pa.Schema, names: Sequence[str]) -> None:
        self.schema, self.names = schema, names

    def build(self, node: ast.expr) -> pc.Expression:
        """The expression for `node`. Raises WhereError for a form that has no meaning here."""
        match node:
            case ast.BoolOp(op=operator, values=values):
                name = "and_kleene" if isinstance(operator, ast.And) else "or_kleene"
                return self._joined(name, [self.build(value) for value in values])
            case ast.Compare():
                operands = [node.left, *node.comparators]
                pairs = zip(operands, node.ops, operands[1:], strict=False)
                return self._joined("and_kleene", [self._compared(*pair) for pair in pairs])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _call("invert", self.build(operand))
            case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
                return _call("negate_checked", self._wide(operand))
            case ast.BinOp(op=operator) if type(operator) in _ARITHMETIC:
                return self._calculated(node)
            case ast.Name():
                return self._field(node)
            case ast.Call():
                return self._called(node)
        return pc.scalar(self._literal(node))

    def mismatch(self, tree: ast.expr, error: Exception) -> WhereError:
        """The error of the smallest part of `tree` that does not bind, or that of the whole."""
        for node in reversed([each for each in ast.walk(tree) if isinstance(each, ast.expr)]):
            if isinstance(node, ast.BoolOp | ast.Compare | ast.UnaryOp | ast.BinOp | ast.Call):
                wrong = self._unbound(node)
                if wrong is not None:
                    kinds = ", ".join(f"{name} is {self.schema.field(name).type}" for name in self._columns(node))
                    message = f"{self._text(node)!r} mixes types that do not go together ({wrong})"
                    return WhereError(message, f"compare like with like: {kinds}" if kinds else None)
        kind = re.search(r"evaluates to (.+)", str(error))
        gives = kind[1] if kind else str(error)
        return WhereError(f"{self._text(tree)!r} gives {gives}, not true or false", "compare it, such as: stars >= 3")

    def _unbound(self, node: ast.expr) -> str | None:
        """Why the part `node` alone does not bind, if it does not."""
        try:
            self.schema.empty_table().filter(self.build(node).is_null())
        except (pa.ArrowException, TypeError, ValueError) as error:
            types = re.search(r"input types \((.+)\)", str(error))
            return types[1] if types else str(error).partition("\n")[0]
        return None

    def _columns(self, node: ast.AST) -> list[str]:
        found = (each for each in ast.walk(node) if isinstance(each, ast.Name) and is_column(each))
        return sorted({column_name(each.id, self.names) for each in found})

    def _text(self, node: ast.AST) -> str:
        return short(PLACEHOLDER.sub(lambda match: f"`{self.names[int(match[1])]}`", ast.unparse(node)))

    def _refused(self, node: ast.AST, fix: str | None = None) -> WhereError:
        return WhereError(f"{self._text(node)!r} is not allowed here", fix or f"allowed: {ALLOWED}")

    def _joined(self, name: str, parts: Sequence[pc.Expression]) -> pc.Expression:
        """All parts under one function, as a balanced tree: a thousand terms are ten deep."""
        if len(parts) == 1:
            return parts[0]
        middle = len(parts) // 2
        return _call(name, self._joined(name, parts[:middle]), self._joined(name, parts[middle:]))

    def _kind(self, node: ast.AST) -> pa.DataType | None:
        """A column's type; None for anything else."""
        return self.schema.field(self._named(node)).type if isinstance(node, ast.Name) else None

    def _named(self, node: ast.Name) -> str:
        name = column_name(node.id, self.names)
        if name not in self.schema.names:
            near = difflib.get_close_matches(name, self.schema.names, n=1)
            listed = ", ".join(self.schema.names[:12])
            fix = f"write {_written(near[0])}" if near else f"the input has {listed}"
            if name.isidentifier():
                fix += f", or '{name}' with quotes if it is text"
            raise WhereError(f"the input has no column {name!r}", fix)
        return name

    def _field(self, node: ast.Name) -> pc.Expression:
        return pc.field((self._named(node),))  # a tuple: a name with dots is one column's

    def _literal(self, node: ast.expr, like: pa.DataType | None = None) -> pa.Scalar:
        """The scalar that a literal writes; text beside a date column is a date."""
        sign, constant = 1, node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, constant = -1, node.operand
        value = constant.value if isinstance(constant, ast.Constant) else ...
        plain = value is None or isinstance(value, bool | int | float | str)
        if not plain or (sign < 0 and (isinstance(value, bool) or not isinstance(value, int | float))):
            slip = {ast.BitAnd: "write and", ast.BitOr: "write or"}
            raise self._refused(node, slip.get(type(getattr(node, "op", None))))  # type: ignore[arg-type]
        try:
            scalar = pa.scalar(sign * value if isinstance(value, int | float) and sign < 0 else value)
            temporal = isinstance(value, str) and like is not None and pa.types.is_temporal(like)
            return scalar.cast(like) if temporal else scalar
        except (pa.ArrowException, OverflowError) as error:
            if not isinstance(value, str):
                raise WhereError(f"{self._text(node)} is too large", "write a number of at most 64 bits") from error
            zoned = "write '2024-12-31T00:00Z': the column has a time zone"
            fix = zoned if getattr(like, "tz", None) else "write such as '2024-12-31' or '12:30:00'"
            raise WhereError(f"{self._text(node)} is not a {like}", fix) from error

    def _beside(self, node: ast.expr, other: ast.expr) -> pc.Expression:
        """`node` as an operand next to `other`."""
        if isinstance(node, ast.Constant):
            return pc.scalar(self._literal(node, self._kind(other)))
        return self.build(node)

    def _compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
        whole = ast.Compare(left, [operator], [right])
        none = isinstance(right, ast.Constant) and right.value is None
        if isinstance(operator, ast.Is | ast.IsNot):
            if not none:
                raise self._refused(whole, "write == to compare; is takes None only")
            found = self.build(left).is_null()
            return found if isinstance(operator, ast.Is) else _call("invert", found)
        if isinstance(operator, ast.In | ast.NotIn):
            found = self._contained(left, right, whole)
            return found if isinstance(operator, ast.In) else _call("invert", found)
        if none or (isinstance(left, ast.Constant) and left.value is None):
            raise self._refused(whole, "write is None, or is not None: nothing equals null")
        return _call(_COMPARISONS[type(operator)], self._beside(left, right), self._beside(right, left))

    def _contained(self, left: ast.expr, right: ast.expr, whole: ast.expr) -> pc.Expression:
        """`x in [1, 2]`, or `'part' in text`."""
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            values = [self._literal(item, self._kind(left)).as_py() for item in right.elts]
            kind = self._kind(left)
            try:
                dated = kind is not None and pa.types.is_temporal(kind)
                return self.build(left).isin(pa.array(values, kind if dated or not values else None))
            except pa.ArrowException as error:
                raise WhereError(f"the values of {self._text(right)} have several types", "write one type") from error
        if isinstance(right, ast.Name) and isinstance(left, ast.Constant) and isinstance(left.value, str):
            found = pc.match_substring(self._field(right), left.value)
            return pc.coalesce(found, pc.scalar(False))
        raise self._refused(whole, "write column in ['a', 'b'], or 'part' in column")

    def _wide(self, node: ast.expr) -> pc.Expression:
        """An operand of arithmetic: small ints as int64, so that int8 * 100 does not overflow."""
        kind, built = self._kind(node), self.build(node)
        small = kind is not None and pa.types.is_integer(kind) and kind != pa.uint64()
        return built.cast(pa.int64()) if small else built

    def _calculated(self, node: ast.BinOp) -> pc.Expression:
        left, right = self._wide(node.left), self._wide(node.right)
        if isinstance(node.op, ast.Div | ast.Mod):
            if isinstance(node.right, ast.Constant):
                if node.right.value == 0:
                    raise WhereError(f"{self._text(node)!r} divides by zero", "write another number")
            else:
                right = pc.if_else(right == 0, pc.scalar(pa.scalar(None)), right)
        if isinstance(node.op, ast.Div):
            left, right = left.cast(pa.float64()), right.cast(pa.float64())
        if isinstance(node.op, ast.Mod) and not hasattr(pc, "modulo"):
            raise WhereError(f"pyarrow {pa.__version__} has no %, as in {self._text(node)!r}", "pip install -U pyarrow")
        return _call(_ARITHMETIC[type(node.op)], left, right)

    def _called(self, node: ast.Call) -> pc.Expression:
        """`len(column)`, `column.startswith('x')`, `column.endswith('x')`."""
        match node:
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name() as column], keywords=[]):
                return _call(_length(self._kind(column)), self._field(column))
            case ast.Call(
                func=ast.Attribute(value=ast.Name() as column, attr="startswith" | "endswith" as name),
                args=[ast.Constant(value=str() as part)],
                keywords=[],
            ):
                return (pc.starts_with if name == "startswith" else pc.ends_with)(self._field(column), part)
        raise self._refused(node)


def _call(name: str, *operands: pc.Expression) -> pc.Expression:
    return getattr(pc, name)(*operands)


def _written(name: str) -> str:
    return name if name.isidentifier() else f"`{name}`"


def _length(kind: pa.DataType | None) -> str:
    """Arrow's function: characters of text, items of a list, bytes of binary."""
    types = pa.types
    if kind is not None and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return "list_value_length"
    return "binary_length" if kind is not None and _is_binary(kind) else "utf8_length"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

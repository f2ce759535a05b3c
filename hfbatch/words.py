"""Values in words: sizes, counts, clocks, column types, commits. For people; what programs read has the number."""

from __future__ import annotations

import math

import pyarrow as pa

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_NAMES = {"float": "float32", "double": "float64", "halffloat": "float16", "large_string": "string"}


def size(nbytes: float) -> str:
    """Bytes for people."""
    for unit in _UNITS[:-1]:
        if nbytes < 1024:
            return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:,.1f} {_UNITS[-1]}"


def count(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def brief(number: float) -> str:
    """Three digits and a letter, for an axis: 0.25, 12, 1.5k, 2.3M."""
    if not math.isfinite(number):
        return "?"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.9995:
            return f"{float(f'{number / limit:.3g}'):g}{letter}"
    return f"{float(f'{number:.3g}'):g}"


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """0.25 s, 12.3 s, and from two minutes on as `clock`."""
    if seconds >= 120:
        return clock(seconds)
    return f"{seconds:.2f} s" if 0 < seconds < 1 else f"{seconds:.1f} s"


def commit(revision: str) -> str:
    """A Hub commit in full, as a job file takes it; a local directory's digest, which none does, by its start."""
    return revision[:23] + "..." if revision.startswith("sha256:") else revision


def column_type(kind: pa.DataType) -> str:
    """An Arrow type as people say it: `384 x float32`, `list of {label: string, score: float32}`."""
    types = pa.types
    if types.is_dictionary(kind):
        return column_type(kind.value_type)
    if types.is_fixed_size_list(kind):
        return f"{kind.list_size} x {column_type(kind.value_type)}"
    if types.is_list(kind) or types.is_large_list(kind):
        return f"list of {column_type(kind.value_type)}"
    if types.is_map(kind):
        return f"map of {column_type(kind.key_type)} to {column_type(kind.item_type)}"
    if types.is_struct(kind):
        return "{" + ", ".join(f"{field.name}: {column_type(field.type)}" for field in kind) + "}"
    return _NAMES.get(str(kind), str(kind))

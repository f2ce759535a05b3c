"""A small file with the right labels in, how far the output agrees with it out: accuracy, macro F1, what is missing.

Rows are found in the output by a key column; keys and labels are compared as text. A key that the output has twice
counts twice, one that it does not have is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from hfbatch.files import FileProblem, list_files
from hfbatch.formats import FileRef, inspect, read_rows, unify
from hfbatch.gates.shift import as_text, is_text_like
from hfbatch.gates.spec import GoldenSpec

MOST_ROWS = 1_000_000


class GoldenProblem(Exception):
    """`key` of the golden section names something that cannot be used."""

    def __init__(self, key: str, message: str, fix: str | None = None) -> None:
        super().__init__(key, message, fix)
        self.key, self.message, self.fix = key, message, fix

    def __str__(self) -> str:
        return self.message


def is_key(kind: pa.DataType) -> bool:
    """Whether rows can be found by such a column."""
    return is_text_like(kind) or bool(pa.types.is_integer(kind))


def read_golden(spec: GoldenSpec) -> dict[str, str]:
    """Key -> right label. GoldenProblem, StorageError, AccessRefused."""
    try:
        files = [inspect(file) for file in list_files([spec.path], None)]
        schema = unify(files)
    except FileProblem as problem:
        raise GoldenProblem("path", problem.message, problem.fix) from problem
    truth = spec.truth or spec.label
    for name, key in ((spec.key, "key"), (truth, "truth" if spec.truth else "label")):
        if name not in schema.names:
            raise GoldenProblem(
                key, f"the golden file has no column {name!r}", f"it has {', '.join(schema.names[:12])}"
            )
        if not is_key(kind := schema.field(name).type):
            raise GoldenProblem(
                key, f"column {name!r} of the golden file is {kind}", "text and whole numbers can be compared"
            )
    if sum(file.rows for file in files) > MOST_ROWS:
        raise GoldenProblem("path", f"has more than {MOST_ROWS:,} rows", "name a small file")
    refs = [FileRef.of(file, schema) for file in files]
    batches = [batch for ref in refs for batch in read_rows(ref, 0, ref.rows, list(dict.fromkeys([spec.key, truth])))]
    table = pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in dict.fromkeys([spec.key, truth])]))
    return _by_key(spec, as_text(table[spec.key]).to_pylist(), as_text(table[truth]).to_pylist(), truth)


def _by_key(spec: GoldenSpec, keys: list[str | None], labels: list[str | None], truth: str) -> dict[str, str]:
    if not keys:
        raise GoldenProblem("path", "the golden file has no rows", "name another")
    golden: dict[str, str] = {}
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if key is None or label is None:
            raise GoldenProblem("path", f"row {row} of the golden file has no {spec.key if key is None else truth}")
        if key in golden:
            raise GoldenProblem("path", f"{spec.key} {key!r} is twice in the golden file", "leave one of the rows out")
        golden[key] = label
    return golden


class Agreement:
    """Counts pairs of right label and given one as rows of the output come by."""

    def __init__(self, golden: Mapping[str, str]) -> None:
        self.golden = golden
        self._keys = pa.array(list(golden), pa.string())
        self._pairs = Counter[tuple[str, str | None]]()
        self._seen = set[str]()

    def add(self, keys: pa.ChunkedArray, labels: pa.ChunkedArray) -> None:
        """Some rows of the output; a null label is a wrong one."""
        keys = as_text(keys)
        found = pc.is_in(keys, value_set=self._keys)
        for key, label in zip(keys.filter(found).to_pylist(), as_text(labels).filter(found).to_pylist(), strict=True):
            self._seen.add(key)
            self._pairs[self.golden[key], label] += 1

    @property
    def missing(self) -> list[str]:
        """Keys that the output does not have."""
        return [key for key in self.golden if key not in self._seen]

    @property
    def accuracy(self) -> float | None:
        """Share of the rows found whose label is right; None where none was found."""
        right = sum(rows for (truth, given), rows in self._pairs.items() if truth == given)
        return right / self._pairs.total() if self._pairs else None

    @property
    def f1(self) -> float | None:
        """Mean over all labels, right or given, of 2 x right / (rows that have it + rows that were given it)."""
        names = {name for pair in self._pairs for name in pair if name is not None}
        scores = []
        for name in names:
            truly = sum(rows for (truth, _), rows in self._pairs.items() if truth == name)
            given = sum(rows for (_, label), rows in self._pairs.items() if label == name)
            scores.append(2 * self._pairs[name, name] / (truly + given))
        return sum(scores) / len(scores) if scores else None

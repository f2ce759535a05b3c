"""The outcomes of the first rows in; out, if nearly all of them failed alike, the failure: a bug, not bad data.

Judged are failures of code: what a task, the model or a library raised, and results that are not finite. A null, bad
UTF-8, an empty or a too long text are facts about a row, and such rows do not count at all. Nor does out_of_memory:
it is a fact about a row's length and the machine, and where no row fits, the error budget ends the run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from hfbatch.columns import ERROR
from hfbatch.errors import RowError, SystemicError
from hfbatch.sequences import Array

SAMPLE, LEAST, SHARE = 100, 10, 0.9  # rows looked at; fewer say nothing; the share of them that must fail alike
CODE_FAULTS = frozenset({"preprocess_failed", "forward_failed", "non_finite"})


def sample_first(row: Array) -> list[Array]:
    """Indices of sequences, cut in two: those of the first SAMPLE rows, as they stand in the data, and the rest.

    The longest, with which a block begins otherwise, would be a sample of long rows only.
    """
    rows = np.unique(row)
    if len(rows) <= SAMPLE:
        return [np.arange(len(row))]
    border = int(np.searchsorted(row, rows[SAMPLE]))
    return [np.arange(border), np.arange(border, len(row))]


def rows_judged(rows: int, errors: Mapping[int, RowError]) -> int:
    """How many of `rows` were given to the code and say something about it."""
    return rows - sum(error.code not in CODE_FAULTS for error in errors.values())


def errors_in(table: pa.Table) -> dict[int, RowError]:
    """Row -> error, from a block's error column."""
    texts = [(row, text.partition(": ")) for row, text in enumerate(table[ERROR].to_pylist()) if text is not None]
    return {row: RowError(code, message) for row, (code, _, message) in texts}


def refuse_common_fault(rows: int, errors: Mapping[int, RowError], place: Callable[[int], str]) -> None:
    """SystemicError where at least SHARE of `rows` fail alike, as `errors` (row -> error) tell; numbers may differ.

    `place` names a row for people.
    """
    judged = rows_judged(rows, errors)
    faults = {row: _signature(error) for row, error in errors.items() if error.code in CODE_FAULTS}
    if judged < LEAST or not faults:
        return
    [(likeliest, failed)] = Counter(faults.values()).most_common(1)
    if failed < SHARE * judged:
        return
    example = min(row for row, signature in faults.items() if signature == likeliest)
    raise SystemicError(
        f"{failed} of the first {judged} rows failed alike, so it is the task, the model or an installed library that "
        f"is at fault and not the rows: {errors[example]} (for example {place(example)}). Nothing of this is "
        "committed; put the cause right and run the same command again"
    )


def _signature(error: RowError) -> str:
    return re.sub(r"\d+", "#", str(error))

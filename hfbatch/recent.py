"""Results of the blocks that went through this process last: the objects that will hold them may not stand yet.

A block is begun while the one before it is still on its way to the disk, and so are the rows that both hold.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pyarrow as pa

from hfbatch.hashing import Index, as_numbers
from hfbatch.sequences import Array

MOST_BYTES = 64 << 20  # of the results of a step
_steps: dict[str, Recent] = {}


class Recent:
    """The results of one step, newest last."""

    def __init__(self) -> None:
        self._blocks, self._nbytes = deque[tuple[Index, pa.Table]](), 0

    def add(self, hashes: pa.Array, results: pa.Table) -> None:
        """Keep `results` (rows,) of rows with these `hashes`; what is oldest goes where it gets too much."""
        index = Index()
        index.add(as_numbers(hashes), np.arange(len(hashes)))
        self._blocks.append((index, results))
        self._nbytes += results.nbytes
        while self._nbytes > MOST_BYTES:
            self._nbytes -= self._blocks.popleft()[1].nbytes

    def of(self, hashes: pa.Array, schema: pa.Schema) -> tuple[Array, pa.Table]:
        """Which of `hashes` (rows,) have a result, as indices, and these, in the columns of `schema`."""
        numbers, left = as_numbers(hashes), np.ones(len(hashes), dtype=bool)
        index, parts = [np.zeros(0, dtype=np.int64)], [schema.empty_table()]
        for block, results in [*self._blocks]:
            at = np.flatnonzero(left)
            places = block.find(numbers[at])
            found = places >= 0
            index.append(at[found])
            parts.append(results.take(pa.array(places[found])).select(schema.names).cast(schema))
            left[at[found]] = False
        return np.concatenate(index), pa.concat_tables(parts)


def recent(step: str) -> Recent:
    """Of the step with this generation, kept from now on."""
    return _steps.setdefault(step, Recent())


def asked_for(step: str) -> Recent | None:
    """The same, if anybody in this process has asked for it."""
    return _steps.get(step)

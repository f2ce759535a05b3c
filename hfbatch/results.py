"""What forward gave, on the host: a batch's tensors as columns, and the columns of all batches as a block's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Column, Ragged, Sequences, scatter, take
from hfbatch.tasks.base import Flat, Outputs


@dataclass
class Results:
    """The pieces of a block's outputs as batches finish, and the sequences that failed. Indices are of sequences."""

    parts: dict[str, list[tuple[Array, Column]]] = field(default_factory=dict)
    done: list[Array] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)  # not finite, and neither done nor given up yet
    errors: dict[int, RowError] = field(default_factory=dict)

    def keep(self, batch: Array, outputs: Mapping[str, Column]) -> None:
        """Take the results of `batch` that are finite; the others are broken."""
        bad = non_finite(outputs, len(batch))
        self.broken.extend(batch[bad].tolist())
        good = np.flatnonzero(~bad)
        self.done.append(batch[good])
        for name, column in outputs.items():
            self.parts.setdefault(name, []).append((batch[good], take(column, good) if bad.any() else column))

    def of(self, sequences: Sequences) -> tuple[Sequences, dict[int, RowError]]:
        """Outputs in the order of `sequences`, and errors by row. A row that fails in part has no outputs at all."""
        errors = {int(sequences.row[index]): error for index, error in sorted(self.errors.items())}
        done = np.sort(np.concatenate(self.done)) if self.done else np.zeros(0, dtype=np.int64)
        columns = {
            name: scatter([(np.searchsorted(done, index), column) for index, column in parts], len(done))
            for name, parts in self.parts.items()
        }
        outputs = Sequences(sequences.row[done], columns)
        if errors:
            outputs = outputs.take(np.flatnonzero(~np.isin(outputs.row, list(errors))))
        return outputs, errors


def to_numpy(outputs: Outputs) -> dict[str, Column]:
    """Results of forward on the host, as the columns of Sequences."""
    columns: dict[str, Column] = {}
    for name, value in outputs.items():
        if isinstance(value, Flat):
            lengths = value.lengths.cpu().numpy() if isinstance(value.lengths, torch.Tensor) else value.lengths
            if int(lengths.sum()) != len(value.values):
                raise AssertionError(f"{name} has {len(value.values)} values for lengths of {int(lengths.sum())}")
            columns[name] = Ragged.from_lengths(value.values.cpu().numpy(), lengths)
        else:
            columns[name] = value.cpu().numpy()
    return columns


def non_finite(columns: Mapping[str, Column], sequences: int) -> Array:
    """(sequences,) bool: whether any result of a sequence is NaN or infinite."""
    bad = np.zeros(sequences, dtype=bool)
    for column in columns.values():
        values = column.values if isinstance(column, Ragged) else column
        if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
            continue
        broken = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if isinstance(column, Ragged):
            owner = np.repeat(np.arange(sequences), column.lengths)
            bad[owner[broken]] = True
        else:
            bad |= broken
    return bad

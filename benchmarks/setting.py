"""What the routes of one benchmark share, what a route is, and what a turn of it gives. Data alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq

LIMIT = 512  # tokens of a text; what is longer is cut there by every route


@dataclass(frozen=True)
class Setting:
    """The same rows, model, precision and threads for all."""

    bench: str  # embedding, classification ...: a key of benches.BENCHES
    task: str  # the Hub's name
    params: dict[str, Any]  # of the task
    model: str  # folder
    data: str  # a Parquet file
    scratch: str  # folder for what routes write
    threads: int
    device: str = "cpu"
    dtype: str = "float32"
    shard_rows: int = 2048
    transformers_4: str | None = None  # folder with transformers 4.57, for pipelines that 5 has not

    def column(self, name: str) -> list[Any]:
        """A column of the data."""
        values: list[Any] = pq.read_table(self.data, columns=[name])[name].to_pylist()
        return values

    def lengths(self) -> np.ndarray:
        """(rows,) int64: tokens of each row, cut at LIMIT; 1 for a picture. Needs no torch."""
        names = [name for name in pq.read_schema(self.data).names if name not in ("id", "question")]
        values = self.column(names[0])
        if isinstance(values[0], bytes):
            return np.ones(len(values), dtype=np.int64)
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(f"{self.model}/tokenizer.json")
        tokenizer.no_padding()
        tokenizer.enable_truncation(LIMIT)
        return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(values)], dtype=np.int64)


@dataclass(frozen=True)
class Ran:
    """One turn of a route: `values[i]` is what row `rows[i]` became."""

    rows: list[int]
    values: Any  # (rows, dim) float32, or a list of (what is equal or not, score)
    seconds: float  # in steady state: the model is there, the first batch begins to the last one's end
    wall: float | None = None  # from the call to the end, where that is more
    tokens: int = 0  # real ones; 0: not counted
    padded: int = 0  # the same with padding
    flops_per_s: float = 0.0  # of a route that only multiplies
    peak_bytes: int = 0  # of the process that holds the model
    notes: dict[str, Any] = field(default_factory=dict)


Runner: TypeAlias = Callable[[list[int]], Ran]


@dataclass(frozen=True)
class Route:
    """A way to the values. `maker` is called once in the route's own process and gives its Runner."""

    name: str
    maker: str  # "module.function" of this package
    options: dict[str, Any] = field(default_factory=dict)
    least: int = 32  # rows of a turn at least: those that sort need some to sort
    whole: bool = False  # runs on all rows at once, a fresh process each time
    share: float = 1.0  # of the rows that a whole run gets
    dtype: str | None = None  # another than the setting's


def padded_tokens(lengths: np.ndarray, rows: int) -> int:
    """Tokens with padding of batches of `rows` sequences in the order given."""
    parts = [lengths[start : start + rows] for start in range(0, len(lengths), rows)]
    return int(sum(part.max() * len(part) for part in parts))

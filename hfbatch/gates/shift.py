"""Values of a column as they come in, counts out; and how far the counts of two runs are apart.

Bounded, whatever the column holds: labels up to MOST_LABELS different ones, numbers exactly up to MOST_NUMBERS
different ones and from there on by their leading bits. Order and batches play no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from hfbatch.sequences import Array

MOST_LABELS = 10_000
MOST_NUMBERS = 1 << 20
FLOOR = 1e-4  # what the share of a bin that is empty, or nearly so, counts as in the index, which would be infinite
_TENTHS = tuple(number / 10 for number in range(1, 10))


class TooManyLabels(Exception):
    """A column of texts that are no labels."""


class Labels:
    """How often each label comes."""

    def __init__(self) -> None:
        self.counts = Counter[str]()

    def add(self, counts: Mapping[str, int]) -> None:
        """Some more rows. TooManyLabels once they are no labels."""
        self.counts.update(counts)
        if len(self.counts) > MOST_LABELS:
            raise TooManyLabels(f"it has over {MOST_LABELS:,} different values: these are no labels")

    @property
    def rows(self) -> int:
        """Rows with a label."""
        return self.counts.total()

    def share(self, label: str) -> float | None:
        """Of the rows with a label; None where no row has one."""
        return self.counts[label] / self.rows if self.rows else None


class Numbers:
    """How often each number comes, and their mean."""

    def __init__(self) -> None:
        self.rows, self._sum = 0, 0.0
        self._keys: Array = np.zeros(0, dtype=np.int64)  # (different,) ascending; see _key
        self._counts: Array = np.zeros(0, dtype=np.int64)
        self._shift = 0  # bits of a key that are dropped
        self._waiting = list[Array]()

    def add(self, values: Array) -> None:
        """(rows,) numbers; NaN and infinite ones count nowhere."""
        values = np.asarray(values, dtype=np.float64)
        values = values[np.isfinite(values)]
        self.rows += len(values)
        self._sum += float(values.sum())
        self._waiting.append(_key(values))
        if sum(map(len, self._waiting)) > MOST_NUMBERS:
            self._count()

    @property
    def mean(self) -> float | None:
        """None where there is no number."""
        return self._sum / self.rows if self.rows else None

    def quantile(self, share: float) -> float | None:
        """The least number that at least `share` of the rows do not pass; None where there is none."""
        keys, counts = self.counted()
        return _number(self._at(share, keys, counts)) if len(keys) else None

    def counted(self, shift: int = 0) -> tuple[Array, Array]:
        """Keys, ascending, and how often each comes; with `shift` bits dropped at least, and put back as zeros."""
        self._count()
        shift = max(shift, self._shift)
        keys, counts = _merged(self._keys >> (shift - self._shift), self._counts)
        return keys << shift, counts

    @property
    def shift(self) -> int:
        """How many bits of the numbers' keys had to be dropped."""
        self._count()
        return self._shift

    @staticmethod
    def _at(share: float, keys: Array, counts: Array) -> int:
        """The key that at least `share` of the rows do not pass."""
        total = np.cumsum(counts)
        wanted = max(1, int(np.ceil(share * total[-1] - 1e-9)))
        return int(keys[np.searchsorted(total, wanted)])

    def tenths(self, shift: int = 0) -> Array:
        """Keys at 10, 20 ... 90 % of the rows."""
        keys, counts = self.counted(shift)
        return np.array([self._at(share, keys, counts) for share in _TENTHS], dtype=np.int64)

    def _count(self) -> None:
        if not self._waiting:
            return
        fresh, self._waiting = np.concatenate(self._waiting) >> self._shift, []
        keys = np.concatenate([self._keys, fresh])
        self._keys, self._counts = _merged(keys, np.concatenate([self._counts, np.ones(len(fresh), dtype=np.int64)]))
        while len(self._keys) > MOST_NUMBERS:
            self._shift += 1
            self._keys, self._counts = _merged(self._keys >> 1, self._counts)


def is_text_like(kind: pa.DataType) -> bool:
    """Whether values of a column are labels: text, or true and false."""
    types = pa.types
    encoded = types.is_dictionary(kind) and types.is_string(kind.value_type)
    return bool(encoded or types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind))


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels or keys, whatever their type, as text."""
    return column.cast(pa.string())


def tally_of(kind: pa.DataType) -> Labels | Numbers | None:
    """What counts the values of such a column; None where they are neither labels nor numbers."""
    if is_text_like(kind):
        return Labels()
    return Numbers() if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


def compared(now: Labels | Numbers, last: Labels | Numbers) -> tuple[Array, Array]:
    """(bins,) rows of `now` and of `last` in the same bins: by label, or by the tenths of `last`."""
    if isinstance(now, Labels) and isinstance(last, Labels):
        names = sorted(now.counts.keys() | last.counts.keys())
        return _rows(now.counts[name] for name in names), _rows(last.counts[name] for name in names)
    assert isinstance(now, Numbers)
    assert isinstance(last, Numbers)
    shift = max(now.shift, last.shift)
    edges = _edges(last.tenths(shift))
    counted = (numbers.counted(shift) for numbers in (now, last))
    one, other = (_added(np.searchsorted(edges, keys), counts, len(edges) + 1) for keys, counts in counted)
    return one, other


def psi(now: Array, last: Array) -> float:
    """Population stability index of (bins,) rows: the sum of (p - q) ln(p / q) over their shares; 0 where alike."""
    p, q = (np.maximum(rows / rows.sum(), FLOOR) for rows in (now, last))
    return float(((p - q) * np.log(p / q)).sum())


def jensen_shannon(now: Array, last: Array) -> float:
    """Jensen-Shannon divergence of (bins,) rows, in bits: 0 where alike, 1 where no bin has rows of both."""
    p, q = (rows / rows.sum() for rows in (now, last))
    middle = (p + q) / 2

    def apart(shares: Array) -> float:
        some = shares > 0
        return float((shares[some] * np.log2(shares[some] / middle[some])).sum())

    return max(0.0, (apart(p) + apart(q)) / 2)


def _edges(tenths: Array) -> Array:
    """Last keys of the bins. A number that has more than a tenth of all rows is a bin of its own."""
    keys, times = np.unique(tenths, return_counts=True)
    return np.unique(np.concatenate([keys, keys[times > 1] - 1]))


def _key(values: Array) -> Array:
    """(rows,) int64 in the order of the numbers: their bits, those of negative ones turned around."""
    bits = (values + 0.0).view(np.int64)  # with 0.0 added, -0.0 is 0.0
    return np.where(bits < 0, bits ^ np.int64(0x7FFFFFFFFFFFFFFF), bits)


def _number(key: int) -> float:
    """The inverse of `_key`, of one."""
    bits = key ^ 0x7FFFFFFFFFFFFFFF if key < 0 else key
    return float(np.array(bits, dtype=np.int64).view(np.float64))


def _merged(keys: Array, counts: Array) -> tuple[Array, Array]:
    """Each key once, ascending, with its counts added up."""
    unique, at = np.unique(keys, return_inverse=True)
    return unique, _added(at, counts, len(unique))


def _added(at: Array, counts: Array, bins: int) -> Array:
    """(bins,) the counts of each bin, added up; exact up to 2 ** 53."""
    return np.bincount(at, counts, bins).astype(np.int64)


def _rows(counts: Iterator[int]) -> Array:
    return np.fromiter(counts, dtype=np.int64)

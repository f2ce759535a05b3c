"""A block of large inputs (images, sound) in windows: made a few rows at a time, one window ahead of the model.

A thousand photographs as pixel values take gigabytes; a window takes about WINDOW_BYTES, and two exist at once;
what a row takes is judged by the window before, and by the bytes that it is stored in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from hfbatch import columns as col
from hfbatch.reuse import inferred
from hfbatch.sequences import Array

WINDOW_BYTES = 128 << 20  # of model inputs
STORED_BYTES = 128 << 20  # of the rows that they are made of: an hour of sound, a few large photographs
FIRST_ROWS, MOST_ROWS = 16, 4096
_GROWTH = 4  # a window has at most this many times the rows of the last: rows differ, and the first may all be errors


def windows(
    table: pa.Table, preprocess: Callable[[pa.Table], pa.Table], announce: Callable[[Array], None] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """(first row, preprocessed rows) for windows of `table`, in order; each has a ticket for its own rows.

    `announce` is told the rows of a window before they are touched; with it none is made ahead, so that who dies has
    announced the rows it died over.
    """

    def make(start: int, rows: int) -> pa.Table:
        own = np.arange(start, start + fitting(table, start, rows))
        if announce is not None:
            announce(own)
        return preprocess(col.part(table, own))

    start, rows = 0, FIRST_ROWS
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="hfbatch-window") as pool:
        coming: Future[pa.Table] | None = pool.submit(make, start, rows)
        while coming is not None:
            window, coming = coming.result(), None
            first, start = start, start + len(window)
            rows = next_rows(window)
            if announce is None and start < len(table):
                coming = pool.submit(make, start, rows)
            yield first, window
            if coming is None and start < len(table):
                coming = pool.submit(make, start, rows)


def next_rows(window: pa.Table) -> int:
    """How many rows make about WINDOW_BYTES of model inputs, judged by those of `window` that have any."""
    size = sum(window[name].nbytes for name in window.column_names if name.startswith(col.INPUT))
    good = int((np.asarray(window[col.ERROR].is_null()) & inferred(window)).sum())
    fitting = WINDOW_BYTES * good // max(size, 1) if good else len(window)
    return int(np.clip(fitting, 1, min(_GROWTH * len(window), MOST_ROWS)))


def fitting(table: pa.Table, start: int, rows: int) -> int:
    """How many of the `rows` from `start` on are stored in STORED_BYTES, about; at least one."""
    rows = min(rows, len(table) - start)
    while rows > 1 and table.slice(start, rows).nbytes > STORED_BYTES:
        rows //= 2
    return rows


def joined(table: pa.Table, parts: Sequence[pa.Table]) -> pa.Table:
    """The results of all windows of `table` as one block, with the ticket of one that did all of the work."""
    tickets = [col.ticket_of(part) for part in parts]
    stats = col.total([ticket.stats for ticket in tickets])
    whole = pa.concat_tables(parts, promote_options="default").combine_chunks()  # a window of errors has fewer columns
    about = {name: value for name, value in tickets[-1].stats.items() if isinstance(value, str)}
    return col.ticket_of(table).plus(**stats, **about).on(whole)

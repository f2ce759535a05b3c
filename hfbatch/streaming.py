"""A block of large inputs (images, sound) in windows: made a few rows at a time, one window ahead of the model.

A thousand photographs as pixel values take gigabytes; a window takes about WINDOW_BYTES, and two exist at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from hfbatch import columns as col

WINDOW_BYTES = 128 << 20  # of model inputs
FIRST_ROWS, MOST_ROWS = 16, 4096


def windows(table: pa.Table, preprocess: Callable[[pa.Table], pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """(first row, preprocessed rows) for windows of `table`, in order; each has a ticket for its own rows."""
    start, rows = 0, FIRST_ROWS
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="hfbatch-window") as pool:
        coming: Future[pa.Table] | None = pool.submit(preprocess, _rows(table, start, rows))
        while coming is not None:
            window = coming.result()
            stop = start + len(window)
            size = sum(window[name].nbytes for name in window.column_names if name.startswith(col.INPUT))
            rows = int(np.clip(WINDOW_BYTES * len(window) // max(size, 1), 1, MOST_ROWS))
            coming = pool.submit(preprocess, _rows(table, stop, rows)) if stop < len(table) else None
            yield start, window
            start = stop


def joined(table: pa.Table, parts: Sequence[pa.Table]) -> pa.Table:
    """The results of all windows of `table` as one block, with the ticket of one that did all of the work."""
    tickets = [col.ticket_of(part) for part in parts]
    stats = col.total([ticket.stats for ticket in tickets])
    whole = pa.concat_tables(parts, promote_options="default").combine_chunks()  # a window of errors has fewer columns
    return col.ticket_of(table).plus(**stats, actor=tickets[-1].stats["actor"]).on(whole)


def _rows(table: pa.Table, start: int, rows: int) -> pa.Table:
    return col.part(table, np.arange(start, min(start + rows, len(table))))

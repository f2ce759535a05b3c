"""Model outputs to the committed columns: kept input, the task's columns, error, lineage. Rows in == rows out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from hfbatch import columns as col
from hfbatch.preprocess import task_rows
from hfbatch.sequences import Array, Sequences

if TYPE_CHECKING:
    from hfbatch.job import Job


class Postprocess:
    """A callable of blocks; runs on CPU. The result has the job's output schema plus row number and ticket."""

    def __init__(self, job: Job, run_id: str) -> None:
        self.job, self.run_id = job, run_id
        self.task = job.make_task()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Null in every column of the task where a row has an error."""
        started, ticket = time.perf_counter(), col.ticket_of(table)
        good = np.flatnonzero(np.asarray(table[col.ERROR].is_null())) if ticket.rows else np.zeros(0, dtype=np.int64)
        outputs, (rows, _) = _outputs(table, good), task_rows(self.job, table, media=False)

        def predictions_of(index: Array) -> pa.Table:
            own = outputs.take(np.flatnonzero(np.isin(outputs.row, index)))
            local = Sequences(np.searchsorted(index, own.row), own.columns)
            own_rows = rows.take(index) if rows.num_columns else rows.slice(0, len(index))  # `take` loses their number
            made = self.task.postprocess(local, own_rows)
            if len(made) != len(index):
                raise AssertionError(f"task {self.task.name} gave {len(made)} rows for {len(index)}")
            return made.cast(self.task.writes())

        parts, failed = col.isolate(predictions_of, good, "postprocess_failed")
        table = col.with_errors(table, failed)
        result = self._assemble(table, _spread(parts, len(table), self.task.writes()))
        return ticket.plus(postprocess_s=time.perf_counter() - started).on(result)

    def _assemble(self, table: pa.Table, predictions: pa.Table) -> pa.Table:
        """The columns of the output schema, in its order, and the row number."""
        job = self.job
        lineage = {"model_id": job.model.id, "model_revision": job.model.commit}
        lineage |= {"parameters": job.parameters, "run_id": self.run_id}
        columns = {name: table[name] for name in job.keep}
        columns |= {job.prefix + name: predictions[name] for name in predictions.column_names}
        columns["error"] = table[col.ERROR]
        columns |= {name: _constant(value, len(table)) for name, value in lineage.items()}
        ordered = [columns[entry.name].cast(entry.type) for entry in job.output_schema]
        result = pa.Table.from_arrays(ordered, schema=job.output_schema)
        return result.append_column(col.ROW, table[col.ROW])


def _outputs(table: pa.Table, good: Array) -> Sequences:
    """The sequences of the rows `good`. Those of other rows may have inputs, but have no results to go with them."""
    made = table.select([name for name in table.column_names if name.startswith((col.INPUT, col.OUTPUT))])
    outputs = col.sequences_of(made if len(good) == len(table) else made.take(good), col.INPUT, col.OUTPUT)
    return Sequences(good[outputs.row], outputs.columns)


def _spread(parts: list[tuple[Array, pa.Table]], rows: int, schema: pa.Schema) -> pa.Table:
    """The parts' rows at their places, nulls elsewhere."""
    if len(parts) == 1 and len(parts[0][0]) == rows:
        return parts[0][1]
    made = pa.concat_tables([part for _, part in parts]) if parts else schema.empty_table()
    source = np.full(rows, -1, dtype=np.int64)
    where = np.concatenate([index for index, _ in parts]) if parts else np.zeros(0, dtype=np.int64)
    source[where] = np.arange(len(where))
    return made.take(pa.array(source, mask=source < 0))


def _constant(value: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([value], pa.string()))

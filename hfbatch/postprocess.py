"""Model outputs to the columns of their step, and those to what is committed: kept input, the steps' columns, error,
lineage. Rows in == rows out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfbatch import columns as col
from hfbatch.guards.apply import Guardrails
from hfbatch.job import MODEL_LINEAGE
from hfbatch.preprocess import task_rows
from hfbatch.reuse import inferred, settled
from hfbatch.sequences import Array, Sequences

if TYPE_CHECKING:
    from hfbatch.job import Job, Step


class Postprocess:
    """A callable of blocks; runs on CPU. What the step made stands in the block then, in columns of its own."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.task = step.make_task()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Null in every column of the step where a row has an error of it, or is left out."""
        started, ticket = time.perf_counter(), col.ticket_of(table)
        good = np.flatnonzero(np.asarray(table[col.ERROR].is_null()) & ~col.idle(table) & inferred(table))
        good = good if ticket.rows else good[:0]
        outputs, (rows, _) = _outputs(table, good), task_rows(self.step, table, media=False)

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
        table, made, stats = settled(self.step, table, _spread(parts, len(table), self.task.writes()))
        return ticket.plus(postprocess_s=time.perf_counter() - started, **stats).on(self._done(table, made))

    def _done(self, table: pa.Table, made: pa.Table) -> pa.Table:
        """The block with `made`, ready for another step."""
        spent = (col.INPUT, col.OUTPUT, col.IDLE, col.HASH, col.SAME, col.KNOWN, col.TOKENS)
        table = table.drop_columns([name for name in table.column_names if name.startswith(spent)])
        for name in made.column_names:
            table = col.with_column(table, col.MADE + self.step.prefix + name, made[name])
        errors = table[col.ERROR]
        if self.step.name:
            told = pa.scalar(f" (step {self.step.name})")
            errors = pc.binary_join_element_wise(errors, told, pa.scalar("", pa.string()))
        failed = col.errors_so_far(col.with_column(table, col.ERROR, errors))
        table = col.with_column(table, col.FAILED, failed)
        return col.with_column(table, col.ERROR, pa.nulls(len(table), pa.string()))


class Assemble:
    """A callable of blocks that went through all steps: the job's output schema, plus row number and ticket."""

    def __init__(self, job: Job, run_id: str) -> None:
        self.job, self.run_id = job, run_id

    def __call__(self, table: pa.Table) -> pa.Table:
        """The columns of the output schema, in its order, and the row number."""
        job, made = self.job, [name for step in self.job.steps for name in step.made]
        columns = {name: table[name] for name in job.keep} | {name: table[col.MADE + name] for name in made}
        columns["error"] = table[col.FAILED]
        if job.guards is not None:
            columns |= {"guardrails": table[col.NOTES]}
            columns |= {"review": table[col.REVIEW]} if job.guards.reviews else {}
        for step in job.steps:
            told = (step.model.id, step.model.commit, step.parameters)
            for name, value in zip(MODEL_LINEAGE, told, strict=True):
                columns[step.lineage(name)] = _constant(value, len(table))
        columns["run_id"] = self._runs(table)
        ordered = [columns[entry.name].cast(entry.type) for entry in job.output_schema]
        result = pa.Table.from_arrays(ordered, schema=job.output_schema).append_column(col.ROW, table[col.ROW])
        for name in table.column_names:
            if name.startswith(col.KNOWS):
                result = result.append_column(name, table[name])
        return col.ticket_of(table).on(result)

    def _runs(self, table: pa.Table) -> pa.Array | pa.ChunkedArray:
        """(rows,) the run that inferred a row: this one, or where it has nothing of this one, the last that did."""
        if col.RAN not in table.column_names:
            return _constant(self.run_id, len(table))
        own = pc.or_kleene(table[col.RAN].is_null(), pc.equal(table[col.RAN], ""))
        return pc.if_else(own, self.run_id, table[col.RAN]).combine_chunks().dictionary_encode()


class Finish:
    """A callable of blocks: postprocess of the last step, the rules for the output, and what is committed of all."""

    def __init__(self, job: Job, run_id: str) -> None:
        self.last, self.rails, self.assemble = Postprocess(job.chain[-1]), Guardrails(job), Assemble(job, run_id)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The job's output schema, plus row number and ticket."""
        return self.assemble(self.rails.after(self.last(table)))


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

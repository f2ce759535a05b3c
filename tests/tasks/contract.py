"""What every task owes, checked by each task's test file on its own model and rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch import kinds, tasks
from hfbatch.errors import SpecError
from hfbatch.load import load_job
from tests.inline import plan_of, run_inline


@dataclass(frozen=True)
class Case:
    """A task on a checkpoint, with rows that are all good."""

    task: str
    model: Path
    rows: dict[str, list]
    params: dict[str, Any] = field(default_factory=dict)
    types: dict[str, pa.DataType] = field(default_factory=dict)  # of columns that are not as the task's kinds say

    def job(self, folder: Path, rows: dict[str, list] | None = None) -> dict:
        path = folder / "in.parquet"
        rows = rows if rows is not None else self.rows
        columns = {name: pa.array(values, self.type_of(name)) for name, values in rows.items()}
        pq.write_table(pa.table({"id": range(len(next(iter(rows.values())))), **columns}), path)
        return {
            "task": self.task,
            "model": {"id": str(self.model)},
            "input": {"path": str(path), "columns": {name: name for name in rows}},
            "params": self.params,
            "output": {"path": str(folder / "out")},
        }

    def type_of(self, name: str) -> pa.DataType:
        """Media are encoded files, unless `types` says otherwise."""
        task = tasks.find(self.task)
        kind = pa.unify_schemas([task.reads, task.optional]).field(name).type
        return self.types.get(name, pa.binary() if kind in kinds.MEDIA else kind)


def predictions(table: pa.Table, task: str, params: dict) -> list[dict]:
    """The task's own columns."""
    lineage = ("id", "error", "model_id", "model_revision", "parameters", "run_id")
    read = [*tasks.find(task).reads.names, *tasks.find(task).optional.names]
    own = [name for name in table.column_names if name not in lineage and name not in read]
    return table.select(own).to_pylist()


def check(case: Case, folder: Path) -> pa.Table:
    """The whole contract. Returns the output, for the comparison with the reference."""
    plan = plan_of(case.job(folder))
    output = run_inline(plan)
    check_schema_order_and_lineage(case, plan, output)
    check_batches_change_nothing(case, folder, output)
    check_nulls_become_errors(case, folder)
    check_unknown_params_are_refused(case, folder)
    return output


def check_schema_order_and_lineage(case: Case, plan, output: pa.Table) -> None:
    assert output.schema.equals(plan.job.output_schema)
    assert output["id"].to_pylist() == list(range(len(output)))
    assert output["error"].null_count == len(output)
    assert set(output["model_revision"].to_pylist()) == {plan.job.step.model.commit}
    assert plan.job.step.model.commit.startswith("sha256:")
    logged = {json.loads(text)["task"] for text in output["parameters"].to_pylist()}
    assert logged == {tasks.find(case.task).name}
    assert json.loads(output["parameters"][0].as_py())["params"].items() >= case.params.items()


def check_batches_change_nothing(case: Case, folder: Path, output: pa.Table) -> None:
    """One row a batch, everything in one batch, and preprocess as a stage of its own: the same predictions."""
    expected = predictions(output, case.task, case.params)
    for machine, stage in (({"max_batch_rows": 1}, False), ({"max_batch_tokens": 10**6}, True)):
        made = predictions(run_inline(plan_of(case.job(folder), **machine), stage=stage), case.task, case.params)
        assert_close(made, expected)


def check_nulls_become_errors(case: Case, folder: Path) -> None:
    rows = {name: [values[0], None, values[-1]] for name, values in case.rows.items()}
    made = run_inline(plan_of(case.job(folder, rows)))
    assert made["error"].to_pylist()[::2] == [None, None]
    assert made["error"][1].as_py().startswith("null_input: ")
    assert all(value is None for value in predictions(made, case.task, case.params)[1].values())


def check_unknown_params_are_refused(case: Case, folder: Path) -> None:
    job = case.job(folder)
    job["params"] = {**job["params"], "no_such_parameter": 1}
    with pytest.raises(SpecError, match="no_such_parameter"):
        load_job(job)


def assert_close(made: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal, floats within `tolerance`."""
    if isinstance(expected, dict):
        assert made.keys() == expected.keys()
        for name in expected:
            assert_close(made[name], expected[name], tolerance)
    elif isinstance(expected, list | tuple):
        assert len(made) == len(expected)
        for one, other in zip(made, expected, strict=True):
            assert_close(one, other, tolerance)
    elif isinstance(expected, float):
        assert math.isclose(made, expected, abs_tol=tolerance), (made, expected)
    else:
        assert made == expected

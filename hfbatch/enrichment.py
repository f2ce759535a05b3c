"""enrich(frame) -> the same frame with a model's predictions: for notebooks, without files and without a cluster.

A frame in memory goes through the model in this process, some thousand rows at a time; a ray.data.Dataset through
actors of the Ray that it belongs to, when it is consumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from hfbatch.errors import Problem, SpecError
from hfbatch.frames import Frame, kinds_of, open_frame
from hfbatch.load import load_machine
from hfbatch.spec import Machine

if TYPE_CHECKING:
    from hfbatch.addition import Addition
    from hfbatch.bar import Bar

F = TypeVar("F")

BLOCK_ROWS = 4096


def enrich(
    frame: F,
    /,
    *,
    task: str,
    model: str | os.PathLike[str] | Mapping[str, Any],
    column: str | Mapping[str, str] | None = None,
    prefix: str = "",
    lineage: bool = False,
    on: str | Path | Mapping[str, Any] | Machine | None = None,
    progress: bool = True,
    **params: Any,
) -> F:
    """The frame with the task's columns and `error` behind its own: the same kind, order and index; nothing is changed.

    `frame` is a pandas or polars DataFrame, a pyarrow.Table, a datasets.Dataset or a ray.data.Dataset. `model` is an
    id, a local folder, or a mapping as in a job file (id, revision, dtype, ...). `column` names the column that the
    task reads, or each of its inputs: {"question": "q", "context": "page"}; by default they have the task's names.
    `prefix` goes before the name of every new column; `lineage` adds model_id, model_revision, parameters and run_id.
    `on` is a machine file; of it counts what one process heeds. Other arguments are the task's params; those that share
    a name with one of these go into params={...}. allow_media_prefixes=[...] are folders whose paths may be read.

    A row that cannot be predicted has nulls and its `error`. The model stays loaded for the next call, until `shutdown`
    or the end of `with warm()`; the last two do. Ctrl-C ends the call after the batch in the model.

    Raises SpecError (2) with every problem of the arguments, and what `run` raises for a model that does not serve.
    """
    from hfbatch.addition import Request, make_addition
    from hfbatch.pipeline import new_run_id

    machine, run_id = load_machine(on), new_run_id()
    asked = Request(task, model, column, prefix, lineage, params)
    if "ray.Dataset" in kinds_of(frame):
        from hfbatch import raydata

        dataset: Any = frame
        addition = make_addition(asked, raydata.schema_frame(dataset), run_id)
        lazily: F = raydata.with_columns(dataset, addition, machine)
        return lazily
    opened = open_frame(frame)
    made = make_addition(asked, opened, run_id)
    enriched: F = opened.plus(_predicted(opened, made, _here(machine), progress))
    return enriched


def shutdown() -> None:
    """Give up the models that `enrich` keeps, and their memory; the next call loads anew. Raises nothing."""
    from hfbatch.resident import MODELS

    MODELS.clear()


@contextmanager
def warm(keep: int = 2) -> Iterator[None]:
    """A block in which `enrich` keeps the last `keep` models, and behind which it keeps none. Raises nothing."""
    from hfbatch.resident import MODELS

    before, MODELS.keep = MODELS.keep, keep
    try:
        yield
    finally:
        MODELS.keep = before
        MODELS.clear()


def _here(machine: Machine) -> Machine:
    """The machine file for this process: without the watchdog, which ends a process. SpecError for a cluster."""
    if machine.address is not None:
        message = f"machine.address is {machine.address!r}, and a frame in memory is predicted in this process"
        fix = "leave address out, or give a ray.data.Dataset, such as ray.data.from_pandas(frame)"
        raise SpecError([Problem("on", "on", message, fix)])
    return machine.model_copy(update={"row_timeout_s": None})


def _predicted(frame: Frame, made: Addition, machine: Machine, progress: bool) -> pa.Table:
    """The new columns, for all rows of the frame."""
    if not frame.rows:
        return made.nothing()
    from hfbatch.bar import shown
    from hfbatch.resident import MODELS, interruptible

    types, parts, failed = made.types_in(frame), list[pa.Table](), 0
    with shown(made.job.task, frame.rows, progress) as bar:
        bar.wait("loading the model")
        with MODELS.steps(made.job, machine) as steps, interruptible() as check:
            bar.tell(0)
            for start in range(0, frame.rows, BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, frame.rows)
                rows, errors = made.rows_of(frame, start, stop, types)
                steps.told = partial(_tell, bar, check, start, stop)
                parts.append(made.named(steps(rows, "frame", start, errors)))
                failed += stop - start - parts[-1][made.prefix + "error"].null_count
                bar.tell(stop, failed)
                check()
    return pa.concat_tables(parts)


def _tell(bar: Bar, check: Callable[[], None], start: int, stop: int, sequences: int) -> None:
    """After a batch: so many sequences of the rows [start, stop) are done."""
    check()
    bar.tell(min(start + sequences, stop))

"""A ray.data.Dataset with a model's columns: made when it is consumed, by actors that hold the model.

The Ray is the one that the dataset belongs to; hfbatch has to be installed on its nodes. In which order rows come is
Ray's affair, as it is for any map_batches.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import ray
import ray.data

from hfbatch.addition import Addition
from hfbatch.cluster import pool_here
from hfbatch.frames import ArrowFrame
from hfbatch.spec import Machine
from hfbatch.steps import Steps

BATCH_ROWS = 1024
RESTARTS, RETRIES = 4, 2  # of an actor, and of a batch whose actor died; Ray Data's default is for ever


def schema_frame(dataset: Any) -> ArrowFrame:
    """The dataset's columns, without rows. Where they are not known yet, Ray reads its first rows."""
    schema = dataset.schema()
    known = schema.base_schema if schema is not None else pa.schema([])
    if not isinstance(known, pa.Schema):  # blocks of pandas
        known = dataset.take_batch(1, batch_format="pyarrow").schema
    return ArrowFrame(known.empty_table())


def with_columns(dataset: Any, made: Addition, machine: Machine) -> Any:
    """The dataset with the columns of `made`, lazily. SystemicError for GPUs that Ray does not have."""
    pool = pool_here(machine)
    return dataset.map_batches(
        Enricher,
        fn_constructor_args=(made, machine, pool.threads, pool.gpus > 0),
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=pool.size.min, max_size=pool.size.max, initial_size=pool.start),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        max_restarts=RESTARTS,
        max_task_retries=RETRIES,
    )


class Enricher:
    """A callable of batches; Ray makes an actor of it."""

    def __init__(self, made: Addition, machine: Machine, threads: int, gpu: bool) -> None:
        self.made, self.steps = made, Steps(made.job, machine, threads, gpu)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with the new columns. What is random depends on the batch's content, as rows have no number."""
        frame = ArrowFrame(batch)
        rows, errors = self.made.rows_of(frame, 0, len(batch), self.made.types_in(frame))
        place = f"dataset {_digest(rows)}" if self.steps.chain.last.task.keyed else "dataset"
        return frame.plus(self.made.named(self.steps(rows, place, 0, errors)))


def _digest(rows: pa.Table) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for batch in rows.to_batches():
        hashed.update(batch.serialize())
    return hashed.hexdigest()

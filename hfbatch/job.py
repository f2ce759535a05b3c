"""Job: all that a worker needs to know of a job. Small, picklable, and complete: no name in it is still to resolve."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import pyarrow as pa

from hfbatch import heads, hub, tasks
from hfbatch.checkpoint import Checkpoint
from hfbatch.errors import Problem
from hfbatch.spec import ErrorsSpec
from hfbatch.tasks.base import Task


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know of a job; small and picklable."""

    name: str
    task: str
    params: Mapping[str, Any]
    model: hub.PinnedModel
    dtype: str  # float32, bfloat16 or float16
    attn_implementation: str | None
    trust_remote_code: bool
    reads: Mapping[str, str]  # the task's input -> the dataset's column
    given: pa.Schema  # the task's inputs with their kinds (kinds.py), in the order of `reads`
    keep: tuple[str, ...]
    prefix: str
    where: str | None
    input_schema: pa.Schema  # the columns read from the files
    output_schema: pa.Schema  # every column of the committed files, in order
    errors: ErrorsSpec
    output: str
    model_place: str = ""  # where model.id stands in the job file, for messages
    companions: Mapping[str, hub.PinnedModel] = field(default_factory=dict)  # see tasks.base.Task
    media_prefixes: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()  # columns that the folders of data/ give, and the files there do not have

    def fetch_model(self) -> str:
        """A local folder with the checkpoint; downloads it, and its companions, where they are not there yet."""
        for companion in self.companions.values():
            hub.fetch(companion)
        return hub.fetch(self.model, code=self.trust_remote_code)

    def make_task(self) -> Task:
        """The task with its config and tokenizer."""
        folder = hub.fetch(self.model, weights=False, code=self.trust_remote_code)
        source = source_of(self.model, folder, self.trust_remote_code, self.companions)
        return load_task(self.task, self.params, source, self.given)

    def with_seed(self) -> Job:
        """The job with the seed that sampling starts from, where its task has one and nobody wrote it.

        It is drawn from the job's identity: a rerun finds the same, and it is logged with the other params.
        """
        if "seed" not in self.params or self.params["seed"] is not None:
            return self
        return replace(self, params={**self.params, "seed": int(self.generation[:8], 16) >> 1})

    def problem_with_head(self, missing: list[str]) -> Problem:
        """The checkpoint lacks weights that the task needs."""
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        message = f"{self.model.id!r} has no weights for {names}: it was not trained for {self.task}"
        return Problem(self.model_place or "model.id", "model.id", message, "take a checkpoint made for this task")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that affects a value. Batch size, actors and the place of the output are not in it."""
        more: dict[str, Any] = {}
        if self.trust_remote_code:
            more["remote_code"] = self.model.code_revision or self.model.commit
        more |= {name: f"{each.id}@{each.commit}" for name, each in self.companions.items()}
        if self.partition_by:  # it changes no value, but where rows stand
            more["partition_by"] = list(self.partition_by)
        return {
            "task": self.task,
            "task_version": tasks.find(self.task).version,
            "params": dict(self.params),
            "model_commit": self.model.commit,
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "input_columns": dict(self.reads),
            "where": self.where,
            "output_columns": {name.name: str(name.type) for name in self.output_schema},
            **more,
        }

    @cached_property
    def generation(self) -> str:
        """A hash of `identity`: outputs of different generations never mix."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    @cached_property
    def parameters(self) -> str:
        """What stands in each row's `parameters`: canonical JSON of all that affects the value but the commit."""
        names = ("task", "params", "dtype", "attn_implementation", "input_columns", "remote_code")
        return canonical({name: self.identity[name] for name in chain(names, self.companions) if name in self.identity})


@dataclass(frozen=True)
class Source:
    """Where a Checkpoint is read from; hashable."""

    folder: str
    trust_remote_code: bool = False
    code_revision: str | None = None
    companions: tuple[tuple[str, str], ...] = ()
    commit: str = ""  # a folder's content may change within a process


def source_of(
    model: hub.PinnedModel, folder: str, trust_remote_code: bool, companions: Mapping[str, hub.PinnedModel]
) -> Source:
    """Where the checkpoint of `model`, which lies in `folder`, and its companions are read from."""
    beside = tuple((name, hub.fetch(each, weights=False)) for name, each in sorted(companions.items()))
    return Source(folder, trust_remote_code, model.code_revision, beside, model.commit)


def load_task(name: str, params: Mapping[str, Any], source: Source, given: pa.Schema | None = None) -> Task:
    """The task `name` for the checkpoint in `source`; loaded once a process.

    ValueError, OSError, KeyError: the checkpoint cannot serve it. AccessRefused: it wants to run code.
    """
    return _load_task(name, canonical(params), source, given)


@lru_cache(maxsize=4)
def _load_task(name: str, params: str, source: Source, given: pa.Schema | None) -> Task:
    task, checkpoint = tasks.find(name), _checkpoint(source)
    heads.check(task.auto_class(checkpoint.config), checkpoint.config)
    checkpoint.require(task.needs)
    return task(task.Params.model_validate_json(params), checkpoint, given)


@lru_cache(maxsize=4)
def _checkpoint(source: Source) -> Checkpoint:
    beside = dict(source.companions)
    return Checkpoint(source.folder, source.trust_remote_code, source.code_revision, beside)


def canonical(value: Any) -> str:
    """JSON with one spelling for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

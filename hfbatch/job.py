"""Job: all that a worker needs to know of a job, and Step: of what one model does in it.

Small, picklable, and complete: no name in them is still to resolve.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hfbatch import heads, hub, tasks
from hfbatch.checkpoint import Checkpoint
from hfbatch.columns import MADE, SEEN
from hfbatch.errors import Problem
from hfbatch.spec import ErrorsSpec
from hfbatch.tasks.base import Task

if TYPE_CHECKING:
    from hfbatch.guards.apply import Guards

MODEL_LINEAGE = ("model_id", "model_revision", "parameters")  # columns that say what made a row's predictions


@dataclass(frozen=True)
class Step:
    """One task with one model, bound to columns."""

    name: str  # "" in a job without `steps:`
    task: str
    params: Mapping[str, Any]
    model: hub.PinnedModel
    dtype: str  # float32, bfloat16 or float16
    attn_implementation: str | None
    trust_remote_code: bool
    reads: Mapping[str, str]  # the task's input -> the column of the dataset, or the one that an earlier step makes
    given: pa.Schema  # the task's inputs with their kinds (kinds.py), in the order of `reads`
    prefix: str
    writes: pa.Schema  # the task's columns, without the prefix
    where: str | None = None  # only rows for which this holds go through the model; the others have nulls
    model_place: str = ""  # where model.id stands in the job file, for messages
    companions: Mapping[str, hub.PinnedModel] = field(default_factory=dict)  # see tasks.base.Task
    media_prefixes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)  # column that an earlier step makes -> its generation
    redacted: Mapping[str, Any] = field(default_factory=dict)  # column that a rule changes before -> how

    def fetch_model(self) -> str:
        """A local folder with the checkpoint; downloads it, and its companions, where they are not there yet."""
        for companion in self.companions.values():
            hub.fetch(companion)
        return hub.fetch(self.model, code=self.trust_remote_code)

    def make_task(self, *, own: bool = False) -> Task:
        """The task with its config and tokenizer. `own`: one that nobody else has, for another thread."""
        folder = hub.fetch(self.model, weights=False, code=self.trust_remote_code)
        source = source_of(self.model, folder, self.trust_remote_code, self.companions)
        return load_task(self.task, self.params, source, self.given, own=own)

    def problem_with_head(self, missing: list[str]) -> Problem:
        """The checkpoint lacks weights that the task needs."""
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        message = f"{self.model.id!r} has no weights for {names}: it was not trained for {self.task}"
        return Problem(self.model_place or "model.id", "model.id", message, "take a checkpoint made for this task")

    def lineage(self, name: str) -> str:
        """The output's column for `name` of MODEL_LINEAGE: a job's own, or one of each of its steps."""
        return self.prefix + name if self.name else name

    def place_of(self, column: str) -> str:
        """The name of `column` in a block: what an earlier step made stands apart from the dataset's."""
        if column in self.redacted:
            return SEEN + column
        return MADE + column if column in self.sources else column

    @property
    def made(self) -> tuple[str, ...]:
        """The names of its columns in the output."""
        return tuple(self.prefix + name for name in self.writes.names)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that affects a value: of two rows with equal inputs, under equal identities, they are the same."""
        more: dict[str, Any] = {}
        if self.trust_remote_code:
            more["remote_code"] = self.model.code_revision or self.model.commit
        more |= {name: f"{each.id}@{each.commit}" for name, each in self.companions.items()}
        if self.sources:
            more["sources"] = dict(self.sources)
        if self.redacted:
            more["redacted"] = dict(self.redacted)
        return {
            "task": self.task,
            "task_version": tasks.find(self.task).version,
            "params": dict(self.params),
            "model_commit": self.model.commit,
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "input_columns": dict(self.reads),
            **more,
        }

    @cached_property
    def generation(self) -> str:
        """A hash of `identity`."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    @cached_property
    def parameters(self) -> str:
        """What stands in each row's `parameters`: canonical JSON of all that affects the value but the commit."""
        names = ("task", "params", "dtype", "attn_implementation", "input_columns", "redacted", "remote_code")
        return canonical({name: self.identity[name] for name in chain(names, self.companions) if name in self.identity})

    def with_seed(self) -> Step:
        """The step with the seed that sampling starts from, where its task has one and nobody wrote it.

        It is drawn from a hash of what the step computes: a rerun finds the same, and so does a job of which another
        step was changed, or what it keeps. It is logged with the other params.
        """
        if "seed" not in self.params or self.params["seed"] is not None:
            return self
        return replace(self, params={**self.params, "seed": int(self.generation[:8], 16) >> 1})


@dataclass(frozen=True)
class Job:
    """The steps that rows go through, one after another, where rows come from and what is committed of them."""

    name: str
    steps: tuple[Step, ...]
    keep: tuple[str, ...]
    where: str | None
    input_schema: pa.Schema  # the columns read from the files
    output_schema: pa.Schema  # every column of the committed files, in order
    errors: ErrorsSpec
    output: str
    partition_by: tuple[str, ...] = ()  # columns that the folders of data/ give, and the files there do not have
    dedupe: bool = False  # rows with equal inputs are inferred once; see reuse.py
    afresh: bool = False  # every row is inferred, whatever stands already
    guards: Guards | None = None  # the rules that rows have to keep

    @property
    def remembers(self) -> bool:
        """Whether its objects say what they know (known.py): for equal rows, and for when a step of several changes."""
        return self.dedupe or len(self.steps) > 1

    def without_reuse(self) -> Job:
        """The job for who wants each row to go through the model."""
        return replace(self, dedupe=False, afresh=True)

    @property
    def step(self) -> Step:
        """The only one. ValueError where there are several."""
        (only,) = self.steps
        return only

    @property
    def chain(self) -> tuple[Step, ...]:
        """The steps, and the models that rules ask before and after them, in the order in which a row meets them."""
        return self.steps if self.guards is None else (*self.guards.before, *self.steps, *self.guards.after)

    @property
    def task(self) -> str:
        """What is done, for people."""
        return ", ".join(step.task for step in self.steps)

    @property
    def model_id(self) -> str:
        """The model, or the models, for people."""
        return ", ".join(dict.fromkeys(step.model.id for step in self.steps))

    @property
    def model_commit(self) -> str:
        """The commits of `model_id`, in its order."""
        return ", ".join({step.model.id: step.model.commit for step in self.steps}.values())

    def max_bytes_per_row(self) -> int:
        """The most bytes one row's output may take."""
        return sum(step.make_task().max_bytes_per_row() for step in self.steps)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that affects a value. Batch size, actors and the place of the output are not in it."""
        # partition_by changes no value, but where rows stand
        more: dict[str, Any] = {"partition_by": list(self.partition_by)} if self.partition_by else {}
        if len(self.steps) == 1 and not self.step.name:
            done: dict[str, Any] = self.step.identity
        else:
            told = [dict(name=s.name, prefix=s.prefix, where=s.where, **s.identity) for s in self.steps]
            done = {"steps": told}
        if self.guards is not None:
            more["guardrails"] = self.guards.identity
        columns = {name.name: str(name.type) for name in self.output_schema}
        return {**done, "where": self.where, "output_columns": columns, **more}

    @cached_property
    def generation(self) -> str:
        """A hash of `identity`: outputs of different generations never mix."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()


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


def load_task(
    name: str, params: Mapping[str, Any], source: Source, given: pa.Schema | None = None, *, own: bool = False
) -> Task:
    """The task `name` for the checkpoint in `source`; loaded once a process, or anew: `own`.

    ValueError, OSError, KeyError: the checkpoint cannot serve it. AccessRefused: it wants to run code.
    """
    if own:
        return _task_of(name, canonical(params), _checkpoint.__wrapped__(source), given)
    return _load_task(name, canonical(params), source, given)


@lru_cache(maxsize=16)
def _load_task(name: str, params: str, source: Source, given: pa.Schema | None) -> Task:
    return _task_of(name, params, _checkpoint(source), given)


def _task_of(name: str, params: str, checkpoint: Checkpoint, given: pa.Schema | None) -> Task:
    task = tasks.find(name)
    heads.check(task.auto_class(checkpoint.config), checkpoint.config)
    checkpoint.require(task.needs)
    return task(task.Params.model_validate_json(params), checkpoint, given)


@lru_cache(maxsize=16)
def _checkpoint(source: Source) -> Checkpoint:
    beside = dict(source.companions)
    return Checkpoint(source.folder, source.trust_remote_code, source.code_revision, beside)


def canonical(value: Any) -> str:
    """JSON with one spelling for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

"""Job: all that a worker needs to know of a job. Small, picklable, and complete: no name in it is still to resolve."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa

from hfbatch import hub, tasks
from hfbatch.errors import Problem
from hfbatch.spec import ErrorsSpec
from hfbatch.tasks.base import Task
from hfbatch.trust import without_code


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
    keep: tuple[str, ...]
    prefix: str
    where: str | None
    input_schema: pa.Schema  # the columns read from the files
    output_schema: pa.Schema  # every column of the committed files, in order
    errors: ErrorsSpec
    output: str
    model_place: str = ""  # where model.id stands in the job file, for messages

    def fetch_model(self) -> str:
        """A local folder with the checkpoint; downloads it where it is not there yet."""
        return hub.fetch(self.model, code=self.trust_remote_code)

    def make_task(self) -> Task:
        """The task with its config and tokenizer."""
        folder = hub.fetch(self.model, weights=False, code=self.trust_remote_code)
        return load_task(self.task, self.params, folder, self.trust_remote_code, self.model.code_revision)

    def problem_with_head(self, missing: list[str]) -> Problem:
        """The checkpoint lacks weights that the task needs."""
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        message = f"{self.model.id!r} has no weights for {names}: it was not trained for {self.task}"
        return Problem(self.model_place or "model.id", "model.id", message, "take a checkpoint made for this task")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that affects a value. Batch size, actors and the place of the output are not in it."""
        code = {"remote_code": self.model.code_revision or self.model.commit} if self.trust_remote_code else {}
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
            **code,
        }

    @cached_property
    def generation(self) -> str:
        """A hash of `identity`: outputs of different generations never mix."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    @cached_property
    def parameters(self) -> str:
        """What stands in each row's `parameters`: canonical JSON of all that affects the value but the commit."""
        names = ("task", "params", "dtype", "attn_implementation", "input_columns", "remote_code")
        return canonical({name: self.identity[name] for name in names if name in self.identity})


def load_task(
    name: str, params: Mapping[str, Any], folder: str, trust_remote_code: bool, code_revision: str | None = None
) -> Task:
    """The task `name` for the checkpoint in `folder`; loaded once a process. AccessRefused: it wants to run code."""
    return _load_task(name, canonical(params), folder, trust_remote_code, code_revision)


@lru_cache(maxsize=4)
def _load_task(name: str, params: str, folder: str, trust_remote_code: bool, code_revision: str | None) -> Task:
    from transformers import AutoConfig, AutoTokenizer

    task = tasks.find(name)
    # False, not None: at None transformers asks on the terminal
    code = {"trust_remote_code": trust_remote_code, "code_revision": code_revision}
    with without_code(folder, trust_remote_code):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **code)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **code)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # tokenizer.json may carry a truncation and a fixed padding of its own
        backend.no_truncation()
        backend.no_padding()
    return task(task.Params.model_validate_json(params), config, tokenizer)


def canonical(value: Any) -> str:
    """JSON with one spelling for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

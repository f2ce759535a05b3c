"""What a person may write: JobSpec (WHAT is computed) and Machine (ON WHAT it runs).

Each setting is declared once, here: field, type, default and comment. The JSON schema, `hfbatch init`
and the error messages read them from these classes. Unknown keys are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from hfbatch.errors import Problem

Loc: TypeAlias = tuple[str | int, ...]  # ("input", "path", 0): the way to a key


class Spec(BaseModel):
    """Frozen data; a key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Origin:
    """Where a spec was written: the file's name, its lines, and line and column of every key."""

    name: str = ""
    lines: tuple[str, ...] = ()
    marks: Mapping[Loc, tuple[int, int]] = field(default_factory=dict)  # 1-based (line, column)

    def problem(self, loc: Loc, message: str, fix: str | None = None) -> Problem:
        """A Problem at `loc`, or at the nearest key above it that is written in the file."""
        key = ".".join(str(part) for part in loc)
        for depth in range(len(loc), -1, -1):
            mark = self.marks.get(loc[:depth])
            if mark is not None:
                return self.at(mark, key, message, fix)
        return Problem(place=self.name or key or "job", key=key, message=message, fix=fix)

    def at(self, mark: tuple[int, int], key: str, message: str, fix: str | None = None) -> Problem:
        """A Problem at a line and column of the file, with the line and a caret as excerpt."""
        line, column = mark
        excerpt = None
        if 1 <= line <= len(self.lines):
            gutter = f" {line} | "
            text = self.lines[line - 1].expandtabs(1)[:160]
            excerpt = f"{gutter}{text}\n{' ' * (len(gutter) - 2)}| {' ' * (column - 1)}^"
        return Problem(f"{self.name}:{line}:{column}", key, message, fix, excerpt)


class ModelSpec(Spec):
    """The model: which checkpoint, at which revision, in which precision."""

    id: Annotated[str, Field(min_length=1, description="Hub id (owner/name) or a local directory")]
    revision: Annotated[
        str | None,
        Field(description="branch, tag or commit; resolved to the full commit before the first row (default: main)"),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="precision of the weights; auto: as the checkpoint was saved"),
    ] = "float32"
    attn_implementation: Annotated[
        str | None, Field(description="transformers' attention implementation; null: its default")
    ] = None
    allow_pickle: Annotated[
        bool, Field(description="load pickled weights where there are no safetensors (torch's weights_only)")
    ] = False
    trust_remote_code: Annotated[
        bool,
        Field(description="run code from the model's repository; needs --trust-remote-code and both full commits too"),
    ] = False
    code_revision: Annotated[
        str | None, Field(description="full commit of that code; the same as revision where it lies beside the model")
    ] = None


InputFormat: TypeAlias = Literal["parquet", "arrow", "jsonl", "csv", "dataset"]


class InputSpec(Spec):
    """The rows: which files, which columns, which rows of them."""

    path: Annotated[
        str | Annotated[list[str], Field(min_length=1)],
        Field(description="file, glob, directory or a list of these; any fsspec URL; a folder day=x/ is a text column"),
    ]
    format: Annotated[
        InputFormat | None,
        Field(description="null: from the file name; dataset: a folder written by datasets.save_to_disk"),
    ] = None
    columns: Annotated[
        dict[str, str], Field(description="the task's input name -> the dataset's column (default: the same name)")
    ] = Field(default_factory=dict)
    keep: Annotated[
        Literal["all"] | list[str], Field(description="input columns carried into the output: all, or a list")
    ] = "all"
    where: Annotated[
        str | None, Field(description="only rows for which this holds, such as: stars >= 3 and lang == 'en'")
    ] = None
    limit: Annotated[PositiveInt | None, Field(description="at most this many rows, after `where`")] = None
    allow_media_prefixes: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(description="folders or URLs below which paths inside image and audio columns may be read; else refused"),
    ] = Field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)


class OutputSpec(Spec):
    """Where predictions go."""

    path: Annotated[str, Field(min_length=1, description="a folder; any fsspec URL")]
    prefix: Annotated[str, Field(description="put before the task's column names")] = ""
    partition_by: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(description="folder columns of the input (day=2026-11-20/): data/ is divided into such folders too"),
    ] = Field(default_factory=list)


class ErrorsSpec(Spec):
    """What happens to rows that cannot be predicted."""

    policy: Annotated[
        Literal["skip", "fail"],
        Field(description="skip: such a row gets nulls and an `error`; fail: the first one stops the run"),
    ] = "skip"
    max_failed_fraction: Annotated[
        float, Field(ge=0, le=1, description="judged from 1,000 rows on and at the end; over it the run stops, exit 3")
    ] = 0.01
    max_failed_rows: Annotated[int | None, Field(ge=0, description="as max_failed_fraction, but a number of rows")] = (
        None
    )


class JobSpec(Spec):
    """One job: a task, a model and a dataset in; a folder of predictions out."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="default: the job file's stem"),
    ] = "job"
    task: Annotated[str, Field(description="what the model does; `hfbatch tasks` lists them")]
    model: ModelSpec
    input: InputSpec
    params: Annotated[dict[str, Any], Field(description="the task's own settings; `hfbatch tasks NAME` shows them")] = (
        Field(default_factory=dict)
    )
    output: OutputSpec
    errors: ErrorsSpec = Field(default_factory=ErrorsSpec)
    vars: Annotated[
        dict[str, str],
        Field(description="${name} anywhere in the file; --var name=value wins; ${today}, ${yesterday}: UTC dates"),
    ] = Field(default_factory=dict)

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where this spec was written, so that later errors can point at the key."""
        return self._origin


class ActorRange(Spec):
    """A pool that grows and shrinks with the cluster."""

    min: Annotated[PositiveInt, Field(description="actors at least; they start together")] = 1
    max: Annotated[PositiveInt, Field(description="actors at most")]

    @model_validator(mode="after")
    def _ordered(self) -> ActorRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}")
        return self


class Machine(Spec):
    """Where a job runs and how big its pieces are. Nothing here changes a prediction."""

    address: Annotated[
        str | None, Field(description="null: a Ray of its own on this machine; auto or ray://host:port: a cluster")
    ] = None
    actors: Annotated[
        Literal["auto"] | PositiveInt | ActorRange,
        Field(description="processes that hold the model; auto: one a GPU, or one when there is none"),
    ] = "auto"
    gpus_per_actor: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)],
        Field(description="auto: 1 where Ray has GPUs, else 0; 0.25: four actors share one"),
    ] = "auto"
    cpus_per_actor: Annotated[PositiveFloat, Field(allow_inf_nan=False, description="Ray CPUs an actor reserves")] = 1
    threads_per_actor: Annotated[
        Literal["auto"] | PositiveInt, Field(description="torch threads; auto: the node's cores over its actors")
    ] = "auto"
    cpu_steps: Annotated[
        Literal["auto", "actor", "tasks"],
        Field(description="where pre- and postprocess run: beside the model or in CPU tasks; auto: tasks with GPUs"),
    ] = "auto"
    max_batch_tokens: Annotated[
        Literal["auto"] | PositiveInt,
        Field(description="tokens of a batch, padding counted; auto: measured, from 2,048 on CPU, 16,384 on a GPU"),
    ] = "auto"
    max_batch_rows: Annotated[PositiveInt, Field(description="sequences of a batch at most")] = 1024
    packing: Annotated[
        bool, Field(description="leave padding out of the model's layers, where a first check shows the same results")
    ] = True
    row_timeout_s: Annotated[
        float | None,
        Field(
            gt=0,
            le=1_000_000,
            allow_inf_nan=False,
            description="the longest the model may be silent over one batch, in seconds; then its process is replaced "
            "and the rows are tried one by one; null: no limit",
        ),
    ] = 600
    shard_rows: Annotated[PositiveInt, Field(description="rows committed together at most: the unit of resume")] = 16384
    shard_bytes: Annotated[PositiveInt, Field(description="input bytes of a shard at most, uncompressed")] = 67108864
    compile: Annotated[bool, Field(description="torch.compile the model with dynamic shapes")] = False
    grace_s: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="seconds that SIGTERM or Ctrl-C leave for rows in the model"),
    ] = 25
    max_runtime: Annotated[
        PositiveFloat | None,
        Field(allow_inf_nan=False, description="seconds after which a run ends as after SIGTERM, with exit 4"),
    ] = None
    cost_per_hour: Annotated[
        PositiveFloat | None,
        Field(allow_inf_nan=False, description="what all actors' machines together cost an hour, for `plan --sample`"),
    ] = None

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @field_validator("gpus_per_actor")
    @classmethod
    def _whole_above_one(cls, gpus: float | str) -> float | str:
        if isinstance(gpus, float) and gpus > 1 and not gpus.is_integer():
            raise ValueError(f"{gpus:g} is no whole number, nor a share of one GPU")
        return gpus

"""What a person may write: JobSpec (WHAT is computed) and Machine (ON WHAT it runs).

Each setting is declared once, here: field, type, default and comment. The JSON schema, `hfbatch init`
and the error messages read them from these classes. Unknown keys are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from hfbatch.gates.spec import GatesSpec
from hfbatch.guards.spec import GuardrailsSpec
from hfbatch.modelspec import ModelSpec
from hfbatch.origin import Loc, Origin, Spec

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


_TASK = "what the model does; `hfbatch tasks` lists them"
_PARAMS = "the task's own settings; `hfbatch tasks NAME` shows them"


class StepSpec(Spec):
    """One task with one model, of several that each row goes through in one job."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=40, description="what reports and messages call it"),
    ]
    task: Annotated[str, Field(description=_TASK)]
    model: ModelSpec
    params: Annotated[dict[str, Any], Field(description=_PARAMS)] = Field(default_factory=dict)
    columns: Annotated[
        dict[str, str],
        Field(description="the task's input name -> a column of the dataset, or one that an earlier step makes"),
    ] = Field(default_factory=dict)
    prefix: Annotated[
        str | None, Field(description="put before the step's column names (default: its name and an underscore)")
    ] = None
    where: Annotated[
        str | None, Field(description="only rows for which this holds; earlier steps' columns may stand in it")
    ] = None


class JobSpec(Spec):
    """One job: a task, a model and a dataset in; a folder of predictions out. Or several tasks, as `steps`."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="default: the job file's stem"),
    ] = "job"
    steps: Annotated[
        list[StepSpec],
        Field(description="instead of task, model and params: several of them, over one reading of the input"),
    ] = Field(default_factory=list)
    task: Annotated[str | None, Field(description=_TASK, validate_default=True)] = None
    model: Annotated[
        ModelSpec | None, Field(validate_default=True, description="which checkpoint, at which revision")
    ] = None
    input: InputSpec
    params: Annotated[dict[str, Any], Field(description=_PARAMS)] = Field(default_factory=dict)
    output: OutputSpec
    errors: ErrorsSpec = Field(default_factory=ErrorsSpec)
    dedupe: Annotated[
        bool,
        Field(description="rows with equal inputs are inferred once, in one run and, while their results stand, later"),
    ] = False
    gates: Annotated[
        GatesSpec | None,
        Field(description="what a run must be like to be published; if it is not, the last one stays, and exit 9"),
    ] = None
    guardrails: Annotated[
        GuardrailsSpec | None, Field(description="rules for rows; what was done stands in the column `guardrails`")
    ] = None
    vars: Annotated[
        dict[str, str],
        Field(description="${name} anywhere in the file; --var name=value wins; ${today}, ${yesterday}: UTC dates"),
    ] = Field(default_factory=dict)

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @field_validator("steps")
    @classmethod
    def _named_apart(cls, steps: list[StepSpec]) -> list[StepSpec]:
        names = [step.name for step in steps]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two steps are named {doubled!r}")
        return steps

    @field_validator("task", "model", mode="before")
    @classmethod
    def _one_or_steps(cls, value: Any, info: ValidationInfo) -> Any:
        steps = info.data.get("steps", ["some, that are wrong"])
        if value is None and not steps:
            raise PydanticKnownError("missing")
        if value is not None and info.data.get("steps"):
            raise ValueError("stands in each of the steps; leave it out here")
        return value

    @property
    def each(self) -> tuple[StepSpec, ...]:
        """The steps; of a job without, its task as the only one, which has no name."""
        if self.steps:
            return tuple(self.steps)
        assert self.task is not None
        assert self.model is not None
        return (
            StepSpec.model_construct(
                name="",
                task=self.task,
                model=self.model,
                params=self.params,
                columns=self.input.columns,
                prefix=self.output.prefix,
                where=None,
            ),
        )

    def loc(self, step: int, *key: str) -> Loc:
        """Where `key` of a step of `each` stands in the job file."""
        if self.steps:
            return ("steps", step, *key)
        section: Loc = {"columns": ("input",), "prefix": ("output",)}.get(key[0], ())
        return (*section, *key)

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
    compile: Annotated[
        bool,
        Field(
            description="torch.compile the model; texts are padded to a few widths, each compiled once, and not packed"
        ),
    ] = False
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

"""What a person may write under `gates:`: what a new output must be like before it takes the place of the last one.

A bound is a number, or {min, max}. A number alone is the most for what should be small (shares, shifts) and the least
for what should be large (rows, means, quantiles).
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from hfbatch.origin import Spec

_Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
_Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


def _at_least_one(**given: object) -> None:
    if all(value is None for value in given.values()):
        raise ValueError(f"{' or '.join(given)} is missing: write one of them, or both")


class Bounds(Spec):
    """What a value has to lie between; either end may be open."""

    min: Annotated[_Number | None, Field(description="at least")] = None
    max: Annotated[_Number | None, Field(description="at most")] = None

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        _at_least_one(min=self.min, max=self.max)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is over max {self.max:g}")
        return self


class ShareBounds(Bounds):
    """Bounds of a share, from 0 to 1."""

    min: Annotated[_Share | None, Field(description="at least")] = None
    max: Annotated[_Share | None, Field(description="at most")] = None


Bound: TypeAlias = _Number | Bounds
ShareBound: TypeAlias = _Share | ShareBounds


def at_most(bound: float | Bounds) -> Bounds:
    """A number alone as the most."""
    return bound if isinstance(bound, Bounds) else Bounds(max=bound)


def at_least(bound: float | Bounds) -> Bounds:
    """A number alone as the least."""
    return bound if isinstance(bound, Bounds) else Bounds(min=bound)


def _is_share(text: str) -> str:
    try:
        inside = 0 <= float(text) <= 1
    except ValueError:
        inside = False
    if not inside:
        raise ValueError(f"{text!r} is no share of the rows: write 0.5 for the median")
    return text


Quantile: TypeAlias = Annotated[str, AfterValidator(_is_share)]


class ShiftSpec(Spec):
    """How far a column may move; of labels by label, of numbers by tenths of the last run."""

    psi: Annotated[
        Bound | None,
        Field(description="population stability index, in nats; under 0.1 is little, over 0.25 much"),
    ] = None
    jensen_shannon: Annotated[
        ShareBound | None, Field(description="Jensen-Shannon divergence, in bits: 0 alike, 1 nothing in common")
    ] = None

    @model_validator(mode="after")
    def _some(self) -> ShiftSpec:
        _at_least_one(psi=self.psi, jensen_shannon=self.jensen_shannon)
        return self


class GoldenSpec(Spec):
    """Rows whose right label is known, compared with what the model gave them. They have to be in the input."""

    path: Annotated[str, Field(min_length=1, description="a small file: Parquet, Arrow, JSON lines or CSV; any URL")]
    key: Annotated[str, Field(min_length=1, description="the column by which its rows are found in the output")]
    label: Annotated[str, Field(min_length=1, description="the output's column that is compared")] = "label"
    truth: Annotated[
        str | None, Field(min_length=1, description="the file's column with the right label (default: as `label`)")
    ] = None
    min_accuracy: Annotated[_Share | None, Field(description="share of its rows that have the right label")] = None
    min_f1: Annotated[_Share | None, Field(description="F1 of each label, and of these the mean (macro)")] = None

    @model_validator(mode="after")
    def _some(self) -> GoldenSpec:
        _at_least_one(min_accuracy=self.min_accuracy, min_f1=self.min_f1)
        return self


class QuerySpec(Bounds):
    """A SELECT that gives one number."""

    query: Annotated[str, Field(min_length=1, description="over `output`, and `last`, the output published last")]


class GatesSpec(Spec):
    """What a run must be like to be published. One that is not leaves the last output as it was, and ends with 9."""

    min_rows: Annotated[NonNegativeInt | None, Field(description="rows of the output")] = None
    rows_against_last: Annotated[
        Bound | None, Field(description="rows over those of the output published last, such as {min: 0.9, max: 1.5}")
    ] = None
    error_share: Annotated[ShareBound | None, Field(description="share of rows with an error")] = None
    truncated_share: Annotated[ShareBound | None, Field(description="share of rows whose text was cut")] = None
    null_share: Annotated[dict[str, ShareBound], Field(description="column: share of its rows that are null")] = Field(
        default_factory=dict
    )
    mean: Annotated[dict[str, Bound], Field(description="column: mean of its numbers; nulls do not count")] = Field(
        default_factory=dict
    )
    quantile: Annotated[
        dict[str, dict[Quantile, Bound]],
        Field(description="column: {share: the number that this share of rows does not pass}; 0.5 is the median"),
    ] = Field(default_factory=dict)
    label_share: Annotated[
        dict[str, dict[str, ShareBound]],
        Field(description="column: {label: its share of the rows that have one}"),
    ] = Field(default_factory=dict)
    shift: Annotated[
        dict[str, _Positive | ShiftSpec],
        Field(description="column: how far from the output published last; a number alone is psi"),
    ] = Field(default_factory=dict)
    golden: Annotated[GoldenSpec | None, Field(description="a small file with the right labels")] = None
    sql: Annotated[
        list[str] | dict[str, str | QuerySpec],
        Field(description="SELECTs over `output` (and `last`) that must be true; or {query, min, max}; for DuckDB"),
    ] = Field(default_factory=list)

    @property
    def queries(self) -> dict[str, str | QuerySpec]:
        """`sql` by name; in a list they are named by their place, from 1."""
        if isinstance(self.sql, dict):
            return dict(self.sql)
        return {str(number): query for number, query in enumerate(self.sql, 1)}

    @property
    def shifts(self) -> dict[str, ShiftSpec]:
        """`shift` with each number as what it means."""
        return {
            column: asked if isinstance(asked, ShiftSpec) else ShiftSpec(psi=asked)
            for column, asked in self.shift.items()
        }

"""Comparison: where two outputs over the same rows agree, and where not. Data; comparing.py makes it.

Counts are of rows, unless a name says otherwise. `a` and `b` are the two outputs throughout.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Column(BaseModel):
    """What two outputs have in one column."""

    model_config = ConfigDict(frozen=True)

    column: str
    rows: int  # with a value in both
    null_a: int  # with a value in b only, though neither failed
    null_b: int


class Agreement(Column):
    """A column whose values are the same or are not."""

    equal: int  # rows

    @property
    def equal_share(self) -> float:
        """Of the rows with a value in both."""
        return self.equal / self.rows if self.rows else 1.0


class Labels(Agreement):
    """A column of labels; of a list of them, the best."""

    a: dict[str, int]  # label -> rows, the most frequent first
    b: dict[str, int]
    confusion: list[tuple[str, str, int]]  # label in a, label in b, rows; the most frequent first


class Scores(Column):
    """A column of numbers; of a list of labels, the best one's score."""

    mean_change: float  # b - a
    mean_difference: float  # without sign
    largest_difference: float
    differences: dict[str, int]  # how large -> rows


class Vectors(Column):
    """A column of vectors."""

    mean_cosine: float
    lowest_cosine: float
    cosines: dict[str, int]  # how alike -> rows


class Values(Agreement):
    """A column of text, or of anything else that has no measure."""


class Change(BaseModel):
    """A row that differs much."""

    model_config = ConfigDict(frozen=True)

    column: str
    place: str  # file and row, or the key
    difference: float  # b - a; of vectors 1 - cosine
    a: float | None = None
    b: float | None = None
    label_a: str | None = None
    label_b: str | None = None
    text: str | None = None


class Subject(BaseModel):
    """One of the two outputs."""

    model_config = ConfigDict(frozen=True)

    output: str
    task: str
    model_id: str
    model_revision: str
    params: dict[str, Any]
    complete: bool
    rows: int  # committed


class Comparison(BaseModel):
    """What two outputs have in common."""

    model_config = ConfigDict(frozen=True)

    a: Subject
    b: Subject
    on: str | None  # the key column; None: file and row
    rows: int  # in both
    only_a: int
    only_b: int
    changed_files: list[str]  # known to both with another content: their rows are not the same
    failed_a: int  # of the rows in both
    failed_b: int
    errors: list[tuple[str, str, int]]  # code in a, code in b ("": none), rows; of rows where either failed
    labels: list[Labels]
    scores: list[Scores]
    vectors: list[Vectors]
    values: list[Values]
    changes: list[Change]  # the rows that differ most, by column
    skipped: dict[str, str]  # column -> why it was not compared

    def _repr_html_(self) -> str:
        from hfbatch.comparison_html import comparison_card

        return comparison_card(self)

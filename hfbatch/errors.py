"""Every way hfbatch can fail, each with the exit code it ends the process with.

    HfbatchError
    ├── SpecError             2   the job or machine file, or what it points at, is wrong
    ├── ErrorBudgetExceeded   3   more rows failed than `errors:` allows
    ├── Incomplete            4   some shards are not committed; running again helps
    ├── Conflict              5   what stands in the output contradicts this run
    │   └── InputChanged      5   a file changed after it was planned
    ├── Damage                6   what stands in the output is not what was committed
    ├── GateFailed            9   the run is whole, and not what `gates:` ask for: the last one stays published
    ├── SystemicError        70   a failure that is not one row's or one shard's
    ├── StorageError         74   reading or writing failed
    ├── Locked               75   another run is at work on the output
    ├── AccessRefused        77   credentials or trust refused
    ├── UnsafeStore          78   the store cannot keep the promise of exactly-once
    └── Interrupted     130/143   stopped by a signal; running again resumes

`RowError` is not in the tree: it is one row's fault and becomes a value in that row's `error` column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and what to write instead."""

    place: str  # "jobs/reviews.yaml:5:3", or "input.path" when there is no file
    key: str  # dotted key: "model.revison"; "" for the whole file
    message: str
    fix: str | None = None
    excerpt: str | None = None  # the source line, indented by its number, with a caret below

    def __str__(self) -> str:
        subject = f"{self.key}: " if self.key and not self.place.endswith(self.key) else ""
        lines = [f"{self.place}: {subject}{self.message}"]
        if self.excerpt:
            lines.append(self.excerpt + (f" fix: {self.fix}" if self.fix else ""))
        elif self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class HfbatchError(Exception):
    """Base of all expected failures. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 70


class SpecError(HfbatchError):
    """The job file, the machine file or what they point at is wrong. Carries every problem at once."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class ErrorBudgetExceeded(HfbatchError):
    """More rows failed than the job's `errors:` section allows. What is committed stays."""

    exit_code = 3


class Incomplete(HfbatchError):
    """Some shards could not be committed; a rerun continues where this one stopped."""

    exit_code = 4


class Conflict(HfbatchError):
    """What stands in the output was made by another spec, another run or another program."""

    exit_code = 5


class InputChanged(Conflict):
    """A file is no longer the one that was planned. Its shards stay uncommitted, the others go on."""


class Damage(HfbatchError):
    """What stands in the output is not what was committed: an object is gone, a record was edited, a bit flipped."""

    exit_code = 6


class GateFailed(HfbatchError):
    """The run is whole, but not what the job's `gates:` ask for. It stands aside; what was published last stays."""

    exit_code = 9


class SystemicError(HfbatchError):
    """Nothing could be done at all: a bug, a broken installation, a model that does not load."""

    exit_code = 70


class StorageError(HfbatchError):
    """Reading the input or writing the output failed."""

    exit_code = 74


class Locked(HfbatchError):
    """Another run is at work on this output."""

    exit_code = 75


class AccessRefused(HfbatchError):
    """Credentials or trust were refused: a gated model, a private bucket, remote code."""

    exit_code = 77


class UnsafeStore(HfbatchError):
    """The store has no put-if-absent, so exactly-once cannot be promised on it."""

    exit_code = 78


class Interrupted(HfbatchError):
    """Stopped by a signal. `exit_code` is 128 + the signal's number."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__("interrupted; what is committed stays, the same command resumes")

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


def exit_code(error: BaseException) -> int:
    """What a process that ends with `error` returns: 74 where the system could not read or write, 70 for a bug."""
    if isinstance(error, HfbatchError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return StorageError.exit_code if isinstance(error, OSError) else SystemicError.exit_code


def outcome_of(error: type[BaseException] | str) -> str:
    """How a run that ended with such an error is said to have ended: ErrorBudgetExceeded, error_budget_exceeded."""
    name = error if isinstance(error, str) else error.__name__
    if name == GateFailed.__name__:
        return "gates_failed"  # as the report has it
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class RowError(Exception):
    """One row cannot be predicted. `code` is a stable snake_case word, `message` says why."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return type(self), (self.code, self.message)

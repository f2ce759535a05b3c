"""A cron expression in, a Cron that every scheduler reads alike out, or a SpecError that says what to write.

Crons differ: some take seconds, L, # or 7 for Sunday, `5/15`, ranges that wrap. Only what all of them take and
understand alike is let through, so that the same `--at` is the same night for cron, Kubernetes and Airflow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from hfbatch.errors import Problem, SpecError
from hfbatch.explain import nearest

FIX = "write minute hour day-of-month month day-of-week, such as '0 2 * * *': 02:00 every night"

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_TERM = re.compile(r"(\*|[0-9]{1,2}|[A-Za-z]{3})(-(?:[0-9]{1,2}|[A-Za-z]{3}))?(/[0-9]{1,2})?")
_DAY_OF_WEEK = 4  # of the five fields


@dataclass(frozen=True)
class Cron:
    """When a job runs."""

    fields: str  # five, with one space between
    zone: str | None = None  # an IANA name; None: the machine's own for cron, UTC elsewhere

    @property
    def meaning(self) -> str:
        """In words: `At 02:00 every day`."""
        return CronSim(self.fields, datetime.now(UTC)).explain()

    def after(self, moment: datetime, times: int) -> list[datetime]:
        """The next `times` times, in the zone, or in `moment`'s where there is none."""
        start = moment.astimezone(ZoneInfo(self.zone)) if self.zone else moment
        coming = CronSim(self.fields, start)
        return [next(coming) for _ in range(times)]


def read_cron(text: str, zone: str | None = None) -> Cron:
    """What `--at` and `--tz` say. Raises SpecError with the problems of both."""
    problems = []
    fields = _MACROS.get(text.strip().lower(), " ".join(text.split()))
    if reason := _reason(fields):
        problems.append(Problem(f"--at {text!r}", "", reason, FIX))
    if zone is not None and not _is_zone(zone):
        near = nearest(zone, available_timezones())
        fix = f"write --tz {near}" if near else "write a name such as Europe/Berlin or UTC"
        problems.append(Problem(f"--tz {zone!r}", "", "there is no such time zone", fix))
    if problems:
        raise SpecError(problems)
    return Cron(fields, zone)


def _reason(fields: str) -> str | None:
    """Why `fields` are no expression that all schedulers take."""
    parts = fields.split()
    if len(parts) != 5:
        return f"five fields, not {len(parts)}"
    for number, part in enumerate(parts):
        for term in part.split(","):
            if reason := _reason_of_term(term, number == _DAY_OF_WEEK):
                return f"{term!r}: {reason}"
    try:
        next(CronSim(fields, datetime.now(UTC)))
    except CronSimError as error:
        return str(error).lower()
    except StopIteration:
        return "there is no such day"
    return None


def _reason_of_term(term: str, day_of_week: bool) -> str | None:
    found = _TERM.fullmatch(term)
    if found is None or (found[1] == "*" and found[2]):
        return "not something that every cron takes"
    if found[3] and not (found[1] == "*" or found[2]):
        return "a step stands after * or a range"
    if day_of_week and "7" in (found[1], (found[2] or "")[1:]):
        return "Sunday is 0 or SUN; not every cron takes 7"
    return None


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of the database, such as "Europe"
        return False
    return True

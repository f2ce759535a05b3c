"""What `--at` and `--tz` take: that which every cron reads alike."""

from datetime import UTC, datetime

import pytest

from hfbatch.cron import Cron, read_cron
from hfbatch.errors import SpecError

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("0 2 * * *", "2026-11-22T02:00"),
        ("  0   2 * *   * ", "2026-11-22T02:00"),
        ("*/15 * * * *", "2026-11-21T12:45"),
        ("30 1 * * MON-FRI", "2026-11-23T01:30"),
        ("0 3 1 JAN,jul *", "2027-01-01T03:00"),
        ("0-30/10 23 * * 0", "2026-11-22T23:00"),
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("@daily", "2026-11-22T00:00"),
        ("@Weekly", "2026-11-22T00:00"),
    ],
)
def test_an_expression_is_read_as_cron_reads_it(text, following):
    assert read_cron(text).after(NOW, 1) == [datetime.fromisoformat(f"{following}+00:00")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "five fields, not 0"),
        ("2 * * *", "five fields, not 4"),
        ("0 0 2 * * *", "five fields, not 6"),
        ("60 2 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 2 0 * *", "bad day-of-month"),
        ("0 2 * 13 *", "bad month"),
        ("0 2 * * MUN", "bad day-of-week"),
        ("0 2 30 2 *", "bad day-of-month"),
        ("0 2 31 4,6 *", "bad day-of-month"),
        ("*/0 * * * *", "bad minute"),
        ("0 2 * * 7", "Sunday is 0 or SUN"),
        ("0 2 * * 5-7", "Sunday is 0 or SUN"),
        ("0 2 * * SAT-SUN", "bad day-of-week"),
        ("5/15 * * * *", "a step stands after"),
        ("0 2 L * *", "not something that every cron takes"),
        ("0 2 * * 5#3", "not something that every cron takes"),
        ("0 2 ? * *", "not something that every cron takes"),
        ("0 2 * * *-5", "not something that every cron takes"),
        ("@reboot", "five fields, not 1"),
        ("0 2 * * *; rm -rf /", "five fields, not"),
    ],
)
def test_what_crons_read_differently_or_not_at_all_is_refused(text, reason):
    with pytest.raises(SpecError) as raised:
        read_cron(text)
    (problem,) = raised.value.problems
    assert problem.place == f"--at {text!r}"
    assert reason in problem.message
    assert "'0 2 * * *'" in problem.fix


def test_the_problems_of_time_and_zone_come_together():
    with pytest.raises(SpecError) as raised:
        read_cron("tonight", "Europe/Berln")
    assert [problem.fix for problem in raised.value.problems][1] == "write --tz Europe/Berlin"


@pytest.mark.parametrize("zone", ["", "Europe", "/etc/passwd", "../UTC", "CET-1CEST,M3.5.0 "])
def test_what_is_no_time_zone_is_refused(zone):
    with pytest.raises(SpecError, match="there is no such time zone"):
        read_cron("@daily", zone)


def test_a_night_in_a_zone_keeps_its_hour_when_the_clocks_change():
    times = Cron("0 5 * * *", "Europe/Berlin").after(datetime(2026, 10, 24, 12, tzinfo=UTC), 2)
    assert [each.isoformat() for each in times] == ["2026-10-25T05:00:00+01:00", "2026-10-26T05:00:00+01:00"]


def test_the_meaning_is_told_in_words():
    assert read_cron("30 1 * * 1-5").meaning == "At 01:30 on Monday through Friday"

"""Progress on stderr: one line that fits a terminal, or a plain line every 30 s."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from hfbatch.cli.live import watching, words
from hfbatch.report import Progress

PLAN = SimpleNamespace(todo=["a shard"], job=SimpleNamespace(name="nightly"))
FULL = "3,200/6,000 rows, 129 rows/s, 4,353 tokens/s, padding 5.3%, 1 error, 0:21 left"


def progress(**changes):
    usual = {"phase": "running", "rows_done": 3200, "rows_total": 6000, "rows_per_s": 129.0, "tokens_per_s": 4353.0}
    return Progress(**(usual | {"padding_share": 0.0532, "errors": 1, "eta_s": 21.7} | changes))


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_the_words_name_rows_rates_padding_errors_and_the_time_left():
    assert words(progress(), elapsed=5) == FULL
    assert (
        words(progress(phase="loading", rows_done=0, rows_per_s=0), elapsed=65)
        == "loading the model, 0/6,000 rows, 1:05"
    )
    assert words(progress(eta_s=4000, errors=0), elapsed=5).endswith("0 errors, 1:06:40 left")
    assert words(progress(eta_s=None, tokens_per_s=0), elapsed=5) == "3,200/6,000 rows, 129 rows/s, 1 error"
    assert words(progress(rows_per_s=0), elapsed=5) == "running, 3,200/6,000 rows, 0:05"


def test_a_narrow_terminal_loses_padding_first_and_never_errors_or_the_time_left():
    assert words(progress(), 5, width=70) == "3,200/6,000 rows, 129 rows/s, 4,353 tokens/s, 1 error, 0:21 left"
    assert words(progress(), 5, width=20) == "3,200/6,000 rows, 1 error, 0:21 left"


@pytest.mark.parametrize(
    ("width", "line"),
    [(140, f"nightly  [##########----------]  {FULL}"), (100, f"nightly  {FULL}"), (80, FULL)],
)
def test_a_terminal_shows_one_line_that_fits(width, line):
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=True, width=width, color_system=None)
    with watching(PLAN, console, Clock()) as watch:
        watch(progress())
    frames = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", seen.getvalue()).replace("\r", "\n").splitlines()
    assert "nightly  starting, 0:00" in seen.getvalue()
    assert line in frames
    assert max(map(len, frames)) <= width


def test_a_terminal_is_left_as_it_was():
    seen = io.StringIO()
    with watching(PLAN, Console(file=seen, force_terminal=True, width=80), Clock()) as watch:
        watch(progress())
    assert seen.getvalue().endswith("\x1b[2K")  # the line is gone
    assert "\x1b[?25h" in seen.getvalue()  # the cursor is back


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}])
def test_elsewhere_a_plain_line_comes_every_30_s(environment):
    seen, clock = io.StringIO(), Clock()
    console = Console(file=seen, force_terminal=bool(environment), _environ=environment, width=40)
    with watching(PLAN, console, clock) as watch:
        for second in range(0, 70):
            clock.now = 1000.0 + second
            watch(progress(rows_done=second))
    lines = seen.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == ["nightly: 0", "nightly: 30", "nightly: 60"]


def test_nothing_is_shown_where_nothing_is_to_do():
    seen = io.StringIO()
    plan = SimpleNamespace(todo=[], job=PLAN.job)
    with watching(plan, Console(file=seen, force_terminal=True)) as watch:
        watch(progress())
    assert seen.getvalue() == ""

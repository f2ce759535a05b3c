import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hfbatch
from hfbatch import faults
from hfbatch.errors import SpecError


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(faults, "_passed", faults.Counter())
    monkeypatch.delenv("HFBATCH_FAULT", raising=False)
    monkeypatch.delenv("HFBATCH_FAULT_LOG", raising=False)


def test_nothing_happens_unless_it_is_asked_for():
    faults.point("before-commit")
    assert not faults._passed


def test_a_fault_strikes_the_nth_time(monkeypatch):
    monkeypatch.setenv("HFBATCH_FAULT", "before-commit:raise:3")
    for _ in range(2):
        faults.point("before-commit")
        faults.point("after-commit")
    with pytest.raises(faults.InjectedFault, match="before-commit"):
        faults.point("before-commit")
    faults.point("before-commit")


def test_exit_leaves_by_system_exit(monkeypatch):
    monkeypatch.setenv("HFBATCH_FAULT", "before-gc:exit")
    with pytest.raises(SystemExit):
        faults.point("before-gc")


def child(act, code="point('before-gc')", **env):
    return subprocess.Popen(
        [sys.executable, "-c", f"from hfbatch.faults import point; print('here', flush=True); {code}; print('past')"],
        env={**os.environ, "HFBATCH_FAULT": f"before-gc:{act}", **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_kill_leaves_no_time_for_anything():
    process = child("kill")
    assert process.communicate()[0] == "here\n"
    assert process.returncode == -signal.SIGKILL


def test_hang_stays_until_it_is_killed():
    process = child("hang")
    assert process.stdout.readline() == "here\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.kill()
    assert process.communicate()[0] == ""


def test_with_a_log_a_fault_strikes_once_among_all_processes(tmp_path):
    log = tmp_path / "log"
    code = "point('before-gc', 'x'); point('before-gc')"
    first, second = (child("kill:3", code, HFBATCH_FAULT_LOG=str(log)) for _ in range(2))
    ends = sorted(process.communicate() and process.returncode for process in (first, second))
    assert ends == [-signal.SIGKILL, 0]
    assert sorted(log.read_text().split("\n")) in (["", *["before-gc"] * n, *["before-gc x"] * 2] for n in (1, 2))


@pytest.mark.parametrize(
    "fault", ["before-comit:kill", "before-commit", "before-commit:die", "before-commit:kill:0", ""]
)
def test_a_fault_that_would_never_strike_is_refused(monkeypatch, fault):
    monkeypatch.setenv("HFBATCH_FAULT", fault)
    with pytest.raises(SpecError, match=r"HFBATCH_FAULT: .* is no fault\n.*before-commit") as caught:
        faults.check()
    assert repr(fault) in str(caught.value)


def test_every_point_is_passed_somewhere():
    """And none that the code passes is missing from the list."""
    code = "".join(path.read_text() for path in Path(hfbatch.__file__).parent.rglob("*.py"))
    assert set(re.findall(r'point\("([a-z-]+)"', code)) == faults.POINTS

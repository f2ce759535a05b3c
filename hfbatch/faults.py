"""Failpoints: `HFBATCH_FAULT=<point>:<kill|raise|hang|exit>[:n]` makes a process fail at a step of the protocol.

For tests, and for whoever wants to see what the promise is worth. It strikes the n-th time (default: the first) that
a process comes by the point; with HFBATCH_FAULT_LOG=<file> the n-th time that any process does: all write what they
pass into that file, a line each, so that a fault strikes once and what was done how often can be counted.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

from hfbatch.errors import Problem, SpecError

STEPS = (
    "begin agree reopen",  # the driver, before work: what runs, the plan, _SUCCESS goes
    "inference publish commit",  # a worker: the model over a shard, its object, its record
    "reconcile audit manifest swap promote current success",  # the driver, after work
    "gc",  # the driver: away with what nobody needs any more
)
POINTS = frozenset(f"{when}-{step}" for steps in STEPS for step in steps.split() for when in ("before", "after"))
ACTS = ("kill", "raise", "hang", "exit")
_passed: Counter[str] = Counter()


class InjectedFault(RuntimeError):
    """What `raise` raises."""


def point(name: str, detail: str = "") -> None:
    """Fail here if HFBATCH_FAULT says so. `detail` goes into the log: whose step it is."""
    fault, log = os.environ.get("HFBATCH_FAULT"), os.environ.get("HFBATCH_FAULT_LOG")
    if fault is None and log is None:
        return
    times = _count(name, detail, log)
    if fault is not None:
        wanted, act, number = parse(fault)
        if (name, times) == (wanted, number):
            _fail(name, act)


def parse(fault: str) -> tuple[str, str, int]:
    """HFBATCH_FAULT's (point, act, number). SpecError when it says anything else."""
    said = re.fullmatch(r"([a-z-]+):([a-z]+)(?::([1-9]\d*))?", fault)
    if said is None or said[1] not in POINTS or said[2] not in ACTS:
        fix = f"write <point>:<{'|'.join(ACTS)}>[:n], with a point of: {', '.join(sorted(POINTS))}"
        raise SpecError([Problem("HFBATCH_FAULT", "", f"{fault!r} is no fault", fix)])
    return said[1], said[2], int(said[3] or 1)


def check() -> None:
    """SpecError when HFBATCH_FAULT is set to something that would never strike."""
    fault = os.environ.get("HFBATCH_FAULT")
    if fault is not None:
        parse(fault)


def _count(name: str, detail: str, log: str | None) -> int:
    """How often this point was passed, this time included."""
    if log is None:
        _passed[name] += 1
        return _passed[name]
    line = f"{name} {detail}".rstrip() + "\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())  # O_APPEND: lines of many processes do not mix
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
    finally:
        os.close(descriptor)
    lines = Path(log).read_bytes()[:end].decode().splitlines()
    return sum(entry.split(" ")[0] == name for entry in lines)


def _fail(name: str, act: str) -> None:
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "raise":
        raise InjectedFault(f"HFBATCH_FAULT at {name}")
    if act == "exit":
        raise SystemExit(70)
    while True:
        time.sleep(3600)

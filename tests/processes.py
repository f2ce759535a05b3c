"""Processes of this machine, read from /proc."""

from __future__ import annotations

from pathlib import Path


def family(root: int) -> set[int]:
    """`root`, the processes it started, and theirs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (ValueError, OSError):  # not a process, or one that has just ended
            continue
    members, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in members} | members
        grown, members = more != members, more
    return members

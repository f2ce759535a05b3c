"""What people see of outputs: their state, failed rows, flaws and garbage, as text on stdout."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfbatch.cli.text import bold, facts, one_line, out, table
from hfbatch.records import steps_in
from hfbatch.words import commit, count, size

_TOP = 3  # labels of a run

if TYPE_CHECKING:
    from hfbatch.examine import Examined
    from hfbatch.failed import FailedRow
    from hfbatch.garbage import Garbage
    from hfbatch.recheck import Rechecked


def line(text: str) -> None:
    """One line."""
    out(one_line(text))


def status(found: Mapping[str, Any]) -> None:
    """An output folder and its runs."""
    done, planned = found["rows_committed"], found["rows_planned"]
    steps = steps_in(found["identity"])
    rows = [
        ("state", _state(found) if found["live"] is None else "a run is at work"),
        *_gates(found["runs"]),
        *([("at work", _at_work(found["live"]))] if found["live"] else []),
        ("rows", f"{done:,} committed of {planned:,} planned, {found['rows_failed']:,} with an error"),
        ("shards", f"{found['shards_committed']:,} of {found['shards']:,}"),
        ("task", ", ".join(step.get("task", "unknown") for step in steps)),
        ("model commit", ", ".join(commit(step.get("model_commit", "unknown")) for step in steps)),
    ]
    names = ("started (UTC)", "outcome", "exit", "rows", "errors", "share", "rows/s", "model", "labels")
    runs = table(names, [_run(run) for run in found["runs"]], right=names[2:7])
    out(f"{bold(found['output'])}\n{facts(rows)}\n\n{runs}")


def _state(found: Mapping[str, Any]) -> str:
    if found["complete"]:
        return "complete"
    if not found["runs"] or found["runs"][-1]["outcome"] != "gates_failed":
        return "not complete; the command that made it resumes it"
    stays = f"what run {found['published']} published stays" if found["published"] else "nothing ever was"
    return f"not published, as gates are not passed; {stays}"


def _gates(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Of the newest run: how many gates it passed, and the others with what was found and asked."""
    from hfbatch.report import Gate

    gates = [Gate(**gate) for gate in (runs[-1]["gates"] or ())] if runs else []
    failed = [one_line(str(gate)) for gate in gates if not gate.passed]
    told = [f"{len(gates) - len(failed)} of {len(gates)} passed", *(f"not passed: {gate}" for gate in failed)]
    return [("gates", "\n".join(told))] if gates else []


def _at_work(live: Mapping[str, Any]) -> str:
    from hfbatch.cli.live import words
    from hfbatch.report import Progress

    who = f"{live['run_id']}, process {live['pid']} on {one_line(live['host'])}"
    if not live["progress"]:
        return f"{who}\nstarting"
    return f"{who}\n{words(Progress(**live['progress']), time.time() - float(live['started']))}"


def _run(run: Mapping[str, Any]) -> tuple[str, ...]:
    def written(name: str, pattern: str) -> str:
        return "" if run[name] is None else format(run[name], pattern)

    begun = run["started"]
    when = run["run_id"] if begun is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(begun))
    ended = (run["outcome"].replace("_", " "), written("exit_code", ""))
    numbers = (written("rows_new", ","), written("rows_failed", ","), written("error_share", ".2%"))
    return (when, *ended, *numbers, written("rows_per_s", ",.1f"), _short(run["model_commit"]), _shares(run["labels"]))


def _short(commit: str | None) -> str:
    return (commit or "").removeprefix("sha256:")[:8]


def _shares(labels: Mapping[str, int] | None) -> str:
    """The most frequent labels of what the run committed, of all labels there."""
    total = sum((labels or {}).values())
    top = sorted((labels or {}).items(), key=lambda each: -each[1])[:_TOP]
    return ", ".join(f"{one_line(name)} {rows / total:.0%}" for name, rows in top if total)


def errors(summary: Mapping[str, int], rows: Sequence[FailedRow]) -> None:
    """How many rows failed by code, then the rows."""
    if not summary:
        out("no committed row failed")
        return
    out(table(("code", "rows"), [(one_line(code), f"{failed:,}") for code, failed in summary.items()], right=("rows",)))
    if rows:
        cells = [(one_line(row.file), f"{row.row:,}", one_line(row.code), one_line(row.message)) for row in rows]
        out("\n" + table(("file", "row", "code", "message"), cells, right=("row",)))


def examined(found: Examined, sample: Rechecked | None) -> None:
    """What was looked at; the flaws themselves are told as the error they are."""
    rows = [
        ("shards", f"{found.committed:,} of {found.shards:,} committed"),
        ("rows", f"{found.rows:,} in {size(found.nbytes)}"),
    ]
    if sample is not None:
        rows.append(("inferred", f"{count(sample.rows, 'row')} again, with seed {sample.seed}"))
        lost = [one_line(file) for file in sample.unchecked]
        rows += [("not checked", "\n".join(["input gone or changed since:", *lost]))] if lost else []
    rows.append(("state", count(len(found.flaws), "flaw") if found.flaws else _soundness(found)))
    out(f"{bold(found.output)}\n{facts(rows)}")


def _soundness(found: Examined) -> str:
    return "complete and sound" if found.complete else "sound as far as it is"


def examined_as_data(found: Examined, sample: Rechecked | None) -> dict[str, Any]:
    """The same as plain data."""
    compared = {"seed": sample.seed, "rows": sample.rows, "unchecked": list(sample.unchecked)} if sample else None
    return {**vars(found), "flaws": [vars(flaw) for flaw in found.flaws], "sample": compared}


def garbage(found: Sequence[Garbage], dry_run: bool) -> None:
    """What went, or would go, with its size."""
    if not found:
        out("nothing to remove")
        return
    rows = [(one_line(each.name), size(each.nbytes), each.why) for each in found]
    out(table(("object", "size", "why"), rows, right=("size",)))
    total = size(sum(each.nbytes for each in found))
    out(f"\n{count(len(found), 'object')}, {total}, {'would be removed' if dry_run else 'removed'}")

"""An output's own job, planned again: to infer the rows that failed (`retry`), or what is damaged (`repair`).

The job is the one written down by the newest run of the generation that rules the output, pinned to the commit that
run had. Both are ordinary plans: `pipeline.run` carries them out, and readers of data/ see the old rows until it has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import pyarrow.parquet as pq

from hfbatch.carry import ROWS, Held
from hfbatch.errors import Conflict, Damage, Locked, Problem, SpecError
from hfbatch.examine import Examined, examine
from hfbatch.lease import describe, is_alive, read_holder
from hfbatch.ledger import Ledger
from hfbatch.load import load_job
from hfbatch.objects import UNREADABLE
from hfbatch.planner import Plan, make_plan
from hfbatch.records import Agreed, folder_in, load, pinned, shard_of
from hfbatch.shards import Piece, Shard, number_of
from hfbatch.spec import JobSpec, Machine
from hfbatch.status import known_output
from hfbatch.store import open_store

Overrides: TypeAlias = Mapping[str, str] | None


def spec_of(output: str, generation: str | None = None, overrides: Overrides = None) -> JobSpec:
    """The job that made `output`, with `overrides`, its model pinned. SpecError where it cannot be told or read."""
    ledger = Ledger(open_store(output))
    if "output.path" in (overrides or {}):
        problem = Problem("--set output.path", "", f"the output is {ledger.store.url()}", "leave it out")
        raise SpecError([problem])
    started = [found for run in reversed(ledger.runs()) if (found := _started(ledger, run)) and found.get("spec")]
    if not started:
        problem = Problem("OUTPUT", ledger.store.url(), "no run wrote down its job there", "run the job file again")
        raise SpecError([problem])
    newest = next((found for found in started if found.get("generation") == generation), started[0])
    written = dict(newest["spec"]) | {"output": {**newest["spec"]["output"], "path": output}}
    commits = newest.get("model_commits") or [newest.get("model_commit", "")]
    written = pinned(written, [str(commit) for commit in commits], newest.get("guard_commits", {}))
    spec = load_job(JobSpec.model_validate(written), overrides=overrides)
    if any("***" in path for path in spec.input.paths):
        fix = "give it with --set input.path=..."
        message = f"{', '.join(spec.input.paths)}: the secrets of this address were not written down"
        raise SpecError([Problem(ledger.store.url(), "input.path", message, fix)])
    return spec


def plan_retry(
    output: str,
    machine: Machine,
    overrides: Overrides = None,
    *,
    trust_remote_code: bool = False,
    code: str | None = None,
) -> Plan | None:
    """The plan that infers the failed rows of `output` again; with `code` only in shards with such an error.

    None where no committed row failed. A retry that was interrupted is resumed: what it has tried is not tried again.
    Raises what `make_plan` does, Conflict when the job would now give other values.
    """
    ledger, agreed = known_output(output)
    committed = ledger.committed(agreed.generation)
    pending = any(shard.retry and shard.id not in committed for shard in agreed.shards)
    ids = [shard.id for shard in agreed.shards if shard.id in committed and not (pending and shard.retry)]
    receipts = ledger.receipts(agreed.generation, ids)
    failed = [r.shard for r in receipts if (r.errors.get(code) if code else r.failed)]
    if not failed and not pending:
        return None
    spec = spec_of(output, agreed.generation, overrides)
    return make_plan(spec, machine, trust_remote_code=trust_remote_code, retry=failed)


def plan_repair(
    output: str, machine: Machine, overrides: Overrides = None, *, trust_remote_code: bool = False
) -> tuple[Plan | None, Examined]:
    """The plan that makes again what is damaged, and what was found; None where nothing is.

    What stands in the way of that plan is removed: records and small objects that nobody can read, and _SUCCESS.
    Conflict for objects that are not hfbatch's; Locked while a run is at work.
    """
    ledger = Ledger(open_store(output))
    holder = read_holder(ledger.store)
    if holder and is_alive(holder):
        raise Locked(f"{ledger.store.url()}: {describe(holder)}; wait for it, or stop it, then repair")
    found = first = examine(output)
    if not found.flaws:
        return None, found
    _refuse_foreign(found)
    spec = spec_of(output, overrides=overrides)  # before anything is changed
    if found.flaws[0].kind == "plan":
        _agree_again(ledger)
        found = examine(output)
        _refuse_foreign(found)
    ledger.store.delete([flaw.record for flaw in found.flaws if flaw.record])
    ledger.store.delete([flaw.subject for flaw in found.flaws if flaw.kind == "object"])
    ledger.reopen()  # else a plan with nothing to infer would have nothing to publish either
    redo = {flaw.subject for flaw in found.flaws if flaw.kind == "shard"}
    _, ruling = known_output(output)
    spec = spec_of(output, ruling.generation, overrides)
    return make_plan(spec, machine, trust_remote_code=trust_remote_code, redo=redo), first


def _started(ledger: Ledger, run_id: str) -> dict[str, Any] | None:
    try:
        return ledger.run_file(run_id, "started.json")
    except Damage:
        return None


def _refuse_foreign(found: Examined) -> None:
    foreign = [flaw for flaw in found.flaws if flaw.kind == "foreign"]
    if foreign:
        told = "\n".join(str(flaw) for flaw in foreign)
        raise Conflict(f"{told}\n{found.output}: what is not hfbatch's is not touched; nothing was repaired")


def _agree_again(ledger: Ledger) -> None:
    """A plan that can be read rules again: what was published last, or the newest older plan, or none of the shards.

    Its number is above every number that was ever given, so that no id comes back.
    """
    plans = ledger.store.list("_hfbatch/plans")
    known = [shard_of(name) for folder in ("data", "_hfbatch") for name in ledger.store.list(folder)]
    numbers = [number_of(shard) for shard in known if shard] + [int(PurePosixPath(name).stem) for name in plans]
    older = _newest_readable(ledger, plans)
    current = _current(ledger)
    if current is not None and current["plan"] > (older.number if older else 0):
        generation, shards = str(current["generation"]), _published(ledger, current)
    elif older is not None:
        generation, shards = older.generation, older.shards
    else:
        started = [found for run in ledger.runs() if (found := _started(ledger, run))]
        generation, shards = str(started[-1]["generation"]), ()
    ledger.agree(generation, shards, Agreed(max(numbers, default=0), "", ()))


def _newest_readable(ledger: Ledger, plans: Collection[str]) -> Agreed | None:
    for name in sorted(plans, reverse=True):
        try:
            return Agreed.from_json(int(PurePosixPath(name).stem), ledger.store.get(name) or b"", name)
        except Damage:
            continue
    return None


def _current(ledger: Ledger) -> dict[str, Any] | None:
    try:
        return ledger.current()
    except Damage:
        return None


def _published(ledger: Ledger, current: Mapping[str, Any]) -> tuple[Shard, ...]:
    """The shards of the manifest, from what their objects say of themselves; those that cannot are cut anew."""
    shards = []
    for entry in load(ledger.store.get(str(current["manifest"])) or b"{}", str(current["manifest"])).get("objects", ()):
        if entry["data"] is None or ledger.store.size(entry["data"]) is None:
            continue
        try:
            with ledger.store.open_input(entry["data"]) as stream, pq.ParquetFile(stream) as file:
                held = Held.from_json(file.metadata.metadata[ROWS])
        except UNREADABLE:
            continue
        pieces = tuple(Piece(*piece) for piece in held.pieces)
        shards.append(Shard(entry["shard"], pieces, folder=folder_in(entry["data"])))
    return tuple(shards)

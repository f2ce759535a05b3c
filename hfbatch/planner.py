"""JobSpec + Machine -> Plan: everything decided, nothing run.

After it nothing reads the job file, a branch name or the environment again: the revision is a commit, files are
listed with their fingerprints, the output schema is fixed, shards are cut, and it is known which are done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from hfbatch import hub
from hfbatch.binding import bind
from hfbatch.changes import Changes, changes_of
from hfbatch.errors import Conflict, SpecError
from hfbatch.files import FileProblem, list_files
from hfbatch.formats import FileRef, Inspected, inspect, unify
from hfbatch.gates.check import check_gates
from hfbatch.job import Job, canonical
from hfbatch.ledger import Ledger
from hfbatch.limit import source_files
from hfbatch.origin import Loc
from hfbatch.partitions import folder_of, partition_problem, pruned
from hfbatch.records import Agreed
from hfbatch.remembered import question, recall
from hfbatch.shards import Basis, Limits, Shard, SourceFile, cut, limits_for
from hfbatch.spec import JobSpec, Machine
from hfbatch.store import open_store
from hfbatch.trust import check_trust


@dataclass(frozen=True)
class Plan:
    """A job with every decision taken. Reading it changes nothing; `pipeline.run` carries it out."""

    spec: JobSpec
    machine: Machine
    job: Job
    files: Mapping[str, FileRef]  # by the path the job file names
    shards: tuple[Shard, ...]
    done: frozenset[str]  # ids of shards that are committed
    agreed: Agreed | None  # the plan that ruled the output when this one was made
    complete: bool  # _SUCCESS stands and speaks of these shards
    new_generation: bool = False
    conflict: str | None = None  # why `run` would refuse, if it would
    question: str = ""  # what the job answers; see remembered.py
    changes: Changes = field(default_factory=Changes)  # files that are new, changed, done; see changes.py
    publish_anyway: bool = False  # whatever the gates say

    @property
    def todo(self) -> tuple[Shard, ...]:
        """Shards that are not committed."""
        return tuple(shard for shard in self.shards if shard.id not in self.done)

    @property
    def rows(self) -> int:
        """Rows of all shards, before `where`."""
        return sum(shard.rows for shard in self.shards)

    def _repr_html_(self) -> str:
        from hfbatch.html import plan_card

        return plan_card(self)


def make_plan(
    spec: JobSpec,
    machine: Machine,
    *,
    new_generation: bool = False,
    trust_remote_code: bool = False,
    retry: Collection[str] = (),
    redo: Collection[str] = (),
    begin: Callable[[], None] | None = None,
) -> Plan:
    """Decide everything. Raises SpecError with every problem found, pointing at the key in the job file.

    `retry`, `redo`: committed shards whose failed rows, or all of whose rows, are to be inferred again. Reads footers,
    the model's config and tokenizer, and the state of the output; writes nothing. `begin` is called once what is
    quickly checked holds and there seems to be something to run: what is to start beside the rest can start then.
    """
    check_trust(spec, trust_remote_code)
    models = [_resolve_model(spec, number) for number in range(len(spec.each))]
    files, schema = _inspect_files(spec)
    asked = question(spec, models, schema)
    if not (new_generation or retry or redo) and (known := recall(asked, spec, models)):
        plan = _cut(Plan(spec, machine, known[0], {}, (), frozenset(), None, False), known[1], files, schema)
        if plan.complete:
            return plan
    if begin is not None:
        begin()
    job = bind(spec, models, schema)
    check_gates(spec, job.output_schema, job.keep)
    job = replace(job, afresh=bool(redo))  # what is damaged may have been taken over into other objects
    plan = Plan(spec, machine, job, {}, (), frozenset(), None, False, new_generation, question=asked)
    return _cut(plan, job.max_bytes_per_row(), files, schema, retry, redo)


def _cut(
    plan: Plan,
    row_bytes: int,
    files: list[Inspected],
    schema: pa.Schema,
    retry: Collection[str] = (),
    redo: Collection[str] = (),
) -> Plan:
    """The plan with its files, shards and state."""
    machine, taken = plan.machine, plan.spec.input
    folders = {file.file.path: folder_of(file.file, plan.job.partition_by) for file in files}
    sources = source_files(files, taken.limit, taken.where, schema)
    sources = [replace(source, folder=folders[source.path]) for source in sources]
    limits = limits_for(sum(source.rows for source in sources), machine.shard_rows, machine.shard_bytes, row_bytes)
    refs = {file.file.path: FileRef.of(file, plan.job.input_schema) for file in files}
    return with_state(replace(plan, files=refs), sources, limits, retry, redo)


def with_state(
    plan: Plan,
    sources: Sequence[SourceFile],
    limits: Limits,
    retry: Collection[str] = (),
    redo: Collection[str] = (),
) -> Plan:
    """The plan against what stands in the output: the cut that rules, what is done, what forbids a run."""
    store = open_store(plan.job.output)
    ledger = Ledger(store)
    agreed = ledger.agreed()
    same = agreed is not None and agreed.generation == plan.job.generation
    committed, standing = ledger.committed(plan.job.generation), ledger.standing()
    last = ledger.published()
    shown = last.shards if last and last.generation == plan.job.generation else ()
    basis = Basis(
        number=agreed.number + 1 if agreed else 1,
        shards=agreed.shards if agreed and same else (),
        last=shown if agreed and last and last.number <= agreed.number else (),
        committed=committed,
        standing=standing,
        published=ledger.current() is not None,
        gated=plan.spec.gates is not None,
        retry=retry,
        redo=redo,
    )
    shards = cut(sources, limits, plan.job.where, basis)
    ids = {shard.id for shard in shards}
    whole = agreed is not None and same and agreed.shards == shards and ids <= committed and standing <= ids
    pointers = (ledger.success(), ledger.current()) if whole else ()
    complete = whole and all(pointer and agreed and pointer.get("plan") == agreed.number for pointer in pointers)
    conflict = None
    if agreed is not None and not same and not plan.new_generation:
        conflict = _difference(plan.job, ledger.identity(agreed.generation), store.url(""))
    elif foreign := ledger.foreign():
        conflict = f"{store.url(foreign[0])}: not written by hfbatch; move it out of data/ or take another output.path"
    done = frozenset(committed & ids)
    plan = replace(plan, shards=shards, done=done, agreed=agreed, complete=complete, conflict=conflict)
    return replace(plan, changes=changes_of(shards, committed, basis.shards, shards if complete else shown))


def _resolve_model(spec: JobSpec, number: int) -> hub.PinnedModel:
    try:
        return hub.resolve_model(spec.each[number].model)
    except hub.ModelProblem as problem:
        at = spec.loc(number, "model", problem.key)
        raise SpecError([spec.origin.problem(at, problem.message, problem.fix)]) from problem


def _inspect_files(spec: JobSpec) -> tuple[list[Inspected], pa.Schema]:
    """The files that may hold rows of the job with their schemas, and the schema that holds for all of them."""
    try:
        listed = list_files(spec.input.paths, spec.input.format)
        if problem := partition_problem(listed, spec.output.partition_by):
            index, message, fix = problem
            raise SpecError([spec.origin.problem(("output", "partition_by", index), message, fix)])
        kept = pruned(listed, spec.input.where)
        with ThreadPoolExecutor(max_workers=16) as pool:  # remote footers take a round trip each
            files = list(pool.map(inspect, kept or listed[:1]))
        if not kept:  # its columns say whether the job fits; of its rows none is wanted
            files = [replace(file, blocks=()) for file in files]
        return files, unify(files)
    except FileProblem as problem:
        loc: Loc = ("input", "path") if isinstance(spec.input.path, str) else ("input", "path", problem.index)
        raise SpecError([spec.origin.problem(loc, problem.message, problem.fix)]) from problem


def _difference(job: Job, found: Mapping[str, Any], place: str) -> str:
    """What a changed spec changed, with both sides and the ways out."""
    lines = [f"{place}: made by another spec, and outputs never mix:"]
    for name in {**job.identity, **found}:
        there, now = (canonical(side[name]) if name in side else "nothing" for side in (found, job.identity))
        if there != now:
            lines.append(f"  {name}: there {there}, now {now}")
    lines.append("  take another output.path, undo the change, or replace all of it with --new-generation")
    return "\n".join(lines)


def check_no_conflict(plan: Plan) -> None:
    """Conflict if this plan may not run."""
    if plan.conflict is not None:
        raise Conflict(plan.conflict)

"""A model checker for the commit protocol: the real planner, driver, sink and ledger over a store of bytes in memory.

Every store operation is a step. Before a step a driver may be killed, at a step the operation may fail, or be done and
its answer be lost, and another driver may take its turn. (A kill after a step is the kill before the next one, as
nothing in between touches the store; a worker that dies is the operation that fails.) `delete` of many names is one
step a name, the ledger's thread pools run one call after another. Not modelled: Ray, the model, Parquet (Arrow IPC
stands for it, with the same footer) and the lease, which guards nothing.

World holds the objects and looks at them after every change, as a reader would; Driver is one `hfbatch run` on it;
`explore` goes through all schedules of one driver after another, `race` runs two at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from hfbatch import carry, ledger, pipeline, planner, sink
from hfbatch import columns as col
from hfbatch.errors import HfbatchError, StorageError
from hfbatch.formats import Block
from hfbatch.gates import audit
from hfbatch.records import Agreed, Receipt, shard_of, staged_name
from hfbatch.report import Gate
from hfbatch.shards import Limits, Shard, SourceFile, number_of
from hfbatch.spec import ErrorsSpec
from hfbatch.store import Store
from hfbatch.tally import Failure, Snapshot

MOST_STEPS = 2000  # of one driver; more is a loop that never ends
PASSES = 3  # as passes.PASSES
LIMITS = Limits(rows=2, nbytes=1000)
SCHEMA = pa.schema({"text": pa.string(), "error": pa.string()})

Objects: TypeAlias = dict[str, bytes]
Faults: TypeAlias = Mapping[int, str]  # step of a driver, from 1 -> "kill", "fail" or "unheard"


class Killed(BaseException):
    """The driver is dead; whatever it does while it unwinds does nothing."""


# what stands in the store, read as a reader would


@lru_cache(maxsize=20_000)
def table_of(content: bytes) -> pa.Table | None:
    """The rows of an object; None where it is damaged."""
    try:
        return pa.ipc.open_file(pa.BufferReader(content)).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


@lru_cache(maxsize=20_000)
def rows_of(content: bytes) -> tuple[str, ...]:
    """The rows of an object as "file|version|row|generation", with "|failed" where they have an error."""
    table = table_of(content)
    if table is None:
        return ()
    texts, errors = table["text"].to_pylist(), table["error"].to_pylist()
    return tuple(text + "|failed" * (error is not None) for text, error in zip(texts, errors, strict=True))


@lru_cache(maxsize=20_000)
def json_of(content: bytes) -> dict[str, Any]:
    return json.loads(content)


@lru_cache(maxsize=20_000)
def plan_of(name: str, content: bytes) -> Agreed:
    return Agreed.from_json(int(name[-14:-5]), content)


@lru_cache(maxsize=20_000)
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class World:
    """The objects, what was done to them, and the first promise that was broken."""

    def __init__(self, objects: Objects, *, alone: bool = True) -> None:
        """`alone`: no two drivers are at work at once, and more is promised."""
        self.objects, self.alone, self.raced = dict(objects), alone, not alone
        self.trace: list[tuple[str, int, str, str, str]] = []
        self.broken: str | None = None
        self.turn: Callable[[str], None] = lambda _: None
        self.unstaged: set[str] = set()  # objects that a second or later plan put into data/ at once
        self.stray: set[str] = set()  # objects of data/ that the plan which ruled when they appeared did not name

    def below(self, folder: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(f"{folder}/"))

    def ruling(self) -> Agreed | None:
        plans = self.below("_hfbatch/plans")
        return plan_of(plans[-1], self.objects[plans[-1]]) if plans else None

    def pointer(self, name: str) -> dict[str, Any] | None:
        return json_of(self.objects[name]) if name in self.objects else None

    def listed(self, name: str) -> list[dict[str, Any]]:
        """What the manifest lists which `name`, _SUCCESS or CURRENT, points at."""
        pointer = self.pointer(name)
        manifest = self.pointer(pointer["manifest"]) if pointer else None
        return manifest["objects"] if manifest else []

    def published(self, name: str) -> set[str]:
        """The objects of that manifest."""
        return {entry["data"] for entry in self.listed(name) if entry["data"]}

    def committed(self, plan: Agreed) -> dict[str, tuple[str, ...]]:
        """The shards of the plan's generation that have a record and a sound object -> their rows."""
        found = {}
        for name in self.below(f"_hfbatch/commits/{plan.generation[:8]}"):
            receipt = Receipt.from_json(self.objects[name])
            places = [place for place in (receipt.data, staged_name(receipt.data or "")) if place in self.objects]
            content = self.objects[places[0]] if places else None
            if receipt.data is None or (content is not None and table_of(content) is not None):
                found[receipt.shard] = rows_of(content) if content is not None else ()
        return found

    def claim(self, name: str, holds: bool, broken: str) -> None:
        """Note the first claim that does not hold, where it happened."""
        if not holds and self.broken is None:
            self.broken = f"{name}: {broken}"
            self.trace.append(("", 0, "BROKEN", self.broken, ""))

    def changed(self, name: str, created: bool) -> None:
        """Look at everything a reader could rely on."""
        ruling, data = self.ruling(), self.below("data")
        named = {shard.id for shard in ruling.shards} if ruling else set()
        if created and name.startswith("data/") and shard_of(name) not in named:
            self.stray.add(name)
            self.claim("stray", not self.alone, f"{name} appears in data/, which the ruling plan does not name")
        self.stray &= set(data)
        rows = Counter(
            tuple(row.split("|")[0:3:2])  # file and row, of whatever version or generation
            for name in data
            if name not in self.stray
            for row in rows_of(self.objects[name])
        )
        twice = [row for row, times in rows.items() if times > 1]
        if created and name.startswith("data/") and staged_name(name) not in self.objects and number_of(name[5:]) > 1:
            self.unstaged.add(name)
        openly = " in the open" * any(name in self.unstaged for name in data)
        self.claim(f"double{openly}", not twice, f"data/ holds rows twice: {twice}")
        self._check_published(ruling, set(data))
        if self.alone:
            self.check_records()

    def _check_published(self, ruling: Agreed | None, data: set[str]) -> None:
        current, success = self.pointer("_hfbatch/CURRENT"), self.pointer("_SUCCESS")
        manifests = [name for name in self.below("_hfbatch/runs") if name.endswith("/manifest.json")]
        if current and not any(json_of(self.objects[name])["plan"] > current["plan"] for name in manifests):
            lost = sorted(self.published("_hfbatch/CURRENT") - data)
            self.claim(
                "lost", not lost, f"data/ has lost what was published, and no later run has begun its swap: {lost}"
            )
        if success and (self.alone or (ruling and success["plan"] == ruling.number)):
            same = self.published("_SUCCESS") == data - self.stray
            self.claim("success", same, "_SUCCESS stands, and data/ is not what its manifest lists")

    def check_records(self) -> None:
        """Every commit record has its object, and fits it; those that an overtaken run left are dead, and may not."""
        ruling = self.ruling()
        named = {shard.id for shard in ruling.shards} if ruling else set()
        for name in self.below("_hfbatch/commits"):
            receipt = Receipt.from_json(self.objects[name])
            if receipt.data is None or (self.raced and receipt.shard not in named):
                continue
            places = [place for place in (receipt.data, staged_name(receipt.data)) if place in self.objects]
            self.claim("record", bool(places), f"{name} has no object")
            sound = places and table_of(self.objects[places[0]]) is not None
            fits = not sound or sha256(self.objects[places[0]]) == receipt.sha256
            self.claim("fit", fits, f"{name} does not fit {places and places[0]}")

    def check_success(self, rows: Iterable[str], *, tidy: bool = True) -> None:
        """The whole of the promise, once a run has ended with success: these rows, and nothing else, anywhere.

        Not `tidy`: copies of what is published may be left in _hfbatch/staged, where a clean-up was cut short.
        """
        ruling, data = self.ruling(), self.below("data")
        found = sorted(row for name in data for row in rows_of(self.objects[name]))
        self.claim("rows", found == sorted(rows), f"after success data/ holds {found}, not {sorted(rows)}")
        pointer, current = self.pointer("_SUCCESS") or {}, self.pointer("_hfbatch/CURRENT") or {}
        same = pointer.get("plan") == current.get("plan") and self.listed("_SUCCESS") == self.listed("_hfbatch/CURRENT")
        self.claim("current", same, "CURRENT does not say what _SUCCESS says")
        self.claim("rows", set(data) == self.published("_SUCCESS"), "after success data/ is not the manifest's")
        named = {shard.id for shard in ruling.shards} if ruling else set()
        self.claim(
            "success", bool(ruling and pointer.get("plan") == ruling.number), "_SUCCESS is not of the ruling plan"
        )
        records = {shard_of(name) for name in self.below("_hfbatch/commits")}
        self.claim("record", records == named if tidy else records >= named, "records are not the plan's")
        staged = self.below("_hfbatch/staged")
        waiting = [name for name in staged if shard_of(name) in named - {shard_of(name) for name in data}]
        self.claim("left over", not waiting, f"still to be published: {waiting}")
        self.claim("left over", not (tidy and staged), f"left over: {staged}")
        self.check_records()

    def told(self) -> str:
        """The steps up to what was broken."""
        end = next((number for number, entry in enumerate(self.trace) if entry[2] == "BROKEN"), len(self.trace))
        lines = [f"{who:>6} {step:4} {act} {name} {result}" for who, step, act, name, result in self.trace[: end + 1]]
        return f"{self.broken or ''}\n" + "\n".join(line.rstrip() for line in lines)


class Memory(Store):
    """A World as one driver sees it."""

    def __init__(self, world: World, name: str, faults: Faults) -> None:
        self.world, self.name, self.faults = world, name, faults
        self.steps: list[bool] = []  # whether the step changes anything
        self.dead = False

    def _step(self, act: str, name: str, work: Callable[[], Any], changes: bool = False) -> Any:
        if self.dead or len(self.steps) >= MOST_STEPS:
            raise Killed
        self.world.turn(self.name)
        self.steps.append(changes)
        fault, number, before = self.faults.get(len(self.steps)), len(self.steps), name in self.world.objects
        if fault == "kill":
            self.dead = True
            self._tell(number, "KILLED before", f"{act} {name}")
            raise Killed
        if fault == "fail":
            self._tell(number, act, name, "FAILED")
            raise StorageError(f"{name}: failed")
        result = work()
        self._tell(number, act, name, f"= {result}" if isinstance(result, bool | list) else "")
        if changes:
            self.world.changed(name, not before and name in self.world.objects)
        if fault == "unheard":
            self._tell(number, act, name, "its answer was LOST")
            raise StorageError(f"{name}: no answer")
        return result

    def _tell(self, number: int, act: str, name: str, result: str = "") -> None:
        self.world.trace.append((self.name, number, act, name, result))

    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        content = data if isinstance(data, bytes) else data.read_bytes()
        return self._step("put_if_absent", name, lambda: self.world.objects.setdefault(name, content) is content, True)

    def copy_if_absent(self, source: str, target: str) -> bool:
        def work() -> bool:
            if target in self.world.objects:
                return False
            if source not in self.world.objects:
                raise StorageError(f"{source}: is not there")
            self.world.objects[target] = self.world.objects[source]
            return True

        return self._step("copy_if_absent", target, work, True)

    def put(self, name: str, data: bytes) -> None:
        self._step("put", name, lambda: self.world.objects.update({name: data}), True)

    def get(self, name: str) -> bytes | None:
        return self._step("get", name, lambda: self.world.objects.get(name))

    def list(self, prefix: str) -> Any:
        return self._step("list", prefix, lambda: self.world.below(prefix))

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._step("delete", name, lambda name=name: self.world.objects.pop(name, None) and None, True)

    def open_input(self, name: str) -> BinaryIO:
        content = self._step("open", name, lambda: self.world.objects.get(name))
        if content is None:
            raise StorageError(f"{name}: is not there")
        return io.BytesIO(content)

    def size(self, name: str) -> int | None:
        content = self._step("size", name, lambda: self.world.objects.get(name))
        return None if content is None else len(content)

    def url(self, name: str = "") -> str:
        return name or "the output"

    def probe(self) -> None:
        """Proved elsewhere."""


# one run


@dataclass(frozen=True)
class Command:
    """What a user runs: `hfbatch run`, `retry` or `repair` over the files as they are now."""

    files: Mapping[str, tuple[str, int]]  # name -> version, rows
    generation: str = "1" * 64
    failing: frozenset[str] = frozenset()  # rows "file|version|row" that the model fails on
    filtered: frozenset[str] = frozenset()  # rows that do not pass `where`
    retry: bool = False
    redo: bool = False
    gates: str | None = None  # None: it has none; or what they say: "pass", "fail", "pass if yesterday stands"
    anyway: bool = False

    @property
    def rows(self) -> list[str]:
        """What has to stand in data/ in the end."""
        return [
            f"{row}|{self.generation[0]}" + "|failed" * (row in self.failing)
            for name, (version, count) in self.files.items()
            for row in (f"{name}|{version}|{number}" for number in range(count))
            if row not in self.filtered
        ]


@dataclass(frozen=True)
class Job:
    """What planner, driver and sink ask of a job."""

    command: Command
    output: Memory
    name: str = "job"
    where: str | None = None
    keep: tuple[str, ...] = ("text",)
    partition_by: tuple[str, ...] = ()
    input_schema: pa.Schema = SCHEMA
    output_schema: pa.Schema = SCHEMA
    errors: ErrorsSpec = field(default_factory=lambda: ErrorsSpec(max_failed_fraction=1.0))
    identity: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Any, ...] = ()
    model_id: str = "model"
    model_commit: str = "1"
    remembers: bool = False
    guards: None = None
    chain: tuple[Any, ...] = ()

    @property
    def generation(self) -> str:
        return self.command.generation


def _rows_in(shard: Shard, generation: str) -> set[str]:
    """All rows of its pieces, as rows_of names them."""
    rows = [f"{p.path}|{p.fingerprint}|{row}|{generation[0]}" for p in shard.pieces for row in range(p.start, p.stop)]
    return {name for row in rows for name in (row, f"{row}|failed")}


HERE = threading.local()  # .driver: whose code this thread runs


class Driver:
    """One `hfbatch` process, from its plan to its end."""

    outcome = ""

    def __init__(self, world: World, command: Command, name: str, faults: Faults | None = None) -> None:
        self.world, self.command, self.name = world, command, name
        self.store = Memory(world, name, faults or {})
        self.blocks = 0
        self.kept: set[str] = set()

    def run(self) -> str:
        """How it ended: "success", "killed", or the name of the error."""
        HERE.driver = self
        try:
            self.outcome = self._run()
        except Killed:
            self.outcome = "killed"
            if len(self.store.steps) >= MOST_STEPS:
                self.world.claim("stuck", False, f"{self.name} never ends")
        except HfbatchError as error:
            self.outcome = f"{type(error).__name__}: {error}"
        except Exception as error:
            self.outcome = repr(error)
            self.world.claim("bug", False, f"a bug, not a refusal: {error!r}")
        self.world.trace.append((self.name, len(self.store.steps), "ENDED", self.outcome, ""))
        return self.outcome

    def _run(self) -> str:
        retry, redo = self._subjects()
        job = Job(self.command, self.store)
        machine = SimpleNamespace(grace_s=0, model_dump=lambda **_: {})
        spec = SimpleNamespace(gates=self.command.gates, steps=(), model_dump=lambda **_: {})
        anyway = self.command.anyway
        plan = planner.Plan(
            spec, machine, job, {}, (), frozenset(), None, False, new_generation=True, publish_anyway=anyway
        )
        sources = [
            SourceFile(name, version, (Block(rows, 10 * rows),)) for name, (version, rows) in self.command.files.items()
        ]
        pipeline.run(planner.with_state(plan, sources, LIMITS, retry, redo))
        return "success"

    def _subjects(self) -> tuple[list[str], list[str]]:
        """The shards to retry and those to redo; and note what must not be inferred again."""
        ruling = self.world.ruling()
        if ruling is None or ruling.generation != self.command.generation:
            return [], []
        committed = self.world.committed(ruling)
        own = [shard.id for shard in ruling.shards]
        for shard in ruling.shards:
            if shard.id in committed:
                again, rows = self.command.retry, set(committed[shard.id])
            else:  # what it is to carry over
                again, rows = (
                    shard.retry,
                    _rows_in(shard, ruling.generation).intersection(committed.get(shard.base or "", ())),
                )
            self.kept |= {row for row in rows if not (again and row.endswith("|failed"))}
        failed = [shard for shard in own if any(row.endswith("|failed") for row in committed.get(shard, ()))]
        names = {shard_of(name): content for name, content in self.world.objects.items() if name.startswith("data/")}
        damaged = [shard for shard in own if shard in names and table_of(names[shard]) is None]
        return failed if self.command.retry else [], damaged if self.command.redo else []

    def audit(self) -> list[Gate]:
        """What the gates of the command say; they can compare with yesterday only while it stands."""
        whole = self.world.published("_hfbatch/CURRENT") <= set(self.world.below("data"))
        passed = {"pass": True, "fail": False, "pass if yesterday stands": whole}[str(self.command.gates)]
        return [Gate(name="gate", value=passed, passed=passed)]

    def read(self, job: Job, shard: Shard) -> pa.Table:
        """The shard's rows as they reach the sink: as source.ReadShard reads them, and inferred."""
        pieces = [(piece.path, piece.fingerprint, piece.start, piece.stop) for piece in shard.pieces]
        rows = [f"{path}|{version}|{row}" for path, version, start, stop in pieces for row in range(start, stop)]
        numbers = np.array([n for n, row in enumerate(rows) if row not in self.command.filtered], dtype=np.int64)
        wanted = numbers
        if shard.base is not None:
            known, _ = carry.carried_over(ledger.Ledger(self.store), shard.base, job.generation, pieces, shard.retry)
            wanted = numbers[~np.isin(numbers, known)]
        texts = [f"{rows[number]}|{job.generation[0]}" for number in wanted]
        errors = ["failed: x" if rows[number] in self.command.failing else None for number in wanted]
        again = self.kept.intersection(
            text + "|failed" * (error is not None) for text, error in zip(texts, errors, strict=True)
        )
        self.world.trace.append((self.name, len(self.store.steps), "INFER", shard.id, str(texts)))
        self.world.claim("again", not (again and self.world.alone), f"committed, and inferred again: {sorted(again)}")
        ticket = col.Ticket(
            shard=shard.id,
            rows=len(wanted),
            digest=col.digest(numbers),
            pieces=pieces,
            carried=len(numbers) - len(wanted),
            base=shard.base,
            retry=shard.retry,
            staged=shard.staged,
        )
        columns = {"text": texts or [None], "error": errors or [None], col.ROW: [*wanted] or [col.EMPTY_ROW]}
        return ticket.on(pa.table(columns, schema=SCHEMA.append(pa.field(col.ROW, pa.int64()))))

    def infer(self, plan: planner.Plan, ruling: Agreed) -> Snapshot:
        """As passes.run_passes: a StorageError may pass by, a bug may too, any other failure ends the run."""
        snapshot, todo, state = Snapshot(), plan.todo, ledger.Ledger(self.store)
        commit = sink.Commit(plan.job, self.name, ruling.number)
        state.receipts(plan.job.generation, sorted(plan.done))
        for _ in range(PASSES):
            for shard in todo:
                if snapshot.fatal:
                    break
                try:
                    commit(self.read(plan.job, shard))
                except Exception as error:
                    ours = error if isinstance(error, HfbatchError) else None
                    self.world.claim("worker bug", ours is not None, f"in a worker, and no refusal: {error!r}")
                    fatal = ours is not None and not isinstance(ours, StorageError)
                    snapshot.failures.append(Failure("write", str(error), "", ours, fatal))
                    self.world.trace.append((self.name, len(self.store.steps), "WORKER", repr(error), ""))
            committed = state.committed(plan.job.generation)
            left = [shard for shard in todo if shard.id not in committed]
            if not left or len(left) == len(todo) or snapshot.fatal:
                break
            todo = tuple(left)
        return snapshot


# all schedules of one driver after another


class Broken(AssertionError):
    """A promise did not hold; the steps up to there."""


@dataclass
class Explored:
    """All schedules of up to `budget` faults from a state: drivers run one after another until one succeeds."""

    command: Command
    schedules: int = 0
    seen: set[tuple[frozenset[tuple[str, bytes]], int]] = field(default_factory=set)

    def go(self, objects: Objects, budget: int, number: int = 1, told: str = "") -> None:
        """Broken on the first schedule that breaks a promise. The same state is explored once."""
        state = frozenset((name, content) for name, content in objects.items() if not _is_note(name))
        if (state, budget) in self.seen:
            return
        self.seen.add((state, budget))
        todo: list[dict[int, str]] = [{}]
        while todo:
            faults = todo.pop()
            world = World(objects)
            driver = Driver(world, self.command, f"run{number}", faults)
            outcome = driver.run()
            self.schedules += 1
            if outcome == "success":
                published = any(f"{driver.name}/manifest.json" in name for name in world.objects)
                world.check_success(self.command.rows, tidy=published)
            world.claim("stuck", outcome == "success" or bool(faults), "a run without faults did not succeed")
            if world.broken:
                raise Broken(told + world.told())
            if len(faults) < budget:
                first = max(faults, default=0) + 1
                todo += [{**faults, step: kind} for step, kind in kinds(driver.store.steps, first)]
            if outcome != "success" and faults:
                self.go(world.objects, budget - len(faults), number + 1, told + world.told() + "\n")


def kinds(steps: Sequence[bool], first: int = 1) -> Iterator[tuple[int, str]]:
    """The faults that make a difference from step `first` on; a kill between two reads is the one before the first."""
    for step, changes in enumerate(steps, 1):
        if step >= first:
            if step == first or steps[step - 2]:
                yield step, "kill"
            yield step, "fail"
            if changes:
                yield step, "unheard"


def _is_note(name: str) -> bool:
    """Written for people, read by nobody."""
    return name.startswith("_hfbatch/runs/") and not name.endswith("/manifest.json")


# two drivers at once


class Turns:
    """Who makes the next step: drivers run in threads, one at a time."""

    def __init__(self, names: Sequence[str], choose: Callable[[str | None, Sequence[str]], str]) -> None:
        """`choose`: (who wants to make the next step, those still at work) -> who makes it; asked before every step."""
        self.live, self.choose = list(names), choose
        self.gates = {name: threading.Semaphore(0) for name in names}
        self.begun: set[str] = set()

    def __call__(self, name: str) -> None:
        """Come back when it is `name`'s turn."""
        if name not in self.begun:  # its turn is why it has begun
            self.begun.add(name)
            return
        chosen = self.choose(name, self.live)
        if chosen != name:
            self.gates[chosen].release()
            self.gates[name].acquire()

    def run(self, driver: Driver) -> None:
        """All of a driver, in a thread of its own."""
        self.gates[driver.name].acquire()
        try:
            driver.run()
        finally:
            self.live.remove(driver.name)
            if self.live:
                self.gates[self.choose(None, self.live)].release()


def segments(*wanted: tuple[str, int]) -> Callable[[str | None, Sequence[str]], str]:
    """(who, how many steps) one after another; then whoever was at it goes on to its end."""
    left = [[who, steps] for who, steps in wanted]

    def choose(name: str | None, live: Sequence[str]) -> str:
        while left and (left[0][1] <= 0 or left[0][0] not in live):
            left.pop(0)
        if not left:
            return name if name in live else live[0]
        left[0][1] -= 1
        return str(left[0][0])

    return choose


def race(world: World, drivers: Sequence[Driver], choose: Callable[[str | None, Sequence[str]], str]) -> None:
    """Run them all to their ends, interleaved as `choose` says."""
    world.turn = turns = Turns([driver.name for driver in drivers], choose)
    threads = [threading.Thread(target=turns.run, args=(driver,), daemon=True) for driver in drivers]
    for thread in threads:
        thread.start()
    turns.gates[choose(None, turns.live)].release()
    for thread in threads:
        thread.join()
    world.turn = lambda _: None


# in the place of Parquet, Ray, threads and the clock


class Object:
    """A pyarrow.parquet.ParquetFile over what `_write` wrote."""

    def __init__(self, source: Any, **_: Any) -> None:
        content = source.read_bytes() if isinstance(source, Path) else source.read()
        table = table_of(content)
        if table is None:
            raise pa.ArrowInvalid("no Arrow file")
        self.table, self.schema_arrow = table, table.schema
        self.metadata = SimpleNamespace(metadata=table.schema.metadata)

    def read(self) -> pa.Table:
        return self.table

    def iter_batches(self, **_: Any) -> list[pa.RecordBatch]:
        return self.table.to_batches()


def _write(table: pa.Table, path: Path, **_: Any) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


class Report(SimpleNamespace):
    """A RunReport, of which only the gates are looked at."""

    def model_copy(self, update: Mapping[str, Any]) -> Report:
        return Report(**{**vars(self), **update})

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {**vars(self), "gates": [gate.model_dump() for gate in self.gates]}


class Serial:
    """A ThreadPoolExecutor without threads."""

    def __init__(self, max_workers: int) -> None:
        pass

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: Callable[[Any], Any], *items: Sequence[Any]) -> Iterator[Any]:
        return iter([work(*each) for each in zip(*items, strict=True)])


class NoLease:
    """A lease that everybody gets."""

    lost = False

    def __init__(self, store: Store, run_id: str, job: str) -> None:
        self.store, self.run_id = store, run_id

    def __enter__(self) -> NoLease:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class NoLog(NoLease):
    """A log that nobody reads: it is put by a thread of its own, at no step of the protocol."""

    def __init__(self, store: Store, run_id: str) -> None:
        super().__init__(store, run_id, "")


def _count_blocks() -> float:
    """A clock of its own for each driver, so that no two attempts write the same bytes."""
    HERE.driver.blocks += 1
    return HERE.driver.blocks


def install(patch: Any, folder: Path) -> None:
    """Put all of this in its place, with pytest's monkeypatch. `folder`: where spools may stand."""

    @contextmanager
    def spool_of(name: str) -> Iterator[str]:
        (folder / name).mkdir(exist_ok=True)
        yield str(folder / name)

    parquet = SimpleNamespace(ParquetFile=Object, write_table=_write)
    patch.setattr(sink, "pq", parquet)
    patch.setattr(carry, "pq", parquet)
    patch.setattr(sink, "time", SimpleNamespace(perf_counter=_count_blocks))
    patch.setattr(sink, "tempfile", SimpleNamespace(TemporaryDirectory=lambda prefix: spool_of(HERE.driver.name)))
    patch.setattr(ledger, "ThreadPoolExecutor", Serial)
    for module in (planner, pipeline, sink):
        patch.setattr(module, "open_store", lambda store: store)
    patch.setattr(pipeline, "Lease", NoLease)
    patch.setattr(pipeline.logs, "RunLog", NoLog)
    patch.setattr(pipeline.logs, "tell_end", lambda report: None)
    patch.setattr(pipeline, "_write_page", lambda ledger, report: None)  # for people; what fails in it is only told
    patch.setattr(pipeline, "versions", dict)
    patch.setattr(pipeline, "new_run_id", lambda: HERE.driver.name)
    told = {"outcome": "success", "gates": [], "published_anyway": False}
    patch.setattr(pipeline, "make_report", lambda about, receipts, run_id, *_: Report(run_id=run_id, **told))
    patch.setattr(audit, "audit", lambda *_: HERE.driver.audit())
    patch.setattr(
        pipeline, "_infer", lambda plan, ruling, *_: HERE.driver.infer(plan, ruling) if plan.todo else Snapshot()
    )

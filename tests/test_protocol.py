"""Every schedule of the commit protocol with up to two faults, and of two runs at once: no loss and no double."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
import pytest

from hfbatch import columns as col
from hfbatch import ledger, planner, sink
from hfbatch.ledger import Ledger
from hfbatch.records import Agreed, shard_of
from hfbatch.shards import Piece, Shard
from tests.protocol import (
    PASSES,
    Broken,
    Command,
    Driver,
    Explored,
    Job,
    Objects,
    World,
    install,
    kinds,
    race,
    segments,
)

NEVER = 10**6  # steps


@dataclass(frozen=True)
class Scenario:
    """What stands there, as runs without a fault left it, and what is run on it."""

    command: Command
    before: Command | None = None
    change: Callable[[Objects], None] = lambda objects: None

    def objects(self) -> Objects:
        world = World({})
        if self.before:
            assert Driver(world, self.before, "run0").run() == "success", world.told()
        self.change(world.objects)
        assert world.broken is None, world.told()
        return world.objects


def half_done(objects: Objects) -> None:
    """As a run leaves it that was killed when its first shard was committed."""
    worlds = (killed(FIRST, step) for step in range(1, NEVER))
    objects.update(next(world.objects for world in worlds if world.below("_hfbatch/commits")))


def damaged(objects: Objects) -> None:
    """One object of data/ is no longer readable."""
    name = next(name for name in sorted(objects) if name.startswith("data/"))
    objects[name] = objects[name][:100]


def killed(command: Command, step: int) -> World:
    world = World({})
    assert Driver(world, command, "run0", {step: "kill"}).run() == "killed"
    return world


FIRST = Command({"a": ("1", 2), "b": ("1", 2)})
YESTERDAY = Command({"b": ("1", 1), "c": ("1", 1), "a": ("1", 2), "d": ("1", 2)})  # b and c share a shard
TODAY = Command({"b": ("2", 1), "c": ("1", 1), "a": ("1", 2), "e": ("1", 1)})
SCENARIOS = {
    "first run": Scenario(FIRST),
    "resume": Scenario(FIRST, None, half_done),
    "a shard without rows": Scenario(replace(FIRST, filtered=frozenset({"a|1|0", "a|1|1", "b|1|0"}))),
    "changed, added, removed": Scenario(TODAY, YESTERDAY),
    "only removed": Scenario(Command({"a": ("1", 2)}), FIRST),
    "new generation": Scenario(replace(FIRST, generation="2" * 64), FIRST),
    "retry": Scenario(replace(FIRST, retry=True), replace(FIRST, failing=frozenset({"a|1|1"}))),
    "redo": Scenario(replace(FIRST, redo=True), FIRST, damaged),
}
SMALL = ("only removed",)  # where two faults are tried by default


@pytest.fixture(autouse=True)
def model(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)


def every(names=SCENARIOS):
    return pytest.mark.parametrize("name", names)


def explored(name: str, budget: int, objects: Objects | None = None) -> int:
    done = Explored(SCENARIOS[name].command)
    done.go(SCENARIOS[name].objects() if objects is None else objects, budget)
    print(f"{name}: {done.schedules} schedules of up to {budget} faults")  # noqa: T201
    return done.schedules


@every()
def test_no_single_fault_loses_or_doubles_a_row(name):
    assert explored(name, 1) > 50


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS]
)
def test_no_two_faults_lose_or_double_a_row(name):
    assert explored(name, 2) > 500


# two at once


def later(command: Command) -> Command:
    """The same job a little later: one file has changed, one has come."""
    return replace(command, files={**command.files, "a": ("9", 1), "z": ("1", 2)})


def unchanged(command: Command) -> Command:
    return command


def met(
    objects: Objects,
    commands: list[Command],
    choose: Callable,
    faults: dict[int, str] | None = None,
) -> list[Driver]:
    """Runs A, B, ... of these commands on one output at once; `faults` are A's. Broken if a promise is.

    At every step: no row twice and nothing lost in data/, but for an object that a run put there after it had been
    overtaken (World.stray). Without faults none of these is left when all have ended; else after one more run, which
    always succeeds. Then the whole promise holds.
    """
    world = World(objects, alone=False)
    drivers = [
        Driver(world, command, name, faults if name == "A" else None)
        for name, command in zip("ABC", commands, strict=False)
    ]
    race(world, drivers, choose)
    if not faults:
        stopped = " after an error" * any(driver.outcome.startswith("StorageError") for driver in drivers)
        world.claim(f"stray{stopped}", not world.stray, f"nobody took away {sorted(world.stray)}")
    world.alone = True
    outcome = Driver(world, commands[-1], "last").run()
    world.claim("stuck", outcome == "success", f"a run without faults did not succeed: {outcome}")
    world.check_success(commands[-1].rows, tidy=False)
    if world.broken:
        raise Broken(world.told())
    return drivers


def steps_of(objects: Objects, command: Command) -> int:
    driver = Driver(World(objects), command, "A")
    driver.run()
    return len(driver.store.steps)


def before(objects: Objects, command: Command, act: str, name: str) -> tuple[int, Objects]:
    """How many steps a run makes before the first `act` on a name that begins so, and what then stands there."""
    world = World(objects)
    Driver(world, command, "A").run()
    wanted = (step for _, step, done, what, _ in world.trace if done == act and what.startswith(name))
    step = next(wanted)
    world = World(objects)
    Driver(world, command, "A", {step: "kill"}).run()
    return step - 1, world.objects


CHANGES = pytest.mark.parametrize("change", [unchanged, later], ids=["the same plan", "another plan"])
STRIDES = pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])  # 1: every step


@every()
@CHANGES
@STRIDES
def test_a_run_that_sleeps_at_any_step_while_another_does_all_of_it_spoils_nothing(name, change, stride):
    objects, command = SCENARIOS[name].objects(), SCENARIOS[name].command
    for step in range(0, steps_of(objects, command) + 1, stride):
        met(objects, [command, change(command)], segments(("A", step), ("B", NEVER)))


@every([name for name in SCENARIOS if SCENARIOS[name].before])
@STRIDES
def test_a_run_that_sleeps_since_before_the_last_one_spoils_nothing(name, stride):
    """A and B make what C then replaces; A sleeps over all of both."""
    first, command = SCENARIOS[name].before, replace(SCENARIOS[name].command, redo=False)
    for step in range(0, steps_of({}, first) + 1, stride):
        met({}, [first, first, command], segments(("A", step), ("B", NEVER), ("C", NEVER)))


@pytest.mark.parametrize(
    ("name", "stride"),
    [("first run", 5), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in SCENARIOS)],
)
def test_a_sleeper_that_is_killed_when_it_wakes_up_costs_one_more_run_at_most(name, stride):
    objects, command = SCENARIOS[name].objects(), SCENARIOS[name].command
    for step in range(0, steps_of(objects, command) + 1, stride):
        turns = ("A", step), ("B", NEVER)
        sleeper, _ = met(objects, [command, later(command)], segments(*turns))
        for again, kind in kinds(sleeper.store.steps, step + 1):
            if kind != "fail":
                met(objects, [command, later(command)], segments(*turns), {again: kind})


@pytest.mark.parametrize(
    ("name", "stride"),
    [("first run", 9), *(pytest.param(name, 3, marks=pytest.mark.slow) for name in SCENARIOS)],
)
@CHANGES
def test_two_runs_that_each_sleep_once_spoil_nothing(name, stride, change):
    """A, then B, then A to its end, then B, at every `stride`-th step of each."""
    objects, command = SCENARIOS[name].objects(), SCENARIOS[name].command
    total = steps_of(objects, command)
    for first in range(0, total, stride):
        for second in range(1, total, stride):
            met(objects, [command, change(command)], segments(("A", first), ("B", second), ("A", NEVER)))


def at_random(seed: int) -> None:
    """Two runs of one scenario, interleaved and perhaps one killed; all of it follows from the seed."""
    rng = random.Random(seed)
    scenario = SCENARIOS[rng.choice(list(SCENARIOS))]
    change, restless = rng.choice([unchanged, later]), rng.choice([0.05, 0.2, 0.5])
    faults = {rng.randrange(1, 60): rng.choice(["kill", "fail", "unheard"])} if rng.random() < 0.5 else {}

    def choose(name: str | None, live: list[str]) -> str:
        return rng.choice(live) if name not in live or rng.random() < restless else name

    try:
        met(scenario.objects(), [scenario.command, change(scenario.command)], choose, faults)
    except Broken as error:
        raise Broken(f"seed {seed}: {error}") from None


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 3000), marks=pytest.mark.slow)], ids=str)
def test_random_interleavings_of_two_runs_spoil_nothing(seeds):
    for seed in seeds:
        at_random(seed)


# races that once broke it


def test_a_sleeper_does_not_put_current_back():
    step, _ = before({}, FIRST, "put", "_hfbatch/CURRENT")
    met({}, [FIRST, later(FIRST)], segments(("A", step), ("B", NEVER)))


def test_a_sleepers_record_never_speaks_of_other_bytes_than_what_is_published():
    objects, command = SCENARIOS["changed, added, removed"].objects(), TODAY
    step, _ = before(objects, command, "put_if_absent", "_hfbatch/staged")
    met(objects, [command, command], segments(("A", step), ("B", NEVER)))


def test_a_second_plan_made_before_the_firsts_object_appeared_doubles_nothing():
    step, there = before({}, FIRST, "put_if_absent", "data/")
    planned, _ = before(there, later(FIRST), "put_if_absent", "_hfbatch/plans")
    met({}, [FIRST, later(FIRST)], segments(("A", step), ("B", planned), ("A", 1), ("B", NEVER)))


def test_a_sleeper_whose_staged_objects_vanish_takes_back_those_it_copied():
    second, third = replace(FIRST, generation="2" * 64), replace(FIRST, generation="3" * 64)
    objects = SCENARIOS["new generation"].objects()
    step, there = before(objects, second, "copy_if_absent", "data/")
    swapped, _ = before(there, third, "copy_if_absent", "data/")
    turns = segments(("A", step), ("B", swapped), ("A", 1), ("B", NEVER))
    met(objects, [second, third], turns)


def test_a_writer_whose_base_has_vanished_says_so():
    objects = SCENARIOS["changed, added, removed"].objects()
    world = World(objects)
    Driver(world, TODAY, "A").run()
    step = next(step for _, step, act, _, rows in world.trace if (act, rows) == ("INFER", "[]"))  # all carried over
    met(objects, [TODAY, TODAY], segments(("A", step), ("B", NEVER)))


def test_a_clean_up_that_was_cut_short_is_made_up_for():
    objects = SCENARIOS["new generation"].objects()
    _, there = before(objects, SCENARIOS["new generation"].command, "delete", "_hfbatch/staged")
    world = World(there)
    Driver(world, SCENARIOS["new generation"].command, "B").run()
    world.check_success(SCENARIOS["new generation"].command.rows)
    if world.broken:
        raise Broken(world.told())


# it finds what it looks for


def commits_first(real: Callable) -> Callable:
    def publish(ledger, rows, held, receipt, staged):
        ledger.commit(receipt)
        return real(ledger, rows, held, receipt, staged)

    return publish


def promotes_first(real: Callable) -> Callable:
    def swap(self, plan, receipts):
        for name in self.store.list("_hfbatch/staged"):
            self.store.copy_if_absent(name, name.replace("_hfbatch/staged", "data"))
        real(self, plan, receipts)

    return swap


def succeeds_first(real: Callable) -> Callable:
    def publish(self, run_id, plan, receipts, report):
        self._succeed(plan, {"plan": plan.number, "manifest": f"_hfbatch/runs/{run_id}/manifest.json"})
        real(self, run_id, plan, receipts, report)

    return publish


def adopts_blindly(real: Callable) -> Callable:
    return lambda ledger, receipt: receipt


def reopens_never(real: Callable) -> Callable:
    return lambda self: None


def ignores_numbers(real: Callable) -> Callable:
    return lambda name, plan, known: shard_of(name) is not None and shard_of(name) not in known


def never_looks_again(real: Callable) -> Callable:
    return lambda ledger, receipt, plan, *created: None if created else real(ledger, receipt, plan)


def agrees_over_others(real: Callable) -> Callable:
    def agree(self, generation, shards, seen):
        plan = Agreed((seen.number if seen else 0) + 1, generation, tuple(shards))
        self.store.put(f"_hfbatch/plans/{plan.number:09d}.json", plan.to_json())
        return plan

    return agree


def stages_nothing(real: Callable) -> Callable:
    return lambda *what: tuple(replace(shard, staged=False) for shard in real(*what))


def forgets_numbers(real: Callable) -> Callable:
    return lambda pieces, where, number=1, *how: real(pieces, where, 1, *how)


def faults(name: str, objects: Objects) -> None:
    explored(name, 1, objects)


def sleepers(name: str, objects: Objects) -> None:
    command = SCENARIOS[name].command
    for step in range(steps_of(objects, command) + 1):
        met(objects, [command, later(command)], segments(("A", step), ("B", NEVER)))


@pytest.mark.parametrize(
    ("mutant", "where", "what", "search", "name", "found"),
    [
        (commits_first, sink, "publish", faults, "first run", "record: .* has no object"),
        (adopts_blindly, sink, "adopted", faults, "first run", "fit: .* does not fit"),
        (promotes_first, Ledger, "_swap", faults, "changed, added, removed", "double: data/ holds rows twice"),
        (stages_nothing, planner, "cut", faults, "changed, added, removed", "double"),
        (reopens_never, Ledger, "reopen", faults, "changed, added, removed", "success: _SUCCESS stands"),
        (succeeds_first, Ledger, "publish", faults, "first run", "success: _SUCCESS stands"),
        (ignores_numbers, ledger, "_is_dead", sleepers, "new generation", "lost: |record: "),
        (forgets_numbers, Shard, "of", sleepers, "first run", "lost: |record: "),
        (never_looks_again, sink, "_must_rule", sleepers, "first run", "stray: nobody took away"),
        (agrees_over_others, Ledger, "agree", sleepers, "first run", "."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_protocol_is_found(mutant, where, what, search, name, found, monkeypatch):
    objects = SCENARIOS[name].objects()
    monkeypatch.setattr(where, what, mutant(getattr(where, what)))
    with pytest.raises(Broken, match=found):
        search(name, objects)


def test_the_model_reads_a_shard_as_the_source_does(monkeypatch):
    """Same rows, same ticket, same steps; and as many passes."""
    from hfbatch import passes, source  # Ray, which nothing else here needs

    def batches(job, pieces, refs):
        rows = pa.array(range(sum(piece.rows for piece in pieces)), pa.int64())
        yield pa.RecordBatch.from_arrays([rows.cast(pa.string()), rows], names=["text", col.ROW])

    monkeypatch.setattr(source, "numbered_batches", batches)
    monkeypatch.setattr(source, "open_store", lambda store: store)
    world = World(SCENARIOS["changed, added, removed"].objects())
    base = next(shard for shard in world.ruling().shards if len(shard.pieces) == 2)
    whole, nothing = [Shard.of(pieces, None, 2, base=base.id) for pieces in (base.pieces, base.pieces[1:])]
    more = Shard.of([*base.pieces, Piece("e", "1", 0, 2)], None, 2, base=base.id)
    for shard in (whole, nothing, more, base):
        mine, theirs = (
            told_by(world, shard, read)
            for read in (Driver.read, lambda _, job, shard: source.ReadShard(job).read(shard, []))
        )
        assert mine == theirs
    assert passes.PASSES == PASSES


def told_by(world: World, shard: Shard, read: Callable) -> tuple:
    """The ticket, the rows' numbers and the steps of reading this shard."""
    world.trace.clear()
    driver = Driver(world, TODAY, "A")
    table = read(driver, Job(TODAY, driver.store, input_schema=pa.schema({"text": pa.string()})), shard)
    steps = [(act, name) for _, _, act, name, _ in world.trace if act != "INFER"]
    return replace(col.ticket_of(table), stats={}), table[col.ROW].to_pylist(), steps

"""The commit protocol of a run with gates, under every fault: readers have yesterday, or what passed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hfbatch import planner
from hfbatch.gates import audit
from hfbatch.ledger import Ledger
from tests.protocol import Broken, Command, Driver, Explored, Objects, World, install, kinds
from tests.test_protocol import NEVER, SCENARIOS, met, segments, stages_nothing

ABOUT_YESTERDAY = "pass if yesterday stands"  # as shift has it: judged against objects that the swap takes away
QUICK = ("first run", "changed, added, removed")


@pytest.fixture(autouse=True)
def model(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)


def every(names=SCENARIOS):
    return pytest.mark.parametrize(
        "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


def gated(name: str, gates: str, **more) -> Command:
    return replace(SCENARIOS[name].command, gates=gates, **more)


class Held(World):
    """A world in which what readers rely on never changes."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        self.before = readable(objects)

    def changed(self, name: str, created: bool) -> None:
        super().changed(name, created)
        self.claim("held", readable(self.objects) == self.before, f"{name} changed, and the gates are not passed")


def readable(objects: Objects) -> Objects:
    """What a reader of the output goes by."""
    return {
        name: content
        for name, content in objects.items()
        if name.startswith("data/") or name in ("_SUCCESS", "_hfbatch/CURRENT")
    }


def held(name: str, faults: dict[int, str]) -> tuple[Driver, Held]:
    """A run whose gates fail, on what the scenario finds."""
    world = Held(SCENARIOS[name].objects())
    driver = Driver(world, gated(name, "fail"), "run1", faults)
    driver.run()
    if world.broken:
        raise Broken(world.told())
    return driver, world


@every()
def test_no_single_fault_loses_or_doubles_a_row_of_a_run_with_gates(name):
    done = Explored(gated(name, ABOUT_YESTERDAY))
    done.go(SCENARIOS[name].objects(), 1)
    assert done.schedules > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_two_faults_lose_or_double_a_row_of_a_run_with_gates(name):
    done = Explored(gated(name, ABOUT_YESTERDAY))
    done.go(SCENARIOS[name].objects(), 2)
    assert done.schedules > 500


@every([name for name in SCENARIOS if SCENARIOS[name].before or name == "first run"])
def test_whatever_befalls_a_run_whose_gates_fail_readers_keep_what_they_had_and_nothing_is_inferred_again(name):
    clean, _ = held(name, {})
    assert clean.outcome.startswith("GateFailed")
    for step, kind in kinds(clean.store.steps):
        _, world = held(name, {step: kind})
        again = Driver(world, gated(name, "fail"), "run2")
        assert again.run().startswith("GateFailed"), world.told()
        anyway = Driver(world_of(world), gated(name, "fail", anyway=True), "run3")
        assert anyway.run() == "success", anyway.world.told()
        anyway.world.check_success(gated(name, "fail").rows)
        assert not any(entry[2] == "INFER" for entry in anyway.world.trace)
        if anyway.world.broken:
            raise Broken(anyway.world.told())


def world_of(world: World) -> World:
    """The same objects, where everything may happen again."""
    return World(world.objects)


def test_a_night_that_failed_is_superseded_by_the_next_which_infers_only_what_is_new():
    _, world = held("changed, added, removed", {})
    tomorrow = gated("changed, added, removed", ABOUT_YESTERDAY)
    tomorrow = replace(tomorrow, files={**tomorrow.files, "b": ("3", 1), "f": ("1", 2)})
    next_night = World(world.objects)
    assert Driver(next_night, tomorrow, "run2").run() == "success", next_night.told()
    next_night.check_success(tomorrow.rows)
    inferred = " ".join(entry[4] for entry in next_night.trace if entry[2] == "INFER")
    assert "b|3" in inferred
    assert "f|1" in inferred
    assert "e|1" not in inferred, "it came last night, and stood aside"
    assert not next_night.broken, next_night.told()


def test_going_back_to_yesterdays_model_after_a_night_that_failed_infers_nothing_under_any_fault():
    _, world = held("new generation", {})
    back = replace(SCENARIOS["new generation"].before, gates=ABOUT_YESTERDAY)
    done = Explored(back)
    done.go(world.objects, 1)
    clean = World(world.objects)
    assert Driver(clean, back, "run2").run() == "success", clean.told()
    clean.check_success(back.rows)
    assert {entry[4] for entry in clean.trace if entry[2] == "INFER"} == {"[]"}, "all rows are carried over"
    assert not clean.broken, clean.told()


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
@every()
def test_a_run_with_gates_that_sleeps_at_any_step_while_another_does_all_of_it_spoils_nothing(name, stride):
    objects, command = SCENARIOS[name].objects(), gated(name, "pass")
    driver = Driver(World(objects), command, "A")
    driver.run()
    for step in range(0, len(driver.store.steps) + 1, stride):
        for other in (command, SCENARIOS[name].command):
            met(objects, [command, other], segments(("A", step), ("B", NEVER)))


# it finds what it looks for


def test_a_swap_that_is_not_put_down_first_is_found(monkeypatch):
    monkeypatch.setattr(audit, "_verdict", lambda ledger, ruling: None)
    with pytest.raises(Broken, match="a run without faults did not succeed"):
        Explored(gated("changed, added, removed", ABOUT_YESTERDAY)).go(
            SCENARIOS["changed, added, removed"].objects(), 1
        )


def test_a_success_that_goes_too_early_is_found(monkeypatch):
    monkeypatch.setattr(Ledger, "begin", lambda self, *_: self.reopen())
    with pytest.raises(Broken, match="held: _SUCCESS changed"):
        held("changed, added, removed", {})


def test_a_success_that_never_goes_is_found(monkeypatch):
    monkeypatch.setattr(Ledger, "reopen", lambda self: None)
    with pytest.raises(Broken, match="success: _SUCCESS stands"):
        Explored(gated("changed, added, removed", "pass")).go(SCENARIOS["changed, added, removed"].objects(), 1)


def test_shards_that_do_not_stand_aside_are_found(monkeypatch):
    monkeypatch.setattr(planner, "cut", stages_nothing(planner.cut))
    with pytest.raises(Broken, match="held: data/"):
        held("first run", {})

"""The tally as plain Python: what it counts, over which shards processes died, when it says stop."""

import pickle

import pytest

from hfbatch.errors import SystemicError
from hfbatch.tally import Failure, Meter, Tally


def test_a_shard_that_was_entered_and_never_left_has_killed_a_process():
    tally = Tally()
    assert [tally.enter("a"), tally.enter("b"), tally.enter("a"), tally.enter("a")] == [0, 0, 1, 2]


def test_work_that_ended_with_a_result_or_an_exception_killed_nobody():
    tally = Tally()
    tally.enter("a")
    tally.leave("a", (10, 1))
    assert tally.enter("a") == 0
    tally.leave("a")
    tally.leave("a")  # once more than it was entered
    assert [tally.enter("a"), tally.enter("a")] == [0, 1]


def test_rows_and_errors_of_a_shard_that_ran_twice_count_once_and_the_last_result_stands():
    tally = Tally()
    tally.update("process", {"sequences": 30.0})
    for shard, result in (("a", (10, 1)), ("b", (20, 5)), ("a", (10, 2)), ("c", None)):
        tally.enter(shard)
        tally.leave(shard, result)
    snapshot = tally.snapshot()
    assert (snapshot.total("rows"), snapshot.total("errors"), snapshot.total("sequences")) == (30, 7, 30)


def test_the_code_works_once_a_row_has_had_a_result():
    tally = Tally()
    assert not tally.works()
    tally.leave("a", (10, 10))
    assert not tally.works()
    tally.leave("b", (10, 9))
    assert tally.works()


def test_loads_are_counted_since_the_last_that_came_through():
    tally = Tally()
    assert [tally.load(), tally.load()] == [1, 2]
    tally.loaded()
    assert tally.load() == 1


@pytest.mark.parametrize("fatal", [False, True])
def test_only_a_fatal_failure_stops_the_workers(fatal):
    tally = Tally()
    tally.fail(pickle.dumps(Failure("predict", "x", "", SystemicError("x"), fatal)))
    assert tally.stopped() is tally.update("process", {}) is fatal
    assert (tally.snapshot().fatal is not None) is fatal


def test_meters_add_and_subtract():
    one, other = Meter(rows=3, forward_s=0.5), Meter(rows=2, tokens=7)
    assert one + other == Meter(rows=5, tokens=7, forward_s=0.5)
    assert (one + other) - other == one

"""Progress by numbers; the thread that shows it and applies the error budget on a real Ray with a real Tally."""

import logging
import time
from dataclasses import replace

import pytest
import ray

from hfbatch.cluster import start_tally
from hfbatch.errors import ErrorBudgetExceeded, Interrupted
from hfbatch.lease import Lease
from hfbatch.records import Receipt
from hfbatch.stopping import Stopping
from hfbatch.store import open_store
from hfbatch.tally import Snapshot
from hfbatch.watch import Watch
from tests.inline import plan_of
from tests.models import sentences


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """It looks ten times as often as it does for people."""
    monkeypatch.setattr("hfbatch.watch.INTERVAL_S", 0.05)


@pytest.fixture
def plan(classifier, write_parquet, job_for):
    """2,000 rows to do."""
    path = write_parquet("in.parquet", {"text": sentences(2000)})
    return plan_of({**job_for("text-classification", classifier, path), "errors": {"max_failed_fraction": 0.1}})


def watching(tally, plan, done=(), show=None, stopping=None):
    lease = Lease(open_store(plan.job.output), "run", "job")
    return Watch(tally, plan, done, lease, stopping or Stopping(plan.machine.grace_s), show)


def meter(rows=0, sequences=0, errors=0, tokens=0, padded=0):
    names = ("rows", "sequences", "errors", "tokens", "padded_tokens")
    return dict(zip(names, (rows, sequences, errors, tokens, padded), strict=True))


def test_before_the_first_batch_a_run_is_loading_and_promises_nothing(plan):
    done = [Receipt("s", "g", "data", 500, 1, "", {"null_input": 2})]
    progress = watching(None, plan, done, None).progress(Snapshot())
    assert (progress.phase, progress.rows_done, progress.rows_total) == ("loading", 500, 2500)
    assert (progress.errors, progress.rows_per_s, progress.eta_s, progress.padding_share) == (2, 0, None, 0)


def test_progress_sums_over_workers_and_never_passes_the_total(plan):
    watch = watching(None, plan, [], None)
    one = watch.progress(Snapshot({"a": meter(0, 100, 0, 900, 1000), "b": meter(100, 200, 3, 900, 1000)}))
    assert (one.phase, one.rows_done, one.rows_total, one.errors) == ("running", 300, 2000, 3)
    assert one.padding_share == 0.1
    over = watch.progress(Snapshot({"a": meter(0, 9999)}))  # several sequences a row, or a shard done twice
    assert over.rows_done == over.rows_total


def test_a_rate_is_counted_from_the_first_batch_and_gives_the_time_left(plan):
    watch = watching(None, plan, [], None)
    watch.progress(Snapshot({"a": meter(0, 1)}))
    watch._first = time.monotonic() - 10
    progress = watch.progress(Snapshot({"a": meter(500, 500, 0, 5000, 5000)}))
    assert progress.rows_per_s == pytest.approx(50, rel=0.02)
    assert progress.tokens_per_s == pytest.approx(500, rel=0.02)
    assert progress.eta_s == pytest.approx(30, rel=0.02)


def test_once_two_shards_are_through_the_time_of_the_whole_run_is_foreseen_from_the_second(plan, monkeypatch):
    watch, clock = watching(None, plan), [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    watch.lease.started = 985.0
    watch._show(Snapshot({"a": meter(0, 300)}))
    watch._show(Snapshot({"a": meter(0, 500), "shards": {"rows": 400, "errors": 0}}))  # at first all was slow
    assert watch.foreseen is None
    clock[0] += 5
    watch._show(Snapshot({"a": meter(0, 1000), "shards": {"rows": 800, "errors": 0}}))
    assert watch.foreseen == (pytest.approx(15 + 5 + 15), "first shards")  # 1,200 of 2,000 rows left, 80 a second
    watch._show(Snapshot({"a": meter(0, 1500), "shards": {"rows": 1200, "errors": 0}}))
    assert watch.foreseen[0] == pytest.approx(35)


@pytest.fixture(scope="module")
def local_ray():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def eventually(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "waited 20 seconds in vain"
        time.sleep(0.05)


def test_too_many_failed_rows_stop_the_run_and_progress_is_shown_on_the_way(local_ray, plan):
    tally, seen = start_tally(), []
    ray.get(tally.update.remote("a", meter(900, 900, 300)))
    with watching(tally, plan, [Receipt("s", "g", "data", 50, 1, "", {"null_input": 50})], seen.append) as watch:
        eventually(lambda: len(seen) > 1)
        assert not ray.get(tally.stopped.remote()), "950 rows are too few to judge"
        ray.get(tally.update.remote("b", meter(50, 50, 0)))
        eventually(lambda: ray.get(tally.stopped.remote()))
        fatal = watch.snapshot().fatal
    assert isinstance(fatal, ErrorBudgetExceeded)
    assert str(fatal).startswith("350 of 1,000 rows failed (35.00%)")
    assert str(fatal).endswith("stopped early. What is committed stays")
    assert seen[0].rows_done == 950
    assert len(watch.snapshot().failures) == 1, "said once"


def test_a_display_that_raises_is_logged_once_and_the_budget_is_judged_all_the_same(local_ray, plan, caplog):
    def show(progress):
        raise OSError("the terminal is gone")

    tally = start_tally()
    with watching(tally, plan, [], show):
        time.sleep(0.3)  # several looks
        ray.get(tally.update.remote("a", meter(1000, 1000, 1000)))
        eventually(lambda: ray.get(tally.stopped.remote()))
    assert [record.message for record in caplog.records] == ["showing progress failed; the run goes on without it"]


def test_when_the_tally_is_gone_the_watch_ends(local_ray, plan):
    tally = start_tally()
    with watching(tally, plan, [], None) as watch:
        assert watch._thread.is_alive()
        ray.kill(tally)
        eventually(lambda: not watch._thread.is_alive())


def until_it_ends(watch):
    """What the run would do, as long as it is not told to end."""
    deadline = time.monotonic() + 20
    with watch:
        while not ray.get(watch.tally.stopped.remote()):
            assert time.monotonic() < deadline, "nobody ended the run"
            time.sleep(0.05)
    return watch.stopping.reason


def test_a_run_that_is_asked_to_end_is_stopped_when_its_last_shard_is_committed(local_ray, plan):
    tally, stopping = start_tally(), Stopping(grace_s=60)
    ray.get(tally.enter.remote("s"))
    with watching(tally, plan, stopping=stopping):
        stopping.request(Interrupted(15))
        eventually(lambda: ray.get(tally.stopped.remote("predict")))
        assert not ray.get(tally.stopped.remote("write")), "the shard in the model gets its commit"
        ray.get(tally.leave.remote("s", (10, 0)))
        assert not ray.get(tally.stopped.remote("write"))
        ray.get(tally.finish.remote("s"))
        eventually(lambda: ray.get(tally.stopped.remote("write")))


def test_grace_ends_even_where_a_shard_does_not(local_ray, plan):
    tally, stopping = start_tally(), Stopping(grace_s=0.1)
    ray.get(tally.enter.remote("s"))
    stopping.request(Interrupted(15))
    assert until_it_ends(watching(tally, plan, stopping=stopping)).exit_code == 143


def test_a_run_of_whose_workers_nothing_is_heard_ends_rather_than_to_wait_for_ever(local_ray, plan, monkeypatch):
    monkeypatch.setattr("hfbatch.watch.SILENT_S", 0.0)
    tally, machine = start_tally(), plan.machine.model_copy(update={"row_timeout_s": 0.4, "grace_s": 0})
    with watching(tally, replace(plan, machine=machine), stopping=Stopping(0)) as watch:
        time.sleep(1)  # longer than it will take below
        assert watch.stopping.reason is None, "nothing has been in a model yet: it may be long in coming"
        ray.get(tally.enter.remote("s"))
        eventually(lambda: ray.get(tally.stopped.remote()))
    assert watch.stopping.reason.exit_code == 4
    assert "no worker was heard of for 1 s" in str(watch.stopping.reason)


def test_max_runtime_and_a_stolen_lease_ask_a_run_to_end(local_ray, plan):
    late = watching(start_tally(), replace(plan, machine=plan.machine.model_copy(update={"max_runtime": 0.01})))
    assert "machine.max_runtime of 0.01 s is over" in str(until_it_ends(late))
    robbed = watching(start_tally(), plan)
    robbed.lease.lost = True
    assert until_it_ends(robbed).exit_code == 75

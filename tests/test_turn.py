"""`run --wait`: one run after another on one output."""

import functools
import threading

import pytest
import yaml

import hfbatch
from hfbatch import planner, turn
from hfbatch.errors import Locked
from hfbatch.lease import Lease
from hfbatch.planner import Plan
from tests.console import command_in_this_process
from tests.inline import plan_of
from tests.outputs import copied, runs_in_this_process


@pytest.fixture
def busy(made, tmp_path, monkeypatch):
    """An output that another run holds, with one shard to do; `free()` ends that run."""
    output = copied(made, tmp_path)
    (output.path / "_SUCCESS").unlink()
    output.objects[0].unlink()
    lease = Lease(output.ledger.store, "other", "job")
    lease.about = {**lease.about, "host": "elsewhere/1"}
    lease.__enter__()
    output.free = lambda: lease.__exit__()
    monkeypatch.setattr(turn, "wait_until_free", functools.partial(turn.wait_until_free, every_s=0.05))
    with runs_in_this_process():
        yield output
    lease.__exit__()


def test_without_wait_a_second_run_is_told_who_is_at_work(busy):
    with pytest.raises(Locked, match=r"run other is at work on it .*--wait"):
        hfbatch.run(busy.job)


@pytest.mark.parametrize("as_plan", [False, True])
def test_with_wait_it_runs_once_the_other_has_ended(busy, as_plan):
    job = plan_of(busy.job) if as_plan else busy.job
    timer = threading.Timer(0.2, busy.free)
    timer.start()
    report = hfbatch.run(job, wait=True)
    timer.join()
    assert (report.outcome, report.rows) == ("success", 50)


def test_it_plans_again_after_the_wait(busy, monkeypatch):
    plans = []
    real = planner.make_plan
    monkeypatch.setattr(planner, "make_plan", lambda *given, **named: plans.append(real(*given, **named)) or plans[-1])
    timer = threading.Timer(0.2, busy.free)
    timer.start()
    hfbatch.run(busy.job, wait=True)
    timer.join()
    assert len(plans) == 2
    assert all(isinstance(plan, Plan) for plan in plans)


def test_the_command_says_on_stderr_for_whom_it_waits(busy, capsys, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(busy.job))
    command = command_in_this_process(capsys)
    code, out, err = command("run", file)
    assert (code, out) == (75, "")
    assert "run other is at work on it" in err
    timer = threading.Timer(0.2, busy.free)
    timer.start()
    code, _, err = command("run", file, "--wait")
    timer.join()
    assert code == 0
    assert err.count("run other is at work on it") == 1

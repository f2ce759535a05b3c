import json
import os
import subprocess
import sys
import time

import pytest

from hfbatch import lease as leases
from hfbatch.errors import Locked
from hfbatch.lease import NAME, Lease, is_alive, read_holder, wait_until_free
from hfbatch.store import open_store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    return open_store(str(tmp_path / "out"))


def held_by(store, **changes):
    """A lease of another process on this machine, changed."""
    with Lease(store, "other", "job"):
        holder = read_holder(store)
    holder |= {"pid": os.getppid(), **changes}
    store.put(NAME, json.dumps(holder).encode())
    return holder


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_there_while_its_run_is_at_work_and_says_how_far_it_is(store):
    with Lease(store, "run1", "reviews") as lease:
        lease.progress = {"rows_done": 7}
        first = read_holder(store)["renewed"]
        until(lambda: read_holder(store)["renewed"] > first)
        assert read_holder(store)["progress"] == {"rows_done": 7}
        assert (read_holder(store)["run_id"], read_holder(store)["job"]) == ("run1", "reviews")
    assert read_holder(store) is None


def test_it_goes_when_the_run_fails(store):
    with pytest.raises(ValueError, match="x"), Lease(store, "run1", "job"):
        raise ValueError("x")
    assert read_holder(store) is None


def test_a_second_run_is_locked_out_and_told_by_whom(store):
    held_by(store)
    with pytest.raises(Locked, match=rf"run other is at work on it \(process {os.getppid()} on .*--wait") as caught:
        Lease(store, "run2", "job").__enter__()
    assert caught.value.exit_code == 75


def test_the_lease_of_a_process_that_is_gone_is_taken_at_once(store):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held_by(store, pid=gone.pid)
    with Lease(store, "run2", "job"):
        assert read_holder(store)["run_id"] == "run2"


@pytest.mark.parametrize(("ago", "alive"), [(5, True), (3600, False), (-3600, True)])
def test_a_holder_on_another_machine_lives_by_its_last_beat(store, ago, alive):
    holder = held_by(store, host="elsewhere/boot", renewed=time.time() - ago)
    assert is_alive(holder) is alive


def test_a_lease_that_cannot_be_read_is_nobodys(store):
    store.put(NAME, b"{torn")
    with Lease(store, "run2", "job"):
        assert read_holder(store)["run_id"] == "run2"


def test_who_loses_the_lease_hears_of_it_and_leaves_the_new_one_alone(store):
    with Lease(store, "run1", "job") as lease:
        held_by(store, run_id="thief")
        until(lambda: lease.lost)
    assert read_holder(store)["run_id"] == "thief"


def test_waiting_ends_when_the_lease_does(store):
    held_by(store)
    told = []

    def tell(line):
        told.append(line)
        store.delete([NAME])

    wait_until_free(store, tell, every_s=0.01)
    assert len(told) == 1
    assert "run other is at work" in told[0]
    wait_until_free(store, told.append)
    assert len(told) == 1

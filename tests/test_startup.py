"""A Ray that begins to start while the plan is made: taken by the run, or gone."""

import gc
import os
import subprocess
import sys
import threading

import pytest

from hfbatch import startup
from hfbatch.errors import SystemicError
from hfbatch.spec import Machine

LOST = """
import sys
from hfbatch.spec import Machine
from hfbatch.startup import early_start
with early_start(Machine()) as begin:
    begin()
    {meanwhile}
    raise SystemExit(7)
"""


@pytest.fixture
def events(monkeypatch):
    """What the thread does, in order; `gate` holds the node's start until it is set."""
    seen, gate = [], threading.Event()

    class Node:
        gcs_address = "127.0.0.1:1"

        def kill_all_processes(self, **_):
            seen.append("killed")

    class Ray:
        is_initialized = staticmethod(lambda: False)
        shutdown = staticmethod(lambda: seen.append("disconnected"))

    def start_node():
        assert gate.wait(60)
        seen.append("started")
        return Node()

    monkeypatch.setattr(startup, "_start_node", start_node)
    monkeypatch.setattr(startup, "_connect", lambda address: seen.append(f"connected to {address}"))
    monkeypatch.setitem(sys.modules, "ray", Ray)
    return seen, gate


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "hfbatch-ray"]


def wait_for_threads():
    for thread in threads():
        thread.join(60)
        assert not thread.is_alive()


def test_what_was_begun_is_what_the_run_takes_and_it_ends_with_the_run(events):
    seen, gate = events
    gate.set()
    with startup.early_start(Machine()) as begin:
        begin()
        begin()  # planned again after a wait: once is enough
        with startup.ray_for(Machine()):
            assert seen == ["started", "connected to 127.0.0.1:1"]
        assert seen[2:] == ["disconnected", "killed"]
    assert len(seen) == 4


def test_without_an_early_start_the_run_starts_its_own(events):
    seen, gate = events
    gate.set()
    with startup.ray_for(Machine()):
        assert seen == ["started", "connected to 127.0.0.1:1"]
    assert seen[2:] == ["disconnected", "killed"]


def test_a_plan_that_fails_does_not_wait_for_a_ray_that_is_still_starting(events):
    seen, gate = events
    with pytest.raises(ValueError, match="no such column"), startup.early_start(Machine()) as begin:  # noqa: PT012
        begin()
        raise ValueError("no such column")
    assert seen == [], "the error came before Ray did"
    gate.set()
    wait_for_threads()
    assert seen == ["started", "killed"], "and it never connected"


def test_a_ray_that_nobody_took_is_gone_after_the_block(events):
    seen, gate = events
    with startup.early_start(Machine()) as begin:
        begin()
        gate.set()
        startup._begun.wait()
    assert seen == ["started", "connected to 127.0.0.1:1", "disconnected", "killed"]


def test_for_a_cluster_nothing_is_begun(events):
    with startup.early_start(Machine(address="ray://no-such-host:1")) as begin:
        begin()
        assert threads() == []


def test_what_keeps_ray_from_starting_is_told_where_it_is_waited_for(events, monkeypatch):
    _, gate = events
    gate.set()
    monkeypatch.setattr(startup, "_connect", lambda address: (_ for _ in ()).throw(ConnectionError("no room")))
    with startup.early_start(Machine()) as begin:
        begin()
        with pytest.raises(SystemicError, match="cannot start a local Ray: no room"), startup.ray_for(Machine()):
            pytest.fail("there is no Ray")


@pytest.mark.parametrize("meanwhile", ["pass", "import time; time.sleep(1)"], ids=["at-once", "in-the-middle"])
def test_a_process_that_ends_while_its_ray_starts_ends_as_it_meant_to(meanwhile):
    """The real thing: no crash of the interpreter over a thread that starts processes."""
    code = LOST.format(meanwhile=meanwhile)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (7, "")


def test_garbage_is_collected_again_after_imports():
    with startup.uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


FAULTS = """
import resource, threading
import torch

def work():
    for _ in range(20):  # until the heap has found its shape
        torch.ones(12_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_a_worker_uses_again_costs_no_page_faults():
    """In the environment that a Ray of our own gives its workers."""

    def faults(environment):
        command = [sys.executable, "-c", FAULTS]
        others = {name: value for name, value in os.environ.items() if name not in startup._HEAP}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=others | environment)
        return int(done.stdout)

    assert 3 * faults(startup._HEAP) < faults({}), "without it every page is new"

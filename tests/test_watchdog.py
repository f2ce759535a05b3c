"""The watchdog in processes of their own, as it ends them."""

import subprocess
import sys

import pytest

from hfbatch.errors import SpecError
from hfbatch.load import load_machine

BEGIN = "import re, time\nfrom hfbatch.watchdog import Watchdog\n"
HANGS = {
    "asleep": "time.sleep(60)",
    "keeping the interpreter's lock": "re.match('(a+)+$', 'a' * 60 + 'b')",
}


def run(code):
    return subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS.keys())
def test_a_process_that_hangs_is_ended_and_says_where(hang):
    ended = run(f"with Watchdog(0.2):\n    {hang}\nprint('still there')")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Timeout" in ended.stderr
    assert 'File "<string>", line 4' in ended.stderr


def test_a_process_with_nothing_to_do_may_wait_and_renewing_gives_the_whole_time_again():
    code = """
dog = Watchdog(0.5)
with dog:
    for _ in range(8):
        time.sleep(0.1)
        dog.renew()
dog.renew()
time.sleep(0.7)
try:
    with dog:
        raise KeyError
except KeyError:
    time.sleep(0.7)
with Watchdog(None) as nothing:
    time.sleep(0.1)
print('still there')
"""
    ended = run(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "still there\n", "")


def test_renewing_for_every_batch_does_not_start_a_clock_for_every_batch(monkeypatch):
    import faulthandler

    from hfbatch.watchdog import Watchdog

    started = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: started.append(seconds))
    dog = Watchdog(1000)
    dog.renew()
    assert started == [], "outside the context nobody watches"
    with dog:
        for _ in range(100):
            dog.renew()
    assert len(started) == 1
    assert started[0] >= 1000


def test_a_piece_of_work_may_have_more_and_the_next_one_has_what_all_have(monkeypatch):
    import faulthandler

    from hfbatch.watchdog import Watchdog

    started = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: started.append(round(seconds)))
    dog = Watchdog(100)
    dog.renew(1000)
    with dog:
        dog.renew(1000)
        dog.renew()
        dog.renew()
        dog.renew(10)
    dog.renew(1000)
    Watchdog(None).renew(1000)
    assert started == [105, 1050, 105, 105]


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), 10**10, "soon"])
def test_the_machine_file_takes_a_time_that_a_clock_can_have(value):
    with pytest.raises(SpecError, match="row_timeout_s"):
        load_machine({"row_timeout_s": value})
    assert load_machine({}).row_timeout_s == 600
    assert load_machine({"row_timeout_s": None}).row_timeout_s is None


def test_of_two_threads_the_one_that_hangs_ends_the_process_whatever_the_other_does():
    code = """
import threading
def busy():
    with (dog := Watchdog(0.4)):
        for _ in range(200):
            time.sleep(0.05)
            dog.renew()
threading.Thread(target=busy, daemon=True).start()
with Watchdog(0.5):
    time.sleep(5)
print('still there')
"""
    ended = run(code)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Timeout" in ended.stderr


def test_a_thread_that_is_done_leaves_the_others_their_time():
    code = """
import threading
def short():
    with Watchdog(0.3):
        time.sleep(0.1)
thread = threading.Thread(target=short)
with Watchdog(2):
    thread.start()
    time.sleep(0.7)
time.sleep(2)
print('still there')
"""
    ended = run(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "still there\n", "")

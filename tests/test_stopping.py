import os
import signal
import threading
import time

import pytest

from hfbatch.errors import Incomplete, Interrupted
from hfbatch.stopping import Stopping, interruptible


def signalled(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs the handler between two instructions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_does_not_wait(number):
    stopping = Stopping(grace_s=60)
    with interruptible(stopping):
        signalled(number)
        assert stopping.reason.exit_code == 128 + number
        assert not stopping.overdue
        with pytest.raises(Interrupted) as second:
            signalled(number)
    assert second.value.exit_code == 128 + number


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruptible(Stopping(0)):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_first_reason_stands_and_its_grace_runs_from_then():
    stopping = Stopping(grace_s=0)
    stopping.request(Incomplete("max_runtime"))
    stopping.request(Interrupted(15))
    assert stopping.reason.exit_code == 4
    time.sleep(0.01)
    assert stopping.overdue


def test_another_thread_ends_what_the_main_thread_waits_for():
    stopping = Stopping(grace_s=60)
    with interruptible(stopping):
        stopping.request(Interrupted(15))
        threading.Timer(0.1, stopping.end).start()
        with stopping.waiting():
            time.sleep(30)
            pytest.fail("nobody woke the main thread")
        assert stopping.reason.exit_code == 143


def test_an_end_that_comes_too_late_disturbs_nothing():
    stopping = Stopping(grace_s=60)
    with pytest.raises(Interrupted) as second, interruptible(stopping):  # noqa: PT012
        stopping.request(Interrupted(15))
        stopping.end()
        time.sleep(0.01)
        signalled(signal.SIGINT)  # what was late is forgotten: this is a second request, which does not wait
    assert second.value.exit_code == 130


def test_outside_the_main_thread_no_handler_is_set():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with interruptible(Stopping(0)):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]

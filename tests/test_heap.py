"""What a process frees it gets back without the system's help; asked in a process of its own, as it is for good."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import torch
from hfbatch import heap

kept = heap.keep() if sys.argv[1] == "keep" else None

def work():
    for _ in range(3):
        torch.ones(12_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_is_used_again_costs_no_page_faults():
    kept, few = faults("keep")
    assert kept == "True"
    assert few < 1000
    assert faults("leave")[1] > 10 * 1000, "without it every page is new"

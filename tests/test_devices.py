"""What a process says of its memory."""

import mmap

import torch

from hfbatch.devices import peaks, shared_bytes

SIZE = 64 << 20


def test_memory_that_all_processes_share_is_not_counted_as_this_ones():
    """Ray's object store is such: what a process has read or written there stays mapped."""
    before, shared = peaks(torch.device("cpu"))["peak_rss"], shared_bytes()
    with mmap.mmap(-1, SIZE) as store:
        for _ in range(SIZE >> 20):
            store.write(b"x" * (1 << 20))
        assert shared_bytes() - shared >= SIZE
        assert peaks(torch.device("cpu"))["peak_rss"] - before < SIZE / 2


def test_memory_of_its_own_is():
    before = peaks(torch.device("cpu"))["peak_rss"]
    own = bytearray(b"x") * int(before + SIZE)  # more than whatever has been given back since
    assert peaks(torch.device("cpu"))["peak_rss"] - before >= SIZE / 2
    assert len(own) > SIZE

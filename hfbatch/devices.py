"""What tells a CPU from a GPU: where a model goes, how running out of memory looks, how time is measured."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hfbatch.errors import SystemicError

_SAID = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # the CPU allocator, CUDA, its libraries


def device_for(gpu: bool | None) -> torch.device:
    """Where the model goes. A GPU that was reserved and cannot be used is an error, not a reason for the CPU."""
    if gpu and not torch.cuda.is_available():
        raise SystemicError(
            f"Ray reserved a GPU for the model, but torch {torch.__version__} cannot use one; install a CUDA build of "
            "torch, or write gpus_per_actor: 0"
        )
    return torch.device("cuda" if torch.cuda.is_available() and gpu is not False else "cpu")


def name_of(device: torch.device) -> str:
    """What speed depends on: the GPU's name, or the CPU's threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was memory that a step had too little of."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _SAID)


def stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Start now; call what comes back where the work is queued, and what that gives, once it is done, for seconds.

    A GPU works behind the host's back: its own events tell when.
    """
    if device.type != "cuda":
        started = time.perf_counter()

        def host() -> Callable[[], float]:
            seconds = time.perf_counter() - started
            return lambda: seconds

        return host
    first, last = (torch.Event(device, enable_timing=True) for _ in range(2))
    first.record()

    def queued() -> Callable[[], float]:
        last.record()

        def seconds() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1000

        return seconds

    return queued


def peaks(device: torch.device) -> dict[str, float]:
    """Bytes: the most memory this process, and its device, have held. Ray's object store is not counted."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"peak_rss": float(max(0, most - shared_bytes()))}
    if device.type == "cuda":
        found["peak_gpu"] = float(torch.cuda.max_memory_allocated(device))
    return found


def shared_bytes() -> int:
    """Of the memory that counts as this process's, how much it shares with others; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    kib = next((line.split()[1] for line in status.splitlines() if line.startswith("RssShmem:")), "0")
    return int(kib) * 1024


@contextmanager
def threads_kept() -> Iterator[None]:
    """Torch's number of threads is as before, after."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)

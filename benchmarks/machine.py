"""What a figure was measured on: processor, cores, memory, versions; a process's peak memory; a GPU's busy share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

PACKAGES = ("hfbatch", "torch", "transformers", "sentence-transformers", "ray", "daft", "pyarrow")
TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile")  # what matmuls are made of
BFLOAT16 = {"avx512_bf16", "amx_bf16"}


def describe(threads: int) -> dict[str, Any]:
    """Names and numbers for the head of a table."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "instructions": [flag for flag in TELLING if flag in cpu_flags()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _nvidia("name"),
        "python": platform.python_version(),
        **found,
    }


def cpu_flags() -> set[str]:
    """The processor's instruction sets, as Linux names them."""
    return set(_cpuinfo("flags").split())


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; emulated, it is slower than float32."""
    return bool(cpu_flags() & BFLOAT16)


def peak_bytes() -> int:
    """The most memory this process held. Not getrusage's: that begins with what the parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class BusyShare:
    """Samples a GPU's utilisation in a thread; `share` is its mean from first to last sample that is not 0."""

    def __init__(self, interval_s: float = 0.5) -> None:
        self.interval_s, self.samples, self._over = interval_s, list[float](), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> BusyShare:
        if shutil.which("nvidia-smi"):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where there is no GPU, or it was never busy."""
        busy = [number for number, sample in enumerate(self.samples) if sample > 0]
        if not busy:
            return None
        inside = self.samples[busy[0] : busy[-1] + 1]
        return sum(inside) / len(inside) / 100

    def _sample(self) -> None:
        while not self._over.wait(self.interval_s):
            with contextlib.suppress(ValueError):
                self.samples.append(float(_nvidia("utilization.gpu").split()[0]))


def _nvidia(what: str) -> str:
    """The first GPU's; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0].strip() if lines else ""


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")

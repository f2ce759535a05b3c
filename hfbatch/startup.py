"""Ray's start: the cluster that the machine file names, or a Ray of this machine alone, begun while the plan is made.

A Ray of our own is five processes that mostly wait for each other, and planning imports transformers meanwhile:
`early_start` gives what begins it, `ray_for` waits for it and ends it. It has none of what only people or clusters
need (dashboard, autoscaler, forwarded logs), which costs as much again as what is left.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hfbatch.errors import SystemicError
from hfbatch.spec import Machine

# Activations are tens of megabytes, which glibc gives back to the system after every use, most of all in threads other
# than a process's first, as Ray's are. Fresh pages come zeroed, one fault each: 33,000 in a forward of 0.4 seconds, an
# eighth of a second of it. So: one arena, no mmap and no trim below a gigabyte, known from a process's start on.
_HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
}
_LOCAL_ENVIRONMENT = _HEAP | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # the C++ core writes to stderr past Python's logging
    "RAY_num_workers_soft_limit": "8",  # idle processes stay for the next shard: at Ray's limit some end after 1 s
    "RAY_worker_niceness": "0",  # at Ray's 15 the model would load behind everything else
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # for Ray's own processes; see _loopback_only
}
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_one_at_a_time = threading.Lock()  # Ray's settings and its connection are the process's
_begun: LocalRay | None = None  # by `early_start`; nobody has taken it yet


@contextmanager
def early_start(machine: Machine) -> Iterator[Callable[[], None]]:
    """Gives what begins to start the Ray that a run on `machine` will take. What no run took ends with the block."""
    global _begun

    def begin() -> None:
        global _begun
        if machine.address is None and _begun is None and not _is_connected():
            _begun = LocalRay()

    try:
        yield begin
    finally:
        left, _begun = _begun, None
        if left is not None:
            left.end()


@contextmanager
def ray_for(machine: Machine) -> Iterator[bool]:
    """Ray is up inside; one that hfbatch started goes down after, and True is given. A Ray of this process is used.

    SystemicError where it cannot be started or reached.
    """
    global _begun
    ours, _begun = _begun, None
    if ours is None and _is_connected():
        yield False
        return
    if machine.address is not None:
        with _cluster(machine.address):
            yield False
        return
    ours = ours or LocalRay()
    try:
        ours.wait()
        yield True
    finally:
        ours.end()


class LocalRay:
    """A Ray of this machine alone. One thread holds its processes from first to last: the kernel ends them with it."""

    def __init__(self) -> None:
        """Returns at once; the processes are started in the thread."""
        self._ready, self._over = threading.Event(), threading.Event()
        self._turn, self._connecting = threading.Lock(), False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._hold, name="hfbatch-ray", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return once it can be used. SystemicError where it cannot."""
        self._ready.wait()
        if self._error is not None:
            raise SystemicError(f"cannot start a local Ray: {self._error}") from self._error

    def end(self) -> None:
        """Take it down. One that is still starting is given up without a wait: it ends once it can, or with us."""
        with self._turn:
            self._over.set()
        if self._connecting:
            self._thread.join()

    def _hold(self) -> None:
        node = None
        with _one_at_a_time, _loopback_only():
            try:
                node = _start_node()
                with self._turn:
                    self._connecting = not self._over.is_set()
                if self._connecting:
                    _connect(node.gcs_address)
            except Exception as error:
                self._error = error
            self._ready.set()
            self._over.wait()
            if self._connecting:
                sys.modules["ray"].shutdown()
            if node is not None:
                node.kill_all_processes(check_alive=False, allow_graceful=True)


def _start_node() -> Any:
    """Ray's processes without a dashboard, an autoscaler and a log monitor, which `ray.init` always starts."""
    os.environ.update({name: value for name, value in _LOCAL_ENVIRONMENT.items() if name not in os.environ})
    with uncollected():
        from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
        from ray._private.node import Node
        from ray._private.parameter import RayParams

    class Head(Node):
        def start_api_server(self, **_: Any) -> None:  # Ray 2.60 starts one even without a dashboard, and waits for it
            self._webui_url = ""

    ensure_token_if_auth_enabled(None, create_token_if_missing=True)
    cores = max(2, os.cpu_count() or 1)  # with one, the actor would take it and nothing could read
    without: dict[str, Any] = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    parameters = RayParams(node_ip_address="127.0.0.1", num_cpus=cores, **without)
    return Head(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)


def _connect(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of blocks nobody waits for: the tally has them
    with _stderr_shut():
        ray.init(address=address, **_QUIET)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        hint = "is it up, and if it asks for a token, is RAY_AUTH_MODE=token set here too?"
        raise SystemicError(f"machine.address {address!r}: cannot reach Ray: {error}; {hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", bool)())


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports and loading: what they make stays, and looking through it for garbage takes a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Every port of Ray on 127.0.0.1. Asked for that address Ray 2.60 takes the outward one; this is its own switch."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _stderr_shut() -> Iterator[None]:
    """Ray's C++ core announces its log level on file descriptor 2; failures to start are exceptions anyway."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

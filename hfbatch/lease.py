"""Who is at work on an output: `_hfbatch/lease.json`, renewed while a run lives, with how far it is.

It keeps a second run from doing the same work, and no more than that: exactly-once rests on put-if-absent alone
(ledger.py), so a lease that is stolen, lost or stale by a wrong clock costs compute and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hfbatch.errors import Damage, Locked, StorageError
from hfbatch.records import dump, load
from hfbatch.store import Store

NAME = "_hfbatch/lease.json"
BEAT_S = 5.0
STALE_S = 60.0  # without a beat a holder on another machine is taken for dead


class Lease:
    """Held inside `with`. Locked when another run holds it; `lost` once another run has taken it."""

    def __init__(self, store: Store, run_id: str, job: str) -> None:
        self.store, self.run_id, self.started = store, run_id, time.time()
        self.about = {"run_id": run_id, "job": job, "host": _host(), "pid": os.getpid(), "started": self.started}
        self.progress: Mapping[str, Any] = {}
        self.lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="hfbatch-lease", daemon=True)

    def __enter__(self) -> Lease:
        if not self.store.put_if_absent(NAME, self._content()):
            holder = read_holder(self.store)
            if holder is not None and is_alive(holder):
                raise Locked(f"{self.store.url()}: {describe(holder)}; wait for it (--wait), or stop it")
            self.store.put(NAME, self._content())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=2 * BEAT_S)
        with contextlib.suppress(StorageError):
            if not self.lost and self._is_mine():
                self.store.delete([NAME])

    def _renew(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                if not self._is_mine():
                    self.lost = True
                    return
                self.store.put(NAME, self._content())
            except StorageError:
                logging.getLogger(__name__).warning("the lease could not be renewed; the run goes on", exc_info=True)

    def _is_mine(self) -> bool:
        holder = read_holder(self.store)
        return holder is None or holder.get("run_id") == self.run_id

    def _content(self) -> bytes:
        return dump({**self.about, "renewed": time.time(), "progress": dict(self.progress)})


def read_holder(store: Store) -> dict[str, Any] | None:
    """What the lease says, whether its holder lives or not; None where there is none."""
    text = store.get(NAME)
    try:
        return None if text is None else load(text, NAME)
    except Damage:
        return {}  # nobody's: it may be taken


def is_alive(holder: Mapping[str, Any]) -> bool:
    """Whether the holder is at work: on this machine by its process, elsewhere by its last beat."""
    if holder.get("host") == _host():
        pid = int(holder.get("pid", 0))
        return pid != os.getpid() and _runs(pid)
    return time.time() - float(holder.get("renewed", 0)) < STALE_S


def wait_until_free(store: Store, tell: Callable[[str], None], every_s: float = 2.0) -> None:
    """Return once nobody holds the lease. `tell` is called once, with who does."""
    holder, told = read_holder(store), False
    while holder is not None and is_alive(holder):
        if not told:
            tell(f"{store.url()}: {describe(holder)}; waiting")
            told = True
        time.sleep(every_s)
        holder = read_holder(store)


def describe(holder: Mapping[str, Any]) -> str:
    """One line for people: which run, where, how recently heard of."""
    ago = max(0.0, time.time() - float(holder.get("renewed", 0)))
    machine = str(holder.get("host", "?")).partition("/")[0]
    return (
        f"run {holder.get('run_id', '?')} is at work on it (process {holder.get('pid', '?')} on {machine}, "
        f"last heard of {ago:.0f} s ago)"
    )


def _host() -> str:
    """The machine, since its last start: so that a process number means something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return pid > 0

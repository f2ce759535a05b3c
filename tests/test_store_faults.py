"""The stores on bad days: sixteen writers at once, and a third of the calls failing."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfbatch import store_errors, store_remote
from hfbatch.errors import StorageError
from hfbatch.store import Store, open_store
from hfbatch.store_errors import with_retries
from tests.failing import failing
from tests.fake_s3 import SILENT, TORN, UNHEARD, FakeS3, fake_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "RETRY_SECONDS", (0.001,) * 9)


# retries


def test_waits_grow_exponentially_with_full_jitter_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(store_errors, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    random.seed(0)
    for _ in range(100):
        with pytest.raises(OSError, match="again"):
            with_retries(failing([], OSError("again")), lambda _: True)
    for attempt, longest in enumerate((0.2, 0.4, 0.8, 1.6, 3.2)):
        waited = waits[attempt::5]
        assert len(waited) == 100
        assert 0 <= min(waited) < 0.1 * longest
        assert 0.9 * longest < max(waited) <= longest


def test_no_attempt_begins_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    now = iter((0.0, 599.0, 601.0))
    monkeypatch.setattr(store_errors, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(now)))
    with pytest.raises(OSError, match="slow"):
        with_retries(failing(calls, OSError("slow")), lambda _: True)
    assert len(calls) == 2


# sixteen writers

WRITERS = """
import json, os, pickle, sys
from pathlib import Path
import hfbatch.store  # once, before the fork, and so is what follows

url, folder, pickled = sys.argv[1], Path(sys.argv[2]), bytes.fromhex(sys.argv[3])
if "://" in url:
    import s3fs, hfbatch.store_remote
ready, gate, answers = os.pipe(), os.pipe(), os.pipe()
for n in range(16):
    if os.fork() == 0:
        os.close(gate[1])
        store, body = pickle.loads(pickled), bytes([n]) * 300_000
        data = folder / str(n) if n % 2 else body
        if n % 2:
            data.write_bytes(body)
        store.get("warm")
        os.write(ready[1], b".")
        os.read(gate[0], 1)  # until all are ready
        won = [store.put_if_absent("data/one", data), *(store.put_if_absent(f"p/{m}", bytes([n])) for m in range(5))]
        os.write(answers[1], bytes([n, *won]))
        os._exit(0)
os.close(ready[1]), os.close(answers[1])
waiting = 16
while waiting and (came := os.read(ready[0], waiting)):
    waiting -= len(came)
os.close(gate[1])
json.dump(list(b"".join(iter(lambda: os.read(answers[0], 64), b""))), sys.stdout)
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_one_of_sixteen_processes_wins_each_name_and_its_object_is_whole(s3: FakeS3, tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / "out") if kind == "local" else f"{s3.url}{tmp_path}"
    command = [sys.executable, "-c", WRITERS, url, tmp_path, pickle.dumps(open_store(url)).hex()]
    answers = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    won = {answers[at]: answers[at + 1 : at + 7] for at in range(0, len(answers), 7)}  # writer -> for each name
    assert sorted(won) == list(range(16))
    store, small = open_store(url), [f"p/{m}" for m in range(5)]
    for number, name in enumerate(["data/one", *small]):
        (winner,) = (writer for writer, wins in won.items() if wins[number])
        assert store.get(name) == bytes([winner]) * (1 if name in small else 300_000)
    assert store.list("") == ["data/one", *small]


# a third of the calls failing

NAMES = ("a", "data/b", "data/c", "data/deep/d", "e", "f", "deep/er/g", "deep/er/h")


class Model:
    """What each name may hold: one value, or several where a call ended with an error and nobody knows."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store, self.rng, self.step = store, rng, 0
        self.may: dict[str, set[bytes | None]] = {name: {None} for name in NAMES}
        self.failed = 0

    def run(self, steps: int) -> None:
        writes = (self.put_if_absent, self.put_if_absent, self.put_if_absent, self.put, self.copy, self.delete)
        reads = (self.get, self.size, self.list, self.read)
        for self.step in range(steps):
            self.rng.choice((*writes, *reads))(self.rng.choice(NAMES))

    def data(self) -> bytes:
        return b"%d " % self.step * self.rng.choice((1, 50, 5000))

    def tell(self, call: Callable[..., Any], *args: Any) -> Any:
        """The call's answer, or the StorageError with which it ended after all attempts."""
        try:
            return call(*args)
        except StorageError as error:
            self.failed += 1
            return error

    def know(self, name: str, fits: Callable[[bytes | None], bool]) -> None:
        """An answer was given: only what `fits` it may stand there, and something must."""
        self.may[name] = {value for value in self.may[name] if fits(value)}
        assert self.may[name], f"step {self.step}: a wrong answer about {name}"

    def put_if_absent(self, name: str) -> None:
        data = self.data()
        created = self.tell(self.store.put_if_absent, name, data)
        if created is True:
            self.know(name, lambda value: value is None)
            self.may[name] = {data}
        elif created is False:
            self.know(name, lambda value: value is not None)
        elif None in self.may[name]:
            self.may[name].add(data)

    def put(self, name: str) -> None:
        data = self.data()
        self.may[name] = {data} if self.tell(self.store.put, name, data) is None else self.may[name] | {data}

    def delete(self, name: str) -> None:
        gone = self.tell(self.store.delete, [name]) is None
        self.may[name] = {None} if gone else self.may[name] | {None}

    def get(self, name: str) -> None:
        found = self.tell(self.store.get, name)
        if not isinstance(found, StorageError):
            self.know(name, lambda value: value == found)

    def read(self, name: str) -> None:
        def whole() -> bytes:
            with self.store.open_input(name) as file:
                return file.read()

        found = self.tell(whole)
        if isinstance(found, bytes):
            self.know(name, lambda value: value == found)
        elif isinstance(found.__cause__, FileNotFoundError):
            self.know(name, lambda value: value is None)

    def size(self, name: str) -> None:
        found = self.tell(self.store.size, name)
        if not isinstance(found, StorageError):
            self.know(name, lambda value: (None if value is None else len(value)) == found)

    def list(self, _: str) -> None:
        prefix = self.rng.choice(("", "data"))
        found = self.tell(self.store.list, prefix)
        if not isinstance(found, StorageError):
            for name in (name for name in NAMES if name.startswith(prefix)):
                self.know(name, lambda value, there=name in found: (value is not None) == there)

    def copy(self, source: str) -> None:
        self.get(source)  # so that a copy's content is known
        target = self.rng.choice([name for name in NAMES if name != source])
        created = self.tell(self.store.copy_if_absent, source, target)
        if created is True:
            self.know(source, lambda value: value is not None)
            self.know(target, lambda value: value is None)
            self.may[target] = self.may[source]
        elif created is False:
            self.know(target, lambda value: value is not None)
        elif isinstance(created.__cause__, FileNotFoundError):
            self.know(source, lambda value: value is None)
            self.know(target, lambda value: value is None)
        elif None in self.may[target]:
            self.may[target] = self.may[target] | self.may[source]


def failing_now_and_then(call: Callable[..., Any], root: Path, rng: random.Random, faults: list[str]) -> Any:
    """`call`, a third of the times failing in passing below `root`: before it does anything, or after it did."""

    def chancy(first: Any, *args: Any, **options: Any) -> Any:
        below = call.__name__ == "fsync" if isinstance(first, int) else Path(first).is_relative_to(root)
        if not below or rng.random() >= 0.3:
            return call(first, *args, **options)
        faults.append(call.__name__)
        if rng.random() < 0.5:
            answer = call(first, *args, **options)
            if isinstance(answer, int):
                os.close(answer)
            elif answer is not None:
                answer.close()
        raise OSError(rng.choice((errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT)), "on purpose")

    return chancy


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_that_fails_a_third_of_the_time_never_gives_a_wrong_answer(
    tmp_path: Path, no_waiting: None, seed: int
) -> None:
    rng, faults = random.Random(seed), list[str]()
    model = Model(open_store(str(tmp_path / "out")), rng)
    with pytest.MonkeyPatch.context() as patch:
        for module, names in ((os, "link replace unlink mkdir fsync open scandir"), (io, "open")):
            for name in names.split():
                patch.setattr(module, name, failing_now_and_then(getattr(module, name), tmp_path, rng, faults))
        model.run(150)
    assert {"link", "replace", "unlink", "mkdir", "fsync", "open", "scandir"} <= set(faults)
    assert model.failed < 75
    for name in NAMES:
        model.get(name)
    model.list("")


def chaos(rng: random.Random, faults: list[int]) -> Callable[[str], int | None]:
    """A third of the requests fail: errors before and after the act, bursts of 503, now and then no answer at all."""
    burst = 0

    def decide(_: str) -> int | None:
        nonlocal burst
        burst -= 1
        if burst < 0 and rng.random() >= 0.25:
            return None
        if burst < 0 and rng.random() < 0.1:
            burst = 3
        silent = len(faults) % 40 == 7
        faults.append(SILENT if silent else 503 if burst >= 0 else rng.choice((500, 503, UNHEARD, UNHEARD, TORN)))
        return faults[-1]

    return decide


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_an_s3_that_fails_a_third_of_the_time_never_gives_a_wrong_answer(
    s3: FakeS3, tmp_path: Path, no_waiting: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng, faults = random.Random(seed), list[int]()
    model = Model(open_store(f"{s3.url}{tmp_path}"), rng)
    model.store.get("warm")
    monkeypatch.setattr(store_remote, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(store_remote, "LONG_SECONDS", 1.0)
    monkeypatch.setattr(s3, "chaos", chaos(rng, faults))
    model.run(40)
    assert {500, 503, UNHEARD, TORN, SILENT} <= set(faults)
    assert model.failed < 20
    monkeypatch.undo()
    for name in NAMES:
        model.get(name)
    model.list("")

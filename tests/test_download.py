"""One node, one download: of processes that want the same commit at once, one asks the Hub and the others wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from hfbatch.hub import PinnedModel, fetch
from tests.fake_hub import FakeHub, fake_hub

TOGETHER = 3
TINY = {"config.json": b"{}", "vocab.txt": b"[UNK]\n", "model.safetensors": b"weights" * 100_000}
FETCH = """
import sys, time
from pathlib import Path
from hfbatch.hub import PinnedModel, fetch

here, name, together, commit = Path(sys.argv[1]), *sys.argv[2:]
(here / name).touch()
while len(list(here.iterdir())) < int(together):
    time.sleep(0.001)
print(fetch(PinnedModel("owner/tiny", commit, None, None)))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "cache") as server:
        yield server


def fetch_together(here: Path, commit: str) -> list[str]:
    """The folders that so many processes were given, all of which began at once."""
    here.mkdir()
    command = [sys.executable, "-c", FETCH, str(here)]
    started = [
        subprocess.Popen([*command, str(name), str(TOGETHER), commit], stdout=subprocess.PIPE, text=True)
        for name in range(TOGETHER)
    ]
    told = [process.communicate(timeout=60)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0] * TOGETHER
    return told


def test_processes_that_start_together_make_the_requests_of_one(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.commit("owner/tiny", TINY)
    (folder,) = set(fetch_together(tmp_path / "meeting", commit))
    assert (Path(folder) / "model.safetensors").read_bytes() == TINY["model.safetensors"]
    assert sum(request.startswith("GET") and "model.safetensors" in request for request in hub.requests) == 1
    assert len(hub.requests) == len(set(hub.requests))


def test_what_one_process_could_not_fetch_the_next_one_does(hub: FakeHub, tmp_path: Path) -> None:
    """The lock is not kept by a failure: here the process that fetches is killed in the middle of it."""
    commit = hub.commit("owner/tiny", TINY)
    code = (
        "import os\nfrom hfbatch.download import one_at_a_time\n"
        f"with one_at_a_time('owner/tiny', '{commit}'):\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, env=dict(os.environ)).returncode == 9
    assert (Path(fetch(PinnedModel("owner/tiny", commit, None, None))) / "model.safetensors").is_file()


def test_a_cache_that_takes_no_lock_is_read_without_one(hub: FakeHub) -> None:
    model = PinnedModel("owner/tiny", hub.commit("owner/tiny", TINY), None, None)
    folder = fetch(model)
    locks = Path(constants.HF_HUB_CACHE) / ".locks"
    locks.rename(locks.with_name("moved"))
    locks.touch()  # a file, so that nothing can be made below it, not even by root
    hub.requests.clear()
    assert fetch(model) == folder
    assert hub.requests == []

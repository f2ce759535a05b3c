"""The models that stay in this process between two calls: the last few, until `shutdown`.

A second call on the same model finds it loaded, its batch size found and its commit known. One call works at a time;
one that fails, or is interrupted elsewhere than between two batches, takes its model along, and the next loads it anew.
"""

from __future__ import annotations

import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbatch import hub
from hfbatch.errors import SpecError
from hfbatch.spec import JobSpec, Machine

if TYPE_CHECKING:
    from hfbatch.job import Job
    from hfbatch.steps import Steps

KEEP = 2  # models: one that is used in turns with another stays, and memory is not filled by a day's trials


class Resident:
    """Models by what makes their values, and commits by what names them."""

    def __init__(self, keep: int = KEEP) -> None:
        self.keep = keep
        self._turn = threading.RLock()
        self._steps: OrderedDict[Hashable, Steps] = OrderedDict()  # the last one was used last
        self._pinned: dict[Hashable, hub.PinnedModel] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def pin(self, spec: JobSpec, number: int = 0) -> hub.PinnedModel:
        """The commit of step `number`'s model, asked for once: a branch stays, until `clear`, at what it meant first.

        A local folder is hashed again when a file in it has another size or time. SpecError.
        """
        model = spec.each[number].model
        folder = Path(model.id).expanduser()
        key = (model, str(folder.absolute()), _times(folder))
        if key not in self._pinned:
            try:
                self._pinned[key] = hub.resolve_model(model)
            except hub.ModelProblem as problem:
                at = spec.loc(number, "model", problem.key)
                raise SpecError([spec.origin.problem(at, problem.message, problem.fix)]) from problem
        return self._pinned[key]

    @contextmanager
    def steps(self, job: Job, machine: Machine) -> Iterator[Steps]:
        """The job's steps, loaded or still there. Torch's number of threads is as before, after."""
        from hfbatch.devices import threads_kept

        with self._turn, threads_kept():
            key = (job.generation, tuple((step.given, step.media_prefixes) for step in job.steps), machine)
            steps = self._steps.pop(key, None) or self._loaded(job, machine)
            try:
                yield steps
            except BaseException as error:
                if not isinstance(error, BetweenBatches):
                    steps.release()
                    raise
                self._stay(key, steps)
                raise KeyboardInterrupt from None
            self._stay(key, steps)

    def clear(self) -> None:
        """Give all models up, and their memory; forget what branches meant."""
        with self._turn:
            self._pinned.clear()
            self._fit(0)

    def _stay(self, key: Hashable, steps: Steps) -> None:
        self._steps[key] = steps
        self._fit(self.keep)

    def _fit(self, most: int) -> None:
        while len(self._steps) > most:
            self._steps.popitem(last=False)[1].release()

    def _loaded(self, job: Job, machine: Machine) -> Steps:
        """The steps, loaded; where there is no room for them the others leave."""
        from hfbatch.devices import is_out_of_memory
        from hfbatch.steps import Steps

        try:
            return Steps(job, machine)
        except Exception as error:
            if not self._steps or not is_out_of_memory(error):
                raise
        self._fit(0)
        return Steps(job, machine)


class BetweenBatches(KeyboardInterrupt):
    """Ctrl-C at a moment when nothing is half done."""


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Inside, the first Ctrl-C waits for the batch in the model, a second does not. Gives what to call between batches.

    Only the main thread hears of it; elsewhere nothing changes.
    """
    asked = False
    before = signal.getsignal(signal.SIGINT)

    def told(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise BetweenBatches

    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield check
        return
    signal.signal(signal.SIGINT, told)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _times(folder: Path) -> Hashable:
    """Name, size and times of the files in a local folder; nothing for what is none."""
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = ((str(path), path.stat()) for path in files)
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)


MODELS = Resident()

"""A process that holds one route, and answers one request at a time with what its turn gave.

The processes of all routes live beside each other so that turns can alternate; only one works at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection

from benchmarks.machine import peak_bytes
from benchmarks.setting import Ran, Route, Setting


class RouteFailed(RuntimeError):
    """A route that could not be made or run; the message is its process's last words."""


class Worker:
    """The parent's end. `run` gives a turn; a context manager that ends the process."""

    def __init__(self, route: Route, setting: Setting) -> None:
        """Starts the process and waits until the model is loaded. RouteFailed."""
        self.route = route
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, route, setting), name=route.name)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except RouteFailed:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, rows: list[int]) -> Ran:
        """Give these rows to the route. RouteFailed."""
        self._connection.send(rows)
        return self._answer()

    def close(self) -> None:
        """End the process; by force if it does not listen."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _answer(self) -> Ran:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RouteFailed(f"{self.route.name}: its process ended with {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise RouteFailed(f"{self.route.name}: {answer}")
        return answer


def _serve(connection: Connection, route: Route, setting: Setting) -> None:
    """The child's end: make the route, then answer until None comes."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    if route.maker != "engines.hfbatch":  # which sees to its threads itself, as it would for anybody
        os.environ["OMP_NUM_THREADS"] = str(setting.threads)
    if route.dtype is not None:
        setting = replace(setting, dtype=route.dtype)
    try:
        module, _, function = route.maker.rpartition(".")
        runner = getattr(importlib.import_module(f"benchmarks.{module}"), function)(setting, **route.options)
        connection.send(None)
        while (rows := connection.recv()) is not None:
            ran = runner(rows)
            connection.send(ran if ran.peak_bytes else replace(ran, peak_bytes=peak_bytes()))
    except EOFError:
        return  # the parent is gone
    except BaseException:
        connection.send("".join(traceback.format_exc(limit=-3)).strip())

"""The folder is the registry: text_classification.py holds the task text-classification.

Finding a task imports no torch and no transformers, so that `hfbatch check` and `hfbatch tasks` answer at once.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache

from hfbatch.tasks.base import Task

__all__ = ["Task", "UnknownTask", "about", "all", "find"]


class UnknownTask(KeyError):
    """No task has this name or alias; `nearest` is the likeliest meant, if any."""

    def __init__(self, name: str, nearest: str | None) -> None:
        self.name, self.nearest = name, nearest
        super().__init__(name)


@cache
def all() -> tuple[type[Task], ...]:
    """Every task of the folder, by name. A module that defines no Task is a family's shared code."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    }
    return tuple(sorted((task for task in found if hasattr(task, "name")), key=lambda task: task.name))


def about(task: type[Task]) -> str:
    """The docstring that begins with the task's name: of its class where a file holds several tasks, else of the file.

    Its first line says what the task does; what it reads and writes follows.
    """
    own = inspect.getdoc(task) or ""
    return own if own.startswith(f"{task.name}: ") else (sys.modules[task.__module__].__doc__ or "").strip()


def find(name: str) -> type[Task]:
    """The task called `name`, or whose alias that is. Raises UnknownTask."""
    by_name = {known: task for task in all() for known in (task.name, *task.aliases)}
    if name in by_name:
        return by_name[name]
    for task in all():
        if task.pattern is not None and re.fullmatch(task.pattern, name):
            return task
    nearest = difflib.get_close_matches(name, by_name, n=1)
    raise UnknownTask(name, nearest[0] if nearest else None)

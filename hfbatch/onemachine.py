"""Ray Data on a Ray of this machine alone, without three actors that it starts for clusters.

One feeds a dashboard, one asks an autoscaler for nodes, one knows which node an actor is on. Each is a process, which
takes two seconds of a core to start and 1.5 % of one from then on. They are Ray Data's own affair: each is left out
where this version of it is as known here (2.60), and started where it is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray


@contextmanager
def without_cluster_actors() -> Iterator[None]:
    """Inside, datasets of this process run without them. Ray is up."""
    with ExitStack() as stack:
        for module, instead in _instead().items():
            try:
                found = importlib.import_module(f"ray.data._internal.{module}")
            except ModuleNotFoundError:
                continue
            if all(hasattr(found, name) for name in instead):
                for name, value in instead.items():
                    stack.callback(setattr, found, name, getattr(found, name))
                    setattr(found, name, value)
        yield


def _instead() -> Mapping[str, Mapping[str, Any]]:
    """Module of Ray Data -> its name -> what stands for it."""
    return {
        "stats": {"get_or_create_stats_actor": Nobody},
        "execution.streaming_executor": {"create_cluster_autoscaler": lambda *_, **__: OneMachine()},
        "execution.operators.actor_pool_map_operator": {
            "get_or_create_actor_location_tracker": Nobody,
            "get_actor_locations": lambda _: {},  # Ray Data then takes what it last knew
        },
    }


class Nobody:
    """In place of an actor that is told things: `nobody.hear.remote(...)`. Its answer, None, no `ray.get` takes."""

    def __getattr__(self, name: str) -> Nobody:
        if name.startswith("__"):  # what pickle looks for
            raise AttributeError(name)
        return self

    def remote(self, *_: Any, **__: Any) -> None:
        """Not sent."""


class OneMachine:
    """A ClusterAutoscaler of Ray Data that has no nodes to ask for."""

    def __init__(self) -> None:
        from ray.data._internal.execution.interfaces import ExecutionResources

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._total = ExecutionResources.from_resource_dict(resources)

    def get_total_resources(self) -> Any:
        """ExecutionResources."""
        return self._total

    def try_trigger_scaling(self) -> None:
        """Called all the time."""

    def on_executor_shutdown(self) -> None:
        """Called at the end."""

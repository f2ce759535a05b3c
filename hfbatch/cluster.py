"""The pool of actors that a run gets from Ray, with Ray Data set up so that nothing surprises.

Also the two things that every stage of the pipeline needs from Ray: a Tally that all workers report to, and a Guard
around each step that tells the tally what failed and stops when the driver says so.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hfbatch.access import redact
from hfbatch.errors import HfbatchError, InputChanged, StorageError, SystemicError
from hfbatch.onemachine import without_cluster_actors
from hfbatch.spec import ActorRange, Machine
from hfbatch.startup import ray_for
from hfbatch.tally import DeviceLost, Failure, Meter, Stopped, Tally

REPORT_S = 0.5  # how often a worker tells the tally


@dataclass(frozen=True)
class Pool:
    """The actors a run gets: what the machine file says, with `auto` settled by what Ray has."""

    size: ActorRange
    start: int  # actors that it begins with
    gpus: float
    cpus: float
    threads: int
    cpu_steps_in_actor: bool


@contextmanager
def connected(machine: Machine) -> Iterator[Pool]:
    """Ray is up inside; one that this started goes down after. A Ray already running in this process is used."""
    with ray_for(machine) as ours, _data_context(), without_cluster_actors() if ours else nullcontext():
        yield pool_here(machine)


def pool_here(machine: Machine) -> Pool:
    """`pool_for` the nodes that Ray has now."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return pool_for(machine, [node["Resources"] for node in nodes if node["Alive"]])


def pool_for(machine: Machine, nodes: Sequence[Mapping[str, float]]) -> Pool:
    """The pool on nodes that have these resources, by Ray's names. SystemicError for GPUs that are not here.

    On GPUs it begins with as many actors as they have room for: one at a time, each would wait for the last to load.
    """
    gpus_there, cpus_there = int(_sum(nodes, "GPU")), _sum(nodes, "CPU")
    gpus = float(gpus_there > 0) if machine.gpus_per_actor == "auto" else machine.gpus_per_actor
    if machine.address is None and gpus > gpus_there:
        raise SystemicError(
            f"machine.gpus_per_actor is {gpus:g}, but Ray sees {gpus_there} GPUs here, and would wait for ever; "
            "write auto or 0, or set machine.address to a cluster that has them"
        )
    room = _room(nodes, gpus) if gpus else 1
    if machine.actors == "auto":
        size = ActorRange(min=max(1, room), max=max(1, room))
    elif isinstance(machine.actors, ActorRange):
        size = machine.actors
    else:
        size = ActorRange(min=machine.actors, max=machine.actors)
    start = max(size.min, min(size.max, room))
    in_actor = machine.cpu_steps == "actor" or (machine.cpu_steps == "auto" and not gpus)
    cpus = machine.cpus_per_actor
    if cpus_there >= 2 and start * cpus > cpus_there - 1:
        cpus = (cpus_there - 1) / start  # one is left to read and write: without it the actors would wait for ever
    return Pool(size, start, gpus, cpus, _threads(machine, size.max), in_actor)


def _sum(nodes: Sequence[Mapping[str, float]], resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def _room(nodes: Sequence[Mapping[str, float]], gpus: float) -> int:
    """How many actors find `gpus` free: whole GPUs of one node, or a share of one GPU."""
    if gpus < 1:
        return int(_sum(nodes, "GPU")) * int(1 / gpus)
    return sum(int(node.get("GPU", 0.0) // gpus) for node in nodes)


def _threads(machine: Machine, actors: int) -> int:
    """Torch threads of an actor: this machine's cores over its actors; on a cluster the CPUs it reserves."""
    if machine.threads_per_actor != "auto":
        return machine.threads_per_actor
    return max(1, (os.cpu_count() or 1) // actors if machine.address is None else int(machine.cpus_per_actor))


@contextmanager
def _data_context() -> Iterator[None]:
    """Ray Data's settings for this run, put back after: a block is a shard and stays whole; no bars; no chatter."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    wanted = {
        "target_max_block_size": None,
        "max_errored_blocks": -1,  # what a lost block held is found by reconciling with the commit records
        "enable_progress_bars": False,
        "actor_task_retry_on_errors": False,
        # A pool grows once each of its actors has a shard: at Ray's 1.75, one that gets them singly never would.
        "autoscaling_config": replace(context.autoscaling_config, actor_pool_util_upscaling_threshold=1.0),
    }
    before, level = {name: getattr(context, name) for name in wanted}, logger.level
    for name, value in wanted.items():
        setattr(context, name, value)
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # Where there are fewer shards than actors, or a run is stopped early; neither is news to anybody.
            warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def start_tally() -> Any:
    """A Tally that costs no CPU of the pool, beside the driver: a node that goes away does not take it along."""
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Tally).remote()


class Guard:
    """A step of the pipeline with its failures told to the tally. Ray calls it with a block."""

    def __init__(self, step: str, make: Callable[[], Callable[[pa.Table], Any]], tally: Any) -> None:
        self.name, self.tally = step, tally
        self.call: Callable[[pa.Table], Any] | None = self._told(make)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """The step's table or tables."""
        call = self.call
        if call is None or ray.get(self.tally.stopped.remote(self.name)):
            raise Stopped
        yield from self._told(lambda: _as_list(call(block)), reraise=True)

    def _told(self, work: Callable[[], Any], reraise: bool = False) -> Any:
        """`work()`; a constructor's exception is told but not raised, as Ray would build the actor again for ever."""
        try:
            return work()
        except Stopped:
            raise
        except BaseException as error:
            failure = _failure(self.name, error, constructing=not reraise)
            ray.get(self.tally.fail.remote(pickle.dumps(failure)))
            if reraise and isinstance(error, SystemExit | DeviceLost):
                os._exit(70)  # Ray replaces the process; one that leaves by SystemExit it waits for, and for ever
            if reraise:
                raise
            return None


def _as_list(result: pa.Table | Iterator[pa.Table]) -> list[pa.Table]:
    return [result] if isinstance(result, pa.Table) else list(result)


def _failure(step: str, error: BaseException, constructing: bool) -> Failure:
    """Fatal: what no other attempt and no other shard can escape, such as a step that cannot even be built."""
    message, ours = f"{type(error).__name__}: {error}", error if isinstance(error, HfbatchError) else None
    if constructing and ours is None:
        ours = SystemicError(f"step {step} cannot start: {message}\n{redact(traceback.format_exc())}")
    fatal = constructing or (ours is not None and not isinstance(ours, StorageError | InputChanged))
    return Failure(step, message, redact(traceback.format_exc()), ours, fatal)


def throttled(tally: Any, worker: str) -> Callable[[Meter], None]:
    """A `report` for model.Predict: sends totals at most every REPORT_S, raises Stopped when told to.

    Rows and errors are not in them: those the tally counts by shard, as a shard may be run more than once.
    """
    last, answer = 0.0, None

    def report(meter: Meter) -> None:
        nonlocal last, answer
        if time.monotonic() - last < REPORT_S:
            return
        if answer is not None and ray.get(answer):
            raise Stopped
        told = {name: value for name, value in vars(meter).items() if name not in ("rows", "errors")}
        last, answer = time.monotonic(), tally.update.remote(worker, told)

    return report

"""Units on a Ray cluster, in actors."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from uxnet.errors import UsageError, UxnetError
from uxnet.events import Event, Progress, Report
from uxnet.jobs.unit import Admit, Bench, Done, Lost, Reply, Task, dealt

_KNOCK_SECONDS = 20.0


@dataclass(frozen=True)
class Cluster:
    """Ray workers, and where they are.

    address: "auto" (the cluster that this machine belongs to), "local" (one is started on this machine, and ended afterwards), or a
        head node's HOST:PORT. A process that is connected already stays with its cluster, whatever is said here.
    cpus, gpus: what a worker asks the cluster for; no more CPUs than the largest node has.
    """

    address: str = "auto"
    cpus: int = 1
    gpus: float = 0

    @classmethod
    def computing_on(cls, device: str, address: str, cpus: int) -> Cluster:
        """Workers that compute on a device, by torch's name; "cuda" reserves a GPU for each.

        Raises:
            UsageError: for a GPU with a number: the cluster chooses, and a worker sees the one that it was given as the first.
        """
        if device.startswith("cuda:"):
            raise UsageError(f"device={device}: on a Ray cluster, which GPU a worker has is the cluster's choice; write device=cuda")
        return cls(address, cpus, gpus=1 if device == "cuda" else 0)


@dataclass(frozen=True, eq=False)
class _Actor:
    """A Ray actor, and the numbers of the units that it has in hand."""

    handle: Any
    held: list[int]


class _RayBench:
    """What an actor is: a bench whose units' notes and warnings come with their replies."""

    def __init__(self, task: bytes) -> None:
        self.bench = Bench(task)

    def run(self, item: bytes) -> tuple[Reply, list[Event]]:
        events: list[Event] = []
        reply = self.bench.run(item, events.append)
        return reply, [event for event in events if not isinstance(event, Progress)]


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """The module `ray`, connected to the cluster while the block runs; a connection that is there already is used and left."""
    try:
        import ray
    except ImportError as error:
        raise UxnetError("this needs Ray, which is not installed; pip install 'uxnet[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address == "local":
        # Units and results are small: Ray would otherwise reserve a third of the memory for sharing objects.
        quiet |= {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        _knock(cluster.address)
        with _without_usage_statistics():
            ray.init(address=cluster.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UxnetError(
            f"there is no Ray cluster to be reached at {cluster.address!r} ({error}); begin one with `ray start --head`, "
            'give the address of its head node, or "local" for one on this machine'
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at HOST:PORT; Ray would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if match:
        socket.create_connection((match.group(1), int(match.group(2))), timeout=_KNOCK_SECONDS).close()


@contextlib.contextmanager
def _without_usage_statistics() -> Iterator[None]:
    # Ray's processes report to its makers unless this is in the environment that they are started in; there is no argument for it.
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def ray_shift(
    ray: Any,
    task: Task,
    items: Sequence[Any],
    report: Report,
    cluster: Cluster,
    admit: Admit,
    units: Sequence[int],
    workers: int,
    abreast: int,
) -> Done:
    """Does the units of these numbers in actors, see `unit.Shift`. Closing it ends them at once."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # Who asks for more than any node has would wait for ever.
    cpus = max(1, min(cluster.cpus, max(nodes, default=1)))
    workers = workers or max(1, sum(cores // cpus for cores in nodes))
    options = {"num_cpus": cpus, "num_gpus": cluster.gpus, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": abreast}
    hire = ray.remote(_RayBench).options(**options).remote
    # By value where the function is the main script's, which the cluster's other machines do not have.
    blob = ray.cloudpickle.dumps(task)
    waiting, crew = deque(units), list[_Actor]()
    running: dict[Any, tuple[int, _Actor]] = {}
    try:
        while waiting or running:
            while len(crew) < min(workers, len(waiting) + sum(len(actor.held) > 0 for actor in crew)):
                crew.append(_Actor(hire(blob), []))
            refused: list[int] = []
            for n, actor in dealt(waiting, crew, abreast, admit, refused):
                actor.held.append(n)
                running[actor.handle.run.remote(pickle.dumps(items[n]))] = (n, actor)
            if refused:
                yield from ((n, Reply()) for n in refused)
                continue
            for actor in [actor for actor in crew if not actor.held]:
                # Others may be waiting for its place in the cluster.
                crew.remove(actor)
                ray.kill(actor.handle)
            for done in ray.wait(list(running))[0]:
                n, actor = running.pop(done)
                actor.held.remove(n)
                try:
                    reply, events = ray.get(done)
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError as error:
                    if actor in crew:
                        crew.remove(actor)
                        ray.kill(actor.handle)
                    yield n, Lost(type(error).__name__)
                    continue
                for event in events:
                    report(event)
                yield n, reply
    finally:
        for actor in crew:
            ray.kill(actor.handle)

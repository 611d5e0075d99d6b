"""Actors of a Ray cluster whose nodes come and go: new ones where there is room, and others in place of those lost."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError

from mert_foundry.jobs.command.console import console

LOOK_EVERY = 2.0  # seconds between looks at what the cluster has
MOST_FAILED_STARTS, FAILING_SECONDS = 3, 10.0  # in a row, and over which time, before it is an error
# Seconds without a worker: until that is said, at the start, when models are loaded, and later; and between such lines.
SAY_AT_START, SAY_LATER, SAY_EVERY = 60.0, 5.0, 60.0
NODE_DIED = "node has died"  # in Ray's message on an actor


@dataclass(frozen=True)
class Placement:
    """How many actors there are to be, and what of a CPU or GPU each takes.

    Args:
        limit: actors at most; 0: as many as the cluster has room for.
        per_device: actors for each CPU or GPU.
        share: of a CPU or GPU that an actor takes.
        is_elastic: whether one more actor is asked for than there is room for, so that an autoscaler adds a node.
    """

    resource: Literal["CPU", "GPU"]
    limit: int
    per_device: int
    share: float
    is_elastic: bool

    def wanted(self, cluster: Mapping[str, float], tasks: int) -> int:
        """Actors for as many tasks, on a cluster with these resources."""
        room = int(cluster.get(self.resource, 0)) * self.per_device + self.is_elastic
        return min(self.limit or room, tasks)

    def options(self) -> dict[str, Any]:
        """What Ray is told of an actor. One on a GPU must not wait for a CPU, as it would by default."""
        return {"num_cpus": self.share} if self.resource == "CPU" else {"num_cpus": 0, "num_gpus": self.share}


def place_actors(
    device: Literal["cpu", "cuda"], actors: int, actors_per_gpu: int, tasks: int, *, address: str
) -> Placement:
    """How to place them on the cluster as it is now; one of CPUs may still have no node.

    Raises RuntimeError when it has no GPU, or Ray of this machine no CPU.
    """
    cluster, resource = ray.cluster_resources(), "GPU" if device == "cuda" else "CPU"
    available = int(cluster.get(resource, 0))
    if not available and (device == "cuda" or address == "local"):
        raise RuntimeError(f"device {device}: the Ray cluster at {address} has no {resource}")
    per_device = max(1, min(actors_per_gpu, int(cluster.get("CPU", 0)) // available)) if device == "cuda" else 1
    share = 1 / math.ceil(min(actors or available * per_device, tasks) / available) if available else 1.0
    return Placement("GPU" if device == "cuda" else "CPU", actors, per_device, share, not actors and address != "local")


@dataclass(frozen=True)
class Actor:
    """One that has started; `node` is the id of its machine in the cluster."""

    handle: Any
    node: str


class ActorPool:
    """Actors made of a class and its arguments: those that start, by the reference of their answer, those idle and
    those busy.
    """

    def __init__(self, worker: type, arguments: tuple, placement: Placement):
        # Two methods at once, so that a worker can be asked how far it is. Neither is repeated: what died may be why.
        self._remote: Any = ray.remote(worker).options(**placement.options(), max_concurrency=2, max_restarts=0)
        self._arguments = arguments
        self._placement = placement
        self.starting: dict[Any, Any] = {}
        self.idle: list[Actor] = []
        self.busy: list[Actor] = []
        self._looked = -math.inf
        self._failed_starts: list[float] = []  # when, on the monotonic clock, since the last that did not fail

    def update(self, tasks: int) -> None:
        """Take what has started, and start more for as many tasks as are left.

        Raises RuntimeError when none can start.
        """
        if self.starting:
            for reference in ray.wait(list(self.starting), num_returns=len(self.starting), timeout=0)[0]:
                self._note_start(reference, self.starting.pop(reference))
        now = time.monotonic()
        # One bad node may fail before a good one is ready, and is asked less and less often.
        pause = LOOK_EVERY * 2 ** min(len(self._failed_starts), 5)
        if now > self._looked + pause:
            self._looked = now
            missing = self._placement.wanted(ray.cluster_resources(), tasks) - len(self.busy) - len(self.idle)
            for _ in range(missing - len(self.starting)):
                handle = self._remote.remote(*self._arguments)
                self.starting[handle.__ray_call__.remote(_find_node)] = handle

    def take(self) -> Actor:
        """An idle actor, which is then busy."""
        self.busy.append(self.idle.pop())
        return self.busy[-1]

    def give_back(self, actor: Actor) -> None:
        """The actor has done its task."""
        self.busy.remove(actor)
        self.idle.append(actor)

    def lose(self, actor: Actor, error: RayActorError) -> bool:
        """Remove an actor that does not answer any more; returns whether its node went away."""
        self.end(actor)
        return died_with_node(error) or not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == actor.node)

    def end(self, actor: Actor) -> None:
        """End a busy actor; another one takes its place."""
        self.busy.remove(actor)
        self._looked = -math.inf
        ray.kill(actor.handle)

    def release_idle(self) -> None:
        """End those for which there is no task, so that a cluster may do without their nodes."""
        for actor in self.idle:
            ray.kill(actor.handle)
        self.idle = []

    def _note_start(self, reference: Any, handle: Any) -> None:
        try:
            self.idle.append(Actor(handle, ray.get(reference)))
            self._failed_starts = []
        except RayError as error:
            if not died_with_node(error):
                self._failed_starts.append(time.monotonic())
            is_lasting = len(self._failed_starts) >= MOST_FAILED_STARTS and (
                self._failed_starts[-1] - self._failed_starts[0] > FAILING_SECONDS
            )
            if is_lasting and not (self.idle or self.busy):
                raise RuntimeError(f"no worker can start: {last_line(error)}") from error


def died_with_node(error: RayError) -> bool:
    """Whether an actor died with its node."""
    return NODE_DIED in str(error) or (isinstance(error, RayActorError) and error.preempted)


def last_line(error: RayError) -> str:
    """The last line of a message, where Ray gives the error itself."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]


def _find_node(worker: object) -> str:
    return ray.get_runtime_context().get_node_id()


class WorkerTimeout:
    """Ends a job that has had no worker for too long, and warns before.

    Args:
        wait: seconds after which it is an error.
    """

    def __init__(self, wait: float):
        self._wait = wait
        self._last = time.monotonic()
        self._silent_until = self._last + SAY_AT_START

    def update(self, has_worker: bool) -> None:
        """Note whether there is a worker now. Raises RuntimeError when there has been none for too long."""
        now = time.monotonic()
        if has_worker:
            self._last, self._silent_until = now, now + SAY_LATER
            return
        passed = now - self._last
        if passed > self._wait:
            raise RuntimeError(f"no worker for {passed:.0f} s; the same command goes on when there are nodes")
        if now > self._silent_until:
            self._silent_until = now + SAY_EVERY
            limit = f"for {self._wait:.0f} s at most"
            console.warn(f"no worker is left: waiting for a node of the cluster; {passed:.0f} s so far, {limit}")

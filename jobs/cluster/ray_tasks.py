"""Tasks on Ray actors: each actor does one task at a time and tells how far it is; another takes the place of one that
dies.

An actor works with one arithmetic thread, so what a task writes depends neither on the number of actors nor on
retries. A task is done again when its node went away, as often as that happens. A worker that dies on a node that stays
may have been killed by what it worked on: the second death of a task makes it one to be done with care, the third a
failed one.
"""

import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from mert_foundry.jobs.cluster.ray_pool import Actor, ActorPool, WorkerTimeout, place_actors
from mert_foundry.jobs.command.console import console

POLL_SECONDS = 0.5
DEATHS_BEFORE_CARE, MOST_DEATHS = 2, 3  # of workers, at one task
WAIT_FOR_WORKERS = 3600.0  # seconds


class Task(Protocol):
    """What is to be done; `name` for messages, `seconds` of audio."""

    @property
    def name(self) -> str: ...

    @property
    def seconds(self) -> float: ...


class Worker(Protocol):
    """What an actor is made of. `run` and `seconds_done` are called at once, from two threads.

    It may have `run_carefully`, which does a task of which two workers have died.
    """

    def run(self, task: Any) -> Any:
        """Do a task and publish what comes of it."""

    def seconds_done(self) -> float:
        """Audio seconds done of the task at work."""


@dataclass(frozen=True)
class Done:
    """A task that is done, and what `run` of the worker gave; or that failed, with the last error and what is to be
    said of it.
    """

    task: Any
    result: Any = None
    error: RayError | None = None
    failure: str = ""


def run_on_ray(
    tasks: Sequence[Task],
    worker: type[Worker],
    arguments: tuple,
    *,
    address: str | None,
    device: Literal["cpu", "cuda"],
    actors: int,
    actors_per_gpu: int = 1,
    wait: float = WAIT_FOR_WORKERS,
    report: Callable[[float, str], None],
    finished: Callable[[Any], None] = lambda result: None,
) -> dict[str, str]:
    """Do every task; returns the error message of each one that failed.

    Args:
        worker, arguments: the class of the actors, and what each is made with.
        address: `local` starts Ray on this machine for this call; else the address of a running cluster; None:
            RAY_ADDRESS, else local.
        actors: processes; 0 means one for each CPU of the cluster, or `actors_per_gpu` for each GPU, also of nodes that
            join later. More than there are CPUs or GPUs share them, so that on a GPU one computes while another reads
            or writes. Never more than tasks.
        actors_per_gpu: how many share a GPU where `actors` is 0, but no more than there are CPUs for each GPU.
        wait: seconds to wait without any worker, as when all nodes have gone.
        report: called about twice a second with the audio seconds done and a note on failures.
        finished: called with what `run` of the worker gave for each task that did not fail.

    Raises as `stream_on_ray`.
    """
    stream = stream_on_ray(
        tasks, worker, arguments, address=address, device=device, actors=actors, actors_per_gpu=actors_per_gpu,
        wait=wait,
        report=report,
    )  # fmt: skip
    failures: dict[str, str] = {}
    with closing(stream):
        for done in stream:
            if done.error is None:
                finished(done.result)
            else:
                failures[done.task.name] = done.failure
    return failures


def stream_on_ray(
    tasks: Sequence[Task],
    worker: type[Worker],
    arguments: tuple,
    *,
    address: str | None,
    device: Literal["cpu", "cuda"],
    actors: int,
    actors_per_gpu: int = 1,
    wait: float = WAIT_FOR_WORKERS,
    report: Callable[[float, str], None] = lambda seconds, note: None,
) -> Generator[Done, None, None]:
    """Each task as it is done, in any order; arguments as of `run_on_ray`. Ray is left when the generator is closed.

    Raises:
        RuntimeError: there is no GPU at the start, or no CPU where Ray is started here; no worker can start, or there
            was none for `wait` seconds.
    """
    address = _connect(address)
    try:
        placement = place_actors(device, actors, actors_per_gpu, len(tasks), address=address)
        # Long tasks first, so that the last ones to finish are short.
        waiting = deque(sorted(tasks, key=lambda task: -task.seconds))
        pool, can_be_careful = ActorPool(worker, arguments, placement), hasattr(worker, "run_carefully")
        job = _Job(pool, waiting, WorkerTimeout(wait), can_be_careful)
        while job.waiting or job.running:
            job.start_tasks()
            yield from job.collect()
            report(job.seconds_done(), f"{job.num_failed} failed" if job.num_failed else "")
    finally:
        ray.shutdown()


def _connect(address: str | None) -> str:
    """Start Ray or join a cluster; returns the address."""
    # Ray would report its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # A dashboard is something only a cluster that Ray is started for here can be asked to go without.
    has_dashboard = False if address == "local" else None
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=has_dashboard)
    return address


@dataclass
class _Job:
    """Tasks that wait and run; of those that are done how many failed, and their `seconds` of audio."""

    pool: ActorPool
    waiting: deque[Task]
    timeout: WorkerTimeout
    can_be_careful: bool
    running: dict[Any, tuple[Actor, Task]] = field(default_factory=dict)
    num_failed: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    answers: dict[str, float] = field(default_factory=dict)
    asked: float = -math.inf  # when, on the monotonic clock

    def start_tasks(self) -> None:
        """Give tasks to idle actors. Raises RuntimeError when there has been no actor for too long."""
        self.pool.update(len(self.waiting) + len(self.running))
        self.timeout.update(bool(self.pool.idle or self.running))
        while self.waiting and self.pool.idle:
            actor, task = self.pool.take(), self.waiting.popleft()
            careful = self.can_be_careful and self.deaths[task.name] >= DEATHS_BEFORE_CARE
            method = actor.handle.run_carefully if careful else actor.handle.run
            self.running[method.remote(task)] = (actor, task)
        if not self.waiting:
            self.pool.release_idle()

    def collect(self) -> Iterator[Done]:
        """Tasks that are done, after a moment of waiting for them."""
        references = [*self.running, *self.pool.starting]
        if not references:
            time.sleep(POLL_SECONDS)
        elif ray.wait(references, timeout=POLL_SECONDS)[0]:
            for reference in ray.wait(references, num_returns=len(references), timeout=0)[0]:
                if reference in self.running and (done := self._end(reference)):  # else an actor has started
                    self.num_failed += done.error is not None
                    self.seconds += done.task.seconds
                    yield done

    def _end(self, reference: Any) -> Done | None:
        """What came of a task; None when it is to be done again."""
        actor, task = self.running.pop(reference)
        try:
            done = Done(task, ray.get(reference))
        except RayActorError as error:
            return self._do_again(task, error, is_death=not self.pool.lose(actor, error))
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, MemoryError):
                self.pool.end(actor)  # what else fails in a process without memory cannot be known
                return self._do_again(task, error, is_death=True)
            done = Done(task, error=error, failure=_message(error))
        self.pool.give_back(actor)
        return done

    def seconds_done(self) -> float:
        """Audio seconds done, of the tasks at work too, which are asked now and then."""
        if time.monotonic() > self.asked + POLL_SECONDS:
            _ask(self.running, self.answers)
            self.asked = time.monotonic()
        return self.seconds + sum(self.answers.get(task.name, 0.0) for _, task in self.running.values())

    def _do_again(self, task: Task, error: RayError, is_death: bool) -> Done | None:
        """Let a task wait again, unless it was its worker's last permitted death; the death of a node counts for
        nothing.
        """
        self.answers.pop(task.name, None)
        self.deaths[task.name] += is_death
        if self.deaths[task.name] >= MOST_DEATHS:
            return Done(task, error=error, failure=f"{MOST_DEATHS} workers died of it: {_message(error)}")
        self.waiting.append(task)
        if is_death and self.deaths[task.name] == DEATHS_BEFORE_CARE and self.can_be_careful:
            console.warn(
                f"{task.name}: {DEATHS_BEFORE_CARE} workers died of it; it is done with care, one file after the other"
            )
        return None


def _ask(running: dict, done: dict[str, float]) -> None:
    """Bring the audio seconds done of every running task up to date; one that does not answer keeps its last."""
    questions = {actor.handle.seconds_done.remote(): task.name for actor, task in running.values()}
    if not questions:
        return
    answered, _ = ray.wait(list(questions), num_returns=len(questions), timeout=POLL_SECONDS)
    for question in answered:
        # An actor that is just being started again has nothing to say.
        with suppress(RayActorError):
            done[questions[question]] = ray.get(question)


def _message(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return " ".join(str(error).split())

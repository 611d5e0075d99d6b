"""Tasks on Ray actors: each actor does one task at a time, tells how far it is, and is started again when it dies.

An actor works with one arithmetic thread, so what a task writes depends neither on the number of actors nor on
retries.
"""

import contextlib
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

POLL_SECONDS = 0.5
RETRIES = 2


class Task(Protocol):
    """What is to be done; `name` for messages, `seconds` of audio."""

    @property
    def name(self) -> str: ...

    @property
    def seconds(self) -> float: ...


class Worker(Protocol):
    """What an actor is made of. Both methods are called at once, from two threads."""

    def run(self, task: Any) -> Any:
        """Do a task and publish what comes of it."""

    def seconds_done(self) -> float:
        """Audio seconds done of the task at work."""


def run_on_ray(
    tasks: Sequence[Task],
    worker: type[Worker],
    arguments: tuple,
    *,
    address: str | None,
    device: Literal["cpu", "cuda"],
    actors: int,
    actors_per_gpu: int = 1,
    report: Callable[[float, str], None],
    finished: Callable[[Any], None] = lambda result: None,
) -> dict[str, str]:
    """Do every task; returns the error message of each one that failed.

    Args:
        worker, arguments: the class of the actors, and what each is made with.
        address: `local` starts Ray on this machine for this call; else the address of a running cluster; None:
            RAY_ADDRESS, else local.
        actors: processes; 0 means one for each CPU of the cluster, or `actors_per_gpu` for each GPU. More than there are CPUs
            or GPUs share them, so that on a GPU one computes while another reads or writes. Never more than tasks.
        actors_per_gpu: how many share a GPU where `actors` is 0, but no more than there are CPUs for each GPU.
        report: called about twice a second with the audio seconds done and a note on failures.
        finished: called with what `run` of the worker gave for each task that did not fail.
    """
    address = _connect(address)
    try:
        cluster, resource = ray.cluster_resources(), "GPU" if device == "cuda" else "CPU"
        available = int(cluster.get(resource, 0))
        if not available:
            raise RuntimeError(f"device {device}: the Ray cluster at {address} has no {resource}")
        per_device = min(actors_per_gpu, int(cluster.get("CPU", 0)) // available) if device == "cuda" else 1
        wanted = min(actors or available * max(1, per_device), len(tasks))
        share = 1 / math.ceil(wanted / available)
        # An actor on a GPU must not wait for a CPU, as it would by default.
        resources = {"num_cpus": share} if device == "cpu" else {"num_cpus": 0, "num_gpus": share}
        # Two methods at once, so that a worker can be asked how far it is.
        remote = ray.remote(worker).options(**resources, max_concurrency=2, max_restarts=-1, max_task_retries=RETRIES)
        return _run(tasks, [remote.remote(*arguments) for _ in range(wanted)], report, finished)
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


def _run(
    tasks: Sequence[Task], pool: list, report: Callable[[float, str], None], note_result: Callable[[Any], None]
) -> dict[str, str]:
    # Long tasks first, so that the last ones to finish are short.
    waiting = deque(sorted(tasks, key=lambda task: -task.seconds))
    idle = list(pool)
    running: dict = {}
    failures: dict[str, str] = {}
    attempts: Counter[str] = Counter()
    actors_left = len(pool)
    done: dict[str, float] = {}
    finished = 0.0
    while waiting or running:
        while waiting and idle:
            actor, task = idle.pop(), waiting.popleft()
            running[actor.run.remote(task)] = (actor, task)
        ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        for reference in ready:
            actor, task = running.pop(reference)
            try:
                note_result(ray.get(reference))
            except RayActorError as error:
                # An actor that cannot be started again must not eat the queue: another one does its task.
                actors_left -= 1
                attempts[task.name] += 1
                if attempts[task.name] <= RETRIES and actors_left:
                    waiting.append(task)
                else:
                    failures[task.name] = _message(error)
                continue
            except RayError as error:
                failures[task.name] = _message(error)
            idle.append(actor)
            finished += task.seconds
        if not actors_left:
            failures |= {task.name: "no worker is left to do it" for task in waiting}
            waiting.clear()
        _ask(running, done)
        report(finished + sum(done.get(task.name, 0.0) for _, task in running.values()), _note(failures))
    return failures


def _note(failures: dict[str, str]) -> str:
    return f"{len(failures)} failed" if failures else ""


def _ask(running: dict, done: dict[str, float]) -> None:
    """Bring the audio seconds done of every running task up to date; one that does not answer keeps its last."""
    questions = {actor.seconds_done.remote(): task.name for actor, task in running.values()}
    if not questions:
        return
    answered, _ = ray.wait(list(questions), num_returns=len(questions), timeout=POLL_SECONDS)
    for question in answered:
        # An actor that is just being started again has nothing to say.
        with contextlib.suppress(RayActorError):
            done[questions[question]] = ray.get(question)


def _message(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return " ".join(str(error).split())

"""Place shard tasks on Ray actors that hold the teachers; the tasks themselves know no Ray.

A task runs on one actor with one arithmetic thread, so its bytes depend neither on the number of actors nor
on retries. An actor that dies is started again and its task repeated.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.process_shard import process_shard
from pipeline.shard_plan import ShardTask
from pipeline.teachers import TeacherConfig, build_teachers

POLL_SECONDS = 0.5
RETRIES = 2


class Labeller:
    """Holds the teachers of one process and labels one shard at a time."""

    def __init__(self, teachers: list[TeacherConfig], device: str, root: str, out: str, decode_threads: int):
        torch.set_num_threads(1)
        self.teachers = build_teachers(teachers, device)
        self.backend = {"device": torch.cuda.get_device_name() if device == "cuda" else device, "torch": torch.__version__}
        self.root, self.out, self.decode_threads = root, out, decode_threads
        self.seconds = 0.0

    def label(self, task: ShardTask) -> None:
        """Label and publish one shard. Raises as `process_shard` does."""
        self.seconds = 0.0
        process_shard(task, self.teachers, self.root, self.out, self.backend, self.decode_threads, self._count)
        self.seconds = 0.0

    def seconds_done(self) -> float:
        """Audio seconds done of the shard at work."""
        return self.seconds

    def _count(self, seconds: float) -> None:
        self.seconds += seconds


def label_on_ray(
    tasks: list[ShardTask],
    teachers: list[TeacherConfig],
    root: str,
    out: str,
    *,
    address: str,
    device: Literal["cpu", "cuda"],
    actors: int,
    decode_threads: int,
    report: Callable[[float, str], None],
) -> dict[str, str]:
    """Do every task; returns the error message of each shard that failed.

    Args:
        address: `local` starts Ray on this machine for this call; else the address of a running cluster.
        actors: teacher processes; 0 means one for each CPU (or GPU) of the cluster, never more than tasks.
        report: called about twice a second with the audio seconds done and a note on failures.
    """
    # A dashboard is something only a cluster that Ray is started for here can be asked to go without.
    local = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, logging_level="ERROR", log_to_driver=False, **local)
    try:
        resource = "GPU" if device == "cuda" else "CPU"
        available = int(ray.cluster_resources().get(resource, 0))
        if not available:
            raise RuntimeError(f"device {device}: the Ray cluster at {address} has no {resource}")
        wanted = min(actors or available, available, len(tasks))
        # Two methods at once, so that a labeller can be asked how far it is.
        options = {f"num_{resource.lower()}s": 1, "max_concurrency": 2, "max_restarts": -1, "max_task_retries": RETRIES}
        remote = ray.remote(Labeller).options(**options)
        pool = [remote.remote(teachers, device, root, out, decode_threads) for _ in range(wanted)]
        return _run(tasks, pool, report)
    finally:
        ray.shutdown()


def _run(tasks: list[ShardTask], pool: list, report: Callable[[float, str], None]) -> dict[str, str]:
    # Long shards first, so that the last ones to finish are short.
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
            running[actor.label.remote(task)] = (actor, task)
        ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        for reference in ready:
            actor, task = running.pop(reference)
            try:
                ray.get(reference)
            except RayActorError as error:
                # A labeller that cannot be started again must not eat the queue: another one does its task.
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
            failures |= {task.name: "no labeller is left to do it" for task in waiting}
            waiting.clear()
        notes = f"{len(failures)} shards failed" if failures else ""
        _ask(running, done)
        report(finished + sum(done.get(task.name, 0.0) for _, task in running.values()), notes)
    return failures


def _ask(running: dict, done: dict[str, float]) -> None:
    """Bring the audio seconds done of every running shard up to date; one that does not answer keeps its last."""
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

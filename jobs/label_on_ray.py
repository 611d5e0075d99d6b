"""Place shard tasks on Ray actors that hold the teachers; the tasks themselves know no Ray."""

from collections.abc import Callable
from typing import Literal

import torch

from jobs.ray_tasks import run_on_ray
from pipeline.process_shard import process_shard
from pipeline.shard_plan import ShardTask
from pipeline.teachers import TeacherConfig, build_teachers


class Labeller:
    """Holds the teachers of one process and labels one shard at a time."""

    def __init__(self, teachers: list[TeacherConfig], device: str, root: str, out: str, decode_threads: int):
        torch.set_num_threads(1)
        self.teachers = build_teachers(teachers, device)
        self.backend = {"device": torch.cuda.get_device_name() if device == "cuda" else device, "torch": torch.__version__}
        for teacher in self.teachers:
            self.backend |= getattr(teacher, "backend", {})
        self.root, self.out, self.decode_threads, self.device = root, out, decode_threads, device
        self.seconds = 0.0

    def run(self, task: ShardTask) -> None:
        """Label and publish one shard. Raises as `process_shard` does."""
        self.seconds = 0.0
        process_shard(
            task, self.teachers, self.root, self.out, self.backend,
            device=self.device, decode_threads=self.decode_threads, report=self._count,
        )
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
    address: str | None,
    device: Literal["cpu", "cuda"],
    actors: int,
    decode_threads: int,
    report: Callable[[float, str], None],
) -> dict[str, str]:
    """Do every task as `run_on_ray` does; returns the error message of each shard that failed."""
    arguments = (teachers, device, root, out, decode_threads)
    return run_on_ray(tasks, Labeller, arguments, address=address, device=device, actors=actors, report=report)

"""Tasks on the actors of a Ray cluster: as many at once as asked for, however few GPUs there are."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mert_foundry.jobs.cluster import ray_pool
from mert_foundry.jobs.cluster.ray_tasks import run_on_ray

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.usefixtures("classes_sent_to_workers")]


@dataclass
class Meeting:
    """A task that is done once all those it names have begun; it leaves the number of its process."""

    name: str
    folder: Path
    others: list[str]
    seconds: float = 1.0


class Guest:
    """Does meetings."""

    def run(self, meeting: Meeting) -> None:
        (meeting.folder / meeting.name).write_text(str(os.getpid()))
        deadline = time.monotonic() + 60
        while not all((meeting.folder / other).exists() for other in meeting.others):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{meeting.name} was alone")
            time.sleep(0.05)

    def seconds_done(self) -> float:
        return 0.0


@pytest.mark.parametrize(("actors", "actors_per_gpu", "processes"), [(3, 1, 3), (0, 1, 1), (0, 8, 2)])
def test_actors_beyond_the_gpus_share_them(
    actors: int, actors_per_gpu: int, processes: int, ray_address: str, tmp_path: Path
):
    """By default as many as are told for each GPU, but no more than its share of the CPUs, of which there are two."""
    names = ["a", "b", "c"]
    tasks = [Meeting(name, tmp_path, names[:processes] if processes > 1 else []) for name in names]
    failures = run_on_ray(
        tasks,
        Guest,
        (),
        address=ray_address,
        device="cuda",
        actors=actors,
        actors_per_gpu=actors_per_gpu,
        report=lambda seconds, note: None,
    )
    assert failures == {}
    assert len({(tmp_path / name).read_text() for name in names}) == processes


class Unready:
    """Cannot start."""

    def __init__(self) -> None:
        raise ValueError("the weights are of another size")

    def run(self, task: Meeting) -> None:
        raise AssertionError("never started")

    def seconds_done(self) -> float:
        return 0.0


def test_workers_that_cannot_start_end_the_job_with_their_reason(
    ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_pool, "FAILING_SECONDS", 0.5)
    monkeypatch.setattr(ray_pool, "LOOK_EVERY", 0.2)
    with pytest.raises(RuntimeError, match="no worker can start: ValueError: the weights are of another size"):
        run_on_ray(
            [Meeting("a", tmp_path, [])], Unready, (), address=ray_address, device="cpu", actors=1,
            report=lambda seconds, note: None,
        )  # fmt: skip

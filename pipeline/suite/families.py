"""All tasks of the suite, by the family that makes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mert_foundry.pipeline.suite import (
    accompaniment_tasks,
    collection_task,
    dance_task,
    drum_task,
    guitar_task,
    key_task,
    note_tasks,
    tags_task,
)
from mert_foundry.pipeline.suite.clip import FamilyPlan, Plans


@dataclass(frozen=True)
class Family:
    """Tasks that share audio, the packages they need, and how they are planned."""

    tasks: tuple[str, ...]
    packages: tuple[str, ...]
    plan: Callable[[Plans], FamilyPlan]


MODULES = (
    note_tasks,
    key_task,
    accompaniment_tasks,
    tags_task,
    dance_task,
    drum_task,
    collection_task,
    guitar_task,
)
FAMILIES = tuple(Family(module.TASKS, module.PACKAGES, module.plan) for module in MODULES)
ALL_TASKS = tuple(task for family in FAMILIES for task in family.tasks)


def families_of(tasks: Sequence[str]) -> list[Family]:
    """The families that make these tasks. Raises ValueError for a task that no family makes."""
    if unknown := [task for task in tasks if task not in ALL_TASKS]:
        raise ValueError(f"tasks: there is no task {unknown[0]!r}; the suite has {', '.join(ALL_TASKS)}")
    return [family for family in FAMILIES if set(family.tasks) & set(tasks)]


def plan_tasks(plans: Plans, tasks: Sequence[str]) -> FamilyPlan:
    """The chosen tasks alone, and the audio that their clips name."""
    made = [family.plan(plans) for family in families_of(tasks)]
    chosen = [task for family in made for task in family.tasks if task.task.name in tasks]
    named = {clip.path for task in chosen for clip in task.clips}
    audio = [audio for family in made for audio in family.audio if f"../{audio.path}" in named]
    return FamilyPlan(tuple(chosen), tuple(audio))

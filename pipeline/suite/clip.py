"""What a task family plans: clips with their labels, and recipes for their audio; chance that depends on the seed
alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.suite.augmentation import Finish, finish
from mert_foundry.pipeline.suite.sources import Sources

Size = Literal["small", "full"]
SHARES: dict[Split, float] = {"train": 0.7, "valid": 0.1, "test": 0.2}
Item = TypeVar("Item")


class Recipe(Protocol):
    """How a clip's sound is made; passes between processes."""

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        """float32 `[T]` at 24 kHz, before it is finished."""


@dataclass(frozen=True)
class AudioPlan:
    """One audio file of the suite: its path within the suite, its length, and how it is made."""

    path: str
    seconds: float
    recipe: Recipe
    finish: Finish


@dataclass(frozen=True)
class TaskPlan:
    """A task with its clips, whose paths are relative to the task's folder."""

    task: ProbeTask
    clips: tuple[ProbeClip, ...]


@dataclass(frozen=True)
class FamilyPlan:
    """Tasks that share audio."""

    tasks: tuple[TaskPlan, ...]
    audio: tuple[AudioPlan, ...]


@dataclass(frozen=True)
class Plans:
    """What is asked for: the size and the seed, and where the packages lie."""

    size: Size
    seed: int
    sources: Sources

    def random(self, *parts: object) -> np.random.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        return generator(self.seed, *parts)


def generator(seed: int, *parts: object) -> np.random.Generator:
    """Random numbers that depend on the seed and on what they are for, and on nothing else."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *parts))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def make_audio(plan: AudioPlan, sources: Sources, seed: int) -> np.ndarray:
    """The samples of one audio file, int16 `[T]` at 24 kHz.

    Raises ValueError naming the file when it cannot be made.
    """
    random = generator(seed, "audio", plan.path)
    try:
        audio = finish(plan.recipe.render(sources, random), plan.finish, random)
    except ValueError as error:
        raise ValueError(f"{plan.path}: {error}") from error
    assert len(audio) == round(plan.seconds * SAMPLE_RATE), (plan.path, len(audio), plan.seconds)
    return np.clip(np.rint(audio * 32767), -32768, 32767).astype(np.int16)


def beside(path: str) -> str:
    """A path of the suite as a task's clips name it."""
    return f"../{path}"


def shuffled(items: Sequence[Item], random: np.random.Generator) -> list[Item]:
    """The items in a random order."""
    return [items[index] for index in random.permutation(len(items))]


def split_groups(groups: Sequence[str], random: np.random.Generator) -> dict[str, Split]:
    """70 / 10 / 20 % of the groups, each split with one at least where there are three."""
    mixed = shuffled(sorted(set(groups)), random)
    tests = max(1, round(SHARES["test"] * len(mixed)))
    valids = max(1, round(SHARES["valid"] * len(mixed)))
    return {
        group: "test" if index < tests else "valid" if index < tests + valids else "train"
        for index, group in enumerate(mixed)
    }

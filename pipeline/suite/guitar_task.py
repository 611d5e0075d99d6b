"""Where a guitar plays: eight real songs whose guitar has a track of its own, muted at times; cross-validated over
songs.
"""

from dataclasses import dataclass

import numpy as np

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask, Segment
from mert_foundry.pipeline.suite.augmentation import CLEAN
from mert_foundry.pipeline.suite.clip import AudioPlan, FamilyPlan, Plans, Size, TaskPlan, beside
from mert_foundry.pipeline.suite.recordings import Recording, find_recordings
from mert_foundry.pipeline.suite.sources import Sources

PACKAGES = ("fretsonfire-songs-muldjord", "fretsonfire-songs-sectoid")
TASKS = ("guitar",)
WINDOW_SECONDS = 1.0
CLIP_SECONDS = 10.0
GUITARS = "usr/share/games/fretsonfire/data/songs/*/*/guitar.ogg"
LONGEST_SECONDS: dict[Size, float] = {"small": 60.0, "full": 600.0}
ON_DB = -20.0  # of a window's energy beside that of the loud windows, above which the guitar plays
LOUD_QUANTILE = 0.9
RAMP_SECONDS = 0.05  # over which the guitar is muted


@dataclass(frozen=True)
class MixRecipe:
    """A stretch of a song: all other instruments, and the guitar in the windows that `heard` marks."""

    guitar: Recording
    start: float
    heard: tuple[bool, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.heard) * WINDOW_SECONDS

    @property
    def rest(self) -> Recording:
        """The song's other instruments, in one file of the same length."""
        return Recording(self.guitar.package, self.guitar.path.replace("guitar.ogg", "song.ogg"))

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        guitar, rest = (file.read(sources, self.start, self.seconds) for file in (self.guitar, self.rest))
        gate = np.repeat(np.array(self.heard, dtype=np.float32), round(WINDOW_SECONDS * SAMPLE_RATE))
        ramp = np.hanning(round(RAMP_SECONDS * SAMPLE_RATE))
        return rest + guitar * np.convolve(gate, ramp / ramp.sum(), mode="same").astype(np.float32)


def plan(plans: Plans) -> FamilyPlan:
    """Each song is a fold; where the guitar would play nearly always, it is muted in half of the stretches."""
    songs = [recording for package in PACKAGES for recording in find_recordings(plans.sources, package, GUITARS)]
    audio, clips = [], []
    for fold, guitar in enumerate(songs):
        random = plans.random("guitar", guitar.path)
        playing = find_playing(guitar.read(plans.sources))
        count = min(len(playing), round(LONGEST_SECONDS[plans.size] / WINDOW_SECONDS))
        first = int(random.integers(0, len(playing) - count + 1))
        heard = playing[first : first + count] & draw_gate(count, random)
        name = f"song-{fold}"
        path = f"audio/guitar/{name}.ogg"
        recipe = MixRecipe(guitar, first * WINDOW_SECONDS, tuple(heard.tolist()))
        audio.append(AudioPlan(path, recipe.seconds, recipe, CLEAN))
        clips.append(ProbeClip(path=beside(path), label=as_segments(heard), fold=fold, track=name, group=name))
    task = ProbeTask(
        name="guitar",
        kind="frame_classes",
        classes=("off", "on"),
        metrics=("frame_roc_auc",),
        clip_seconds=CLIP_SECONDS,
        folds=len(songs),
    )
    return FamilyPlan((TaskPlan(task, tuple(clips)),), tuple(audio))


def find_playing(guitar: np.ndarray) -> np.ndarray:
    """For each whole second, whether the guitar sounds: bool `[W]`."""
    length = round(WINDOW_SECONDS * SAMPLE_RATE)
    windows = guitar[: len(guitar) // length * length].reshape(-1, length)
    energy = np.square(windows, dtype=np.float64).mean(axis=1)
    return energy > np.quantile(energy, LOUD_QUANTILE) * 10 ** (ON_DB / 10)


def draw_gate(count: int, random: np.random.Generator) -> np.ndarray:
    """Stretches of 2 to 6 windows in turn open and closed, beginning with either: bool `[count]`."""
    stretches: list[bool] = []
    opened = bool(random.integers(2))
    while len(stretches) < count:
        stretches += [opened] * int(random.integers(2, 7))
        opened = not opened
    return np.array(stretches[:count])


def as_segments(playing: np.ndarray) -> tuple[Segment, ...]:
    """Stretches of windows that are alike."""
    edges = [0, *(np.flatnonzero(np.diff(playing)) + 1).tolist(), len(playing)]
    return tuple(
        Segment(start=first * WINDOW_SECONDS, end=last * WINDOW_SECONDS, label="on" if playing[first] else "off")
        for first, last in zip(edges, edges[1:])
    )

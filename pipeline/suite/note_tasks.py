"""Pitch and instrument family of single notes: clean, and in front of an accompaniment in a noisy room."""

from dataclasses import dataclass, replace

import numpy as np

from mert_foundry.pipeline.probe_sets.task import SPLITS, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.suite.augmentation import CLEAN, NOISY, mix
from mert_foundry.pipeline.suite.clip import AudioPlan, FamilyPlan, Plans, Size, TaskPlan, beside, shuffled
from mert_foundry.pipeline.suite.fonts import (
    FONT_PACKAGES,
    INSTRUMENT_FAMILIES,
    OTHER_FONT,
    choose_font,
    font_path,
    pitched_programs,
)
from mert_foundry.pipeline.suite.rendering import DRUM_CHANNEL, Note, as_messages, render
from mert_foundry.pipeline.suite.sources import Sources

PACKAGES = (*FONT_PACKAGES, "tinysoundfont")
TASKS = ("pitch", "pitch_clean", "instrument")
SECONDS = 2.0
LOWEST, HIGHEST = 36, 84
NOTES_A_PITCH: dict[Size, dict[Split, int]] = {
    "small": {"train": 8, "valid": 2, "test": 3},
    "full": {"train": 57, "valid": 8, "test": 16},
}
OTHER_FONT_A_PITCH: dict[Size, int] = {"small": 1, "full": 8}
PROGRAMS: dict[Split, slice] = {"test": slice(0, 2), "valid": slice(2, 3), "train": slice(3, None)}
BACKING_DB = (-5.0, 2.0)  # how far the accompaniment lies below the note
BACKING_VOICES = 3
DRUMS = (35, 38, 42, 46, 51)


@dataclass(frozen=True)
class NoteRecipe:
    """A note, alone or with an accompaniment of other programs; the note is the loudest voice."""

    font: str
    program: int
    note: Note
    backing: tuple[int, ...]

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        font = font_path(sources, self.font)
        foreground = render(font, as_messages([(0, self.program, [self.note])]), 0.0, SECONDS)
        if not self.backing:
            return foreground
        parts = [
            (channel, program, _random_notes(random, 0.25 + 0.25 * channel))
            for channel, program in enumerate(self.backing)
        ]
        parts.append((DRUM_CHANNEL, 0, _random_hits(random)))
        background = render(font, as_messages(parts), 0.0, SECONDS)
        return mix(foreground, background, random.uniform(*BACKING_DB))


def _random_notes(random: np.random.Generator, length: float) -> list[Note]:
    """Notes one after another, each anywhere in the range, with rests between them."""
    notes, time = [], random.uniform(0.0, length)
    while time < SECONDS:
        pitch = int(random.integers(LOWEST, HIGHEST + 1))
        notes.append(Note(time, time + length, pitch, int(random.integers(60, 110))))
        time += length * random.uniform(1.0, 2.0)
    return notes


def _random_hits(random: np.random.Generator) -> list[Note]:
    step = random.uniform(0.12, 0.3)
    return [
        Note(time, time + 0.1, int(random.choice(DRUMS)), int(random.integers(40, 110)))
        for time in np.arange(0.0, SECONDS, step)
        if random.random() < 0.7
    ]


def plan(plans: Plans) -> FamilyPlan:
    """Every pitch equally often, families in turn; programs and fonts of the test are in no other split."""
    programs = split_programs(plans)
    audio: list[AudioPlan] = []
    clips: dict[str, list[ProbeClip]] = {task: [] for task in TASKS}
    for split, condition, count in _counts(plans.size):
        random = plans.random("notes", split, condition)
        pitches = shuffled([pitch for pitch in range(LOWEST, HIGHEST + 1) for _ in range(count)], random)
        for index, pitch in enumerate(pitches):
            family = list(INSTRUMENT_FAMILIES)[index % len(INSTRUMENT_FAMILIES)]
            recipe = _draw(random, split, condition, programs[split], family, pitch)
            name = f"audio/notes/{split}{condition and '-' + condition}-{index:04d}"
            clean, noisy = f"{name}-clean.ogg", f"{name}-mixed.ogg"
            audio += [
                AudioPlan(clean, SECONDS, replace(recipe, backing=()), CLEAN),
                AudioPlan(noisy, SECONDS, recipe, NOISY),
            ]
            for task, path, label in (
                ("pitch", noisy, str(pitch)),
                ("pitch_clean", clean, str(pitch)),
                ("instrument", clean, family),
            ):
                clip = ProbeClip(
                    path=beside(path),
                    label=label,
                    split=split,
                    track=path,
                    group=f"program-{recipe.program}",
                    condition=condition,
                )
                clips[task].append(clip)
    return FamilyPlan(tuple(TaskPlan(_task(name), tuple(clips[name])) for name in TASKS), tuple(audio))


def _counts(size: Size) -> list[tuple[Split, str, int]]:
    counts: list[tuple[Split, str, int]] = [(split, "", NOTES_A_PITCH[size][split]) for split in SPLITS]
    return [*counts, ("test", OTHER_FONT, OTHER_FONT_A_PITCH[size])]


def split_programs(plans: Plans) -> dict[Split, dict[str, list[int]]]:
    """By split and family: programs that no other split has; 1 for valid, 2 for test, the other 2 to 5 for train."""
    programs: dict[Split, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for family in INSTRUMENT_FAMILIES:
        mixed = shuffled(pitched_programs(family), plans.random("programs", family))
        for split, part in PROGRAMS.items():
            programs[split][family] = mixed[part]
    return programs


def _draw(
    random: np.random.Generator,
    split: Split,
    condition: str,
    programs: dict[str, list[int]],
    family: str,
    pitch: int,
) -> NoteRecipe:
    start = random.uniform(0.05, 0.25)
    everything = [program for others in programs.values() for program in others]
    program = int(random.choice(programs[family]))
    backing = tuple(int(other) for other in random.choice(everything, BACKING_VOICES))
    return NoteRecipe(
        font=choose_font(random, split, condition, [program, *backing]),
        program=program,
        note=Note(start, start + random.uniform(1.2, 1.7), pitch, int(random.integers(60, 115))),
        backing=backing,
    )


def _task(name: str) -> ProbeTask:
    if name == "instrument":
        return ProbeTask(
            name=name,
            kind="multiclass",
            classes=tuple(INSTRUMENT_FAMILIES),
            metrics=("accuracy", "macro_accuracy"),
            published_as="NSynth instrument",
        )
    return ProbeTask(
        name=name,
        kind="multiclass",
        classes=tuple(str(pitch) for pitch in range(LOWEST, HIGHEST + 1)),
        metrics=("accuracy", "octave_free_accuracy"),
        published_as="NSynth pitch",
    )

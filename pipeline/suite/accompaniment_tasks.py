"""Beat and tempo, chords and style, of the same accompaniments; no style file is in two splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mert_foundry.pipeline.probe_sets.task import Label, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.suite.accompaniment import (
    CHORD_CLASSES,
    STYLES,
    AccompanimentRecipe,
    Groove,
    draw_piece,
    read_grooves,
)
from mert_foundry.pipeline.suite.augmentation import CLEAN, NOISY
from mert_foundry.pipeline.suite.clip import (
    AudioPlan,
    FamilyPlan,
    Plans,
    Size,
    TaskPlan,
    beside,
    shuffled,
    split_groups,
)
from mert_foundry.pipeline.suite.fonts import (
    FONT_PACKAGES,
    INSTRUMENT_FAMILIES,
    OTHER_FONT,
    choose_font,
    pitched_programs,
)

PACKAGES = (*FONT_PACKAGES, "mma", "tinysoundfont")
TASKS = ("beat_tempo", "chord", "chord_clean", "style")
SECONDS = 10.0
OTHER_PROGRAMS = "other_programs"  # the condition of test clips of style whose instruments are drawn
# Clips of each style, by split and condition.
COUNTS: dict[Size, tuple[tuple[Split, str, int], ...]] = {
    "small": (
        ("train", "", 11),
        ("valid", "", 2),
        ("test", "", 4),
        ("test", OTHER_FONT, 1),
        ("test", OTHER_PROGRAMS, 2),
    ),
    "full": (
        ("train", "", 70),
        ("valid", "", 10),
        ("test", "", 20),
        ("test", OTHER_FONT, 8),
        ("test", OTHER_PROGRAMS, 8),
    ),
}


@dataclass(frozen=True)
class Take:
    """One window of one piece, which all tasks label."""

    split: Split
    condition: str
    number: int
    recipe: AccompanimentRecipe

    @property
    def name(self) -> str:
        """Its audio, without the ending."""
        style = self.recipe.piece.groove.style
        return f"audio/accompaniment/{self.split}{self.condition and '-' + self.condition}-{style}-{self.number:03d}"


def plan(plans: Plans) -> FamilyPlan:
    """As many pieces of each style."""
    splits = split_styles(plans)
    takes = [
        take
        for style in STYLES
        for split, condition, count in COUNTS[plans.size]
        for take in _draw(plans, style, split, condition, count, splits)
    ]
    plain = [take for take in takes if take.condition != OTHER_PROGRAMS]
    audio = [AudioPlan(f"{take.name}.ogg", SECONDS, take.recipe, NOISY) for take in takes]
    audio += [AudioPlan(f"{take.name}-clean.ogg", SECONDS, replace(take.recipe, drums=False), CLEAN) for take in plain]
    tasks = (
        TaskPlan(
            _beat_tempo(), tuple(_clip(take, take.recipe.piece.beats(take.recipe.start, SECONDS)) for take in plain)
        ),
        TaskPlan(_chord("chord"), tuple(_clip(take, _chords(take)) for take in plain)),
        TaskPlan(_chord("chord_clean"), tuple(_clip(take, _chords(take), "-clean") for take in plain)),
        TaskPlan(_style(), tuple(_clip(take, take.recipe.piece.groove.style) for take in takes)),
    )
    return FamilyPlan(tasks, tuple(audio))


def split_styles(plans: Plans) -> dict[str, Split]:
    """The split of each style file; every style has one at least in each."""
    splits: dict[str, Split] = {}
    for style, files in STYLES.items():
        splits.update(split_groups(files.split(), plans.random("style files", style)))
    return splits


def choose_grooves(plans: Plans, style: str, split: Split, splits: dict[str, Split]) -> list[Groove]:
    """The grooves of a style's files in a split, files in turn."""
    random = plans.random("grooves", style, split)
    grooves = shuffled([groove for groove in read_grooves(plans.sources) if groove.style == style], random)
    by_file: dict[str, list[Groove]] = {}
    for groove in grooves:
        if splits[groove.file] == split:
            by_file.setdefault(groove.file, []).append(groove)
    most = max(len(own) for own in by_file.values())
    return [own[turn % len(own)] for turn in range(most) for own in by_file.values()]


def _draw(
    plans: Plans, style: str, split: Split, condition: str, count: int, splits: dict[str, Split]
) -> Sequence[Take]:
    random = plans.random("accompaniment", style, split, condition)
    grooves = choose_grooves(plans, style, split, splits)
    takes = []
    for number in range(count):
        groove = grooves[number % len(grooves)]
        start = random.uniform(0.0, 4.0)
        piece = draw_piece(groove, start + SECONDS, random)
        programs = _draw_programs(random) if condition == OTHER_PROGRAMS else ()
        recipe = AccompanimentRecipe(choose_font(random, split, condition, None), piece, start, SECONDS, programs)
        takes.append(Take(split, condition, number, recipe))
    return takes


def _draw_programs(random: np.random.Generator) -> tuple[int, ...]:
    """A program for each channel, from any family."""
    families = random.choice(list(INSTRUMENT_FAMILIES), 16)
    return tuple(int(random.choice(pitched_programs(str(family)))) for family in families)


def _chords(take: Take) -> Label:
    return take.recipe.piece.segments(take.recipe.start, SECONDS)


def _clip(take: Take, label: Label, ending: str = "") -> ProbeClip:
    path = f"{take.name}{ending}.ogg"
    return ProbeClip(
        path=beside(path),
        label=label,
        split=take.split,
        track=path,
        group=f"style-{take.recipe.piece.groove.file}",
        condition=take.condition,
    )


def _beat_tempo() -> ProbeTask:
    return ProbeTask(
        name="beat_tempo",
        kind="beats",
        metrics=("beat_f_70ms", "beat_f_20ms", "tempo_accuracy_1", "tempo_accuracy_2"),
        published_as="GTZAN rhythm",
    )


def _chord(name: str) -> ProbeTask:
    return ProbeTask(
        name=name,
        kind="frame_classes",
        classes=CHORD_CLASSES,
        metrics=("frame_accuracy",),
        published_as="Chords1217",
    )


def _style() -> ProbeTask:
    return ProbeTask(
        name="style",
        kind="multiclass",
        classes=tuple(STYLES),
        metrics=("accuracy", "macro_accuracy"),
        published_as="GTZAN genre",
    )

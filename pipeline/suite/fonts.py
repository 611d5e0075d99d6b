"""The soundfonts, which splits may use them, and the instrument families of General MIDI."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mert_foundry.pipeline.probe_sets.task import Split
from mert_foundry.pipeline.suite.sources import Sources

# FluidR3 and MuseScore General share 334 samples, so they are in the same splits. TimGM6mb shares no sample name with
# either; OPL3 holds recordings of FM synthesis.
FONTS = {
    "fluid": ("fluid-soundfont-gm", "usr/share/sounds/sf2/FluidR3_GM.sf2"),
    "musescore": ("musescore-general-soundfont", "usr/share/sounds/sf3/MuseScore_General_Full.sf3"),
    "timgm": ("timgm6mb-soundfont", "usr/share/sounds/sf2/TimGM6mb.sf2"),
    "opl3": ("opl3-soundfont", "usr/share/sounds/sf2/OPL-3_FM_128M.sf2"),
}
FONTS_OF: dict[Split, tuple[str, ...]] = {
    "train": ("fluid", "musescore"),
    "valid": ("fluid", "musescore"),
    "test": ("timgm",),
}
OTHER_FONT = "opl3"  # the condition of test clips that are rendered by FM synthesis
FONT_PACKAGES = tuple(package for package, _ in FONTS.values())

# General MIDI has 16 families of 8 programs. Sound effects and percussion name no pitch, so they are absent.
INSTRUMENT_FAMILIES = {
    "piano": 0,
    "chromatic_percussion": 1,
    "organ": 2,
    "guitar": 3,
    "bass": 4,
    "strings": 5,
    "ensemble": 6,
    "brass": 7,
    "reed": 8,
    "pipe": 9,
    "synth_lead": 10,
    "synth_pad": 11,
    "ethnic": 13,
}

# Programs that sound at another pitch than written in one of the fonts (the highest sum of harmonics in the spectrum of
# every fourth note): glockenspiel, tubular bells, the organs with a stop an octave below, guitar harmonics, timpani,
# orchestra hit, whistle, fifths lead.
OFF_PITCH = frozenset({9, 14, 16, 17, 18, 31, 47, 55, 78, 86})
# Programs that have no sample for some of the notes in one of the fonts: contrabass, tuba, baritone saxophone.
WITHOUT_SOME_NOTES = frozenset({43, 58, 67})

# Grand pianos that open a filter with the velocity by modulators, which TinySoundFont does not support: they come out
# 30 dB too soft.
FAINT = {"musescore": frozenset({0, 1, 3})}


def pitched_programs(family: str) -> list[int]:
    """The programs of a family that sound as written, over the whole range, in every font."""
    first = 8 * INSTRUMENT_FAMILIES[family]
    return sorted(set(range(first, first + 8)) - OFF_PITCH - WITHOUT_SOME_NOTES)


def font_path(sources: Sources, font: str) -> Path:
    """The file of a soundfont."""
    package, name = FONTS[font]
    return sources.path(package, name)


def choose_font(random: np.random.Generator, split: Split, condition: str, programs: Sequence[int] | None) -> str:
    """One of the fonts of a split that plays these programs well; None: programs that are not known."""
    if condition == OTHER_FONT:
        return OTHER_FONT
    fonts = [font for font in FONTS_OF[split] if not (programs is None and font in FAINT)]
    chosen = str(random.choice(fonts))
    return fonts[0] if FAINT.get(chosen, frozenset()) & set(programs or ()) else chosen

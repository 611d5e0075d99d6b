"""Chord labels (Harte and others, ISMIR 2005) as one of 25 classes: major, minor, no chord.

A chord with the notes of a major triad counts as major, one with those of a minor triad as minor; sevenths and the bass
note are notes of the chord too. A chord with neither (suspended, diminished) or with both is not scored. MARBLE does
the same for Chords1217.
"""

import re

from mert_foundry.pipeline.probe_sets.pitch_names import NO_CHORD, SEMITONES, TRIADS

CHORDS = (*TRIADS, NO_CHORD)
DEGREES = (0, 2, 4, 5, 7, 9, 11)  # semitones of the degrees of a major scale
MAJOR, MINOR = frozenset({0, 4, 7}), frozenset({0, 3, 7})
# Semitones above the root that a shorthand stands for. Notes beyond the fifth change no class, so they are not listed.
SHORTHANDS: dict[str, frozenset[int]] = {
    **dict.fromkeys(
        ("", "maj", "maj7", "7", "maj6", "6", "9", "maj9", "11", "maj11", "13", "maj13", "b9", "#9", "#11", "b13"),
        MAJOR,
    ),
    **dict.fromkeys(("min", "min7", "minmaj7", "min6", "min9", "min11", "min13"), MINOR),
    **dict.fromkeys(("dim", "dim7", "hdim7"), frozenset({0, 3, 6})),
    "aug": frozenset({0, 4, 8}),
    "sus2": frozenset({0, 2, 7}),
    "sus4": frozenset({0, 5, 7}),
    "5": frozenset({0, 7}),
    "1": frozenset({0}),
}
LABEL = re.compile(
    r"(?P<root>[A-G])(?P<signs>[b#]*)(:(?P<shorthand>[a-z0-9#]*)(\((?P<degrees>[^()]*)\))?)?(/(?P<bass>[b#]*\d+))?"
)


def chord_class(label: str) -> str | None:
    """One of CHORDS, or None for a chord that is not scored, such as `X`.

    Raises ValueError for text that is no chord label.
    """
    if label in (NO_CHORD, "X"):
        return NO_CHORD if label == NO_CHORD else None
    match = LABEL.fullmatch(label)
    if match is None or (match["shorthand"] or "") not in SHORTHANDS:
        raise ValueError(f"{label!r} is no chord label")
    root = (SEMITONES[match["root"]] + _alteration(match["signs"])) % 12
    # Degrees alone, C:(1,5), spell the chord out.
    is_spelt = match["degrees"] is not None and not match["shorthand"]
    notes = {0} if is_spelt else set(SHORTHANDS[match["shorthand"] or ""])
    for degree in (match["degrees"] or "").split(",") if match["degrees"] else []:
        note = _semitones(degree.strip().lstrip("*"))
        (notes.discard if degree.strip().startswith("*") else notes.add)(note)
    if match["bass"]:
        notes.add(_semitones(match["bass"]) % 12)
    is_major, is_minor = notes >= MAJOR, notes >= MINOR
    if is_major == is_minor:
        return None
    return CHORDS[root if is_major else root + 12]


def _alteration(signs: str) -> int:
    return signs.count("#") - signs.count("b")


def _semitones(degree: str) -> int:
    """Semitones above the root; a ninth and all beyond have more than 12, so that they are no part of a triad."""
    match = re.fullmatch(r"([b#]*)([1-9]\d?)", degree)
    if match is None:
        raise ValueError(f"{degree!r} is no degree of a chord")
    octaves, step = divmod(int(match[2]) - 1, 7)
    within = DEGREES[step] + _alteration(match[1])
    return within + 12 * octaves if octaves else within % 12

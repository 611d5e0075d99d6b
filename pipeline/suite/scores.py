"""Scores and tunes of music21's corpus: what their files say, their notes, and how they are played."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mert_foundry.pipeline.probe_sets.pitch_names import SEMITONES
from mert_foundry.pipeline.suite.fonts import INSTRUMENT_FAMILIES, font_path, pitched_programs
from mert_foundry.pipeline.suite.rendering import DRUM_CHANNEL, Note, as_messages, render
from mert_foundry.pipeline.suite.sources import SourceError, Sources, missing, score_corpus

MODES = {"": "major", "maj": "major", "major": "major", "m": "minor", "min": "minor", "minor": "minor"}
CONTOUR_NOTES = 16  # pieces whose melodies begin with the same steps are one piece
LETTERS = "".join(SEMITONES)  # C to B
# What is no note in a line of ABC: chord names and texts, decorations, grace notes, inline fields, comments.
NO_NOTES = re.compile(r'"[^"]*"|![^!]*!|\+[^+]*\+|\{[^}]*\}|\[[A-Za-z]:[^\]]*\]|%.*')
ABC_NOTE = re.compile(r"([A-Ga-g])([,']*)")


@dataclass(frozen=True)
class Tune:
    """A tune in ABC notation: `key` as (tonic 0 to 11, mode), None for other modes; the end of `text` is the tune's."""

    text: str
    key: tuple[int, str] | None
    rhythm: str
    group: str


@dataclass(frozen=True)
class Chorale:
    """A score of Bach in MusicXML, relative to the corpus."""

    path: str
    key: tuple[int, str]
    group: str


class WrittenNote(NamedTuple):
    """A note of a score, in quarter notes."""

    start: float
    length: float
    pitch: int


def read_tunes(books: Sequence[str]) -> list[Tune]:
    """All tunes of some folders of the corpus, in the order of files and numbers; those without notes are absent."""
    tunes = []
    for book in books:
        for path in sorted((score_corpus() / book).glob("*.abc")):
            for text in re.split(r"\n(?=X:)", "\n" + path.read_text(encoding="utf-8", errors="replace")):
                if tune := parse_tune(text.strip()):
                    tunes.append(tune)
    if not tunes:
        raise SourceError(f"no tune found in {score_corpus()}: {missing('music21', Path())}")
    return tunes


def parse_tune(text: str) -> Tune | None:
    """One tune; None without a key or with too few notes to tell it from others."""
    found = re.search(r"^K:[ \t]*([A-G])([#b]?)[ \t]*(\w*)", text, flags=re.MULTILINE)
    if not text.startswith("X:") or not found:
        return None
    rhythm = re.search(r"^R:[ \t]*(.*)$", text, flags=re.MULTILINE)
    steps = list(_diatonic_steps(text[found.end() :]))
    if len(steps) < CONTOUR_NOTES:
        return None
    letter, accidental, mode = found.groups()
    tonic = (SEMITONES[letter] + {"#": 1, "b": -1, "": 0}[accidental]) % 12
    # A tune that does not end on the tonic may be in another key than its signature says.
    known = MODES.get(mode.lower()) if LETTERS[steps[-1] % 7] == letter else None
    return Tune(
        text, (tonic, known) if known else None, rhythm.group(1).strip().lower() if rhythm else "", contour(steps)
    )


def _diatonic_steps(body: str) -> Iterator[int]:
    """The notes of ABC as steps of the scale, an octave being 7."""
    for line in body.splitlines():
        if re.match(r"[A-Za-z]:", line):
            continue
        for letter, octave in ABC_NOTE.findall(NO_NOTES.sub("", line)):
            step = LETTERS.index(letter.upper()) + (7 if letter.islower() else 0)
            yield step + 7 * (octave.count("'") - octave.count(","))


def contour(steps: Sequence[int]) -> str:
    """A name for all melodies that begin with the same intervals."""
    intervals = np.diff(np.array(steps[:CONTOUR_NOTES])).tolist()
    return hashlib.sha256(str(intervals).encode()).hexdigest()[:12]


def read_chorale(path: Path) -> Chorale | None:
    """A score whose signature and last bass note agree on a key; None for others, such as those in church modes."""
    score = parse_score(path)
    signature = next(iter(score.flatten().getElementsByClass("KeySignature")), None)
    parts = written_parts(score)
    if signature is None or len(parts) < 2 or len(parts[0]) < CONTOUR_NOTES:
        return None
    bass = max(parts[-1], key=lambda note: note.start).pitch % 12
    major = signature.sharps * 7 % 12
    modes = {major: "major", (major + 9) % 12: "minor"}
    if bass not in modes:
        return None
    melody = [note.pitch for note in sorted(parts[0])]
    return Chorale(path.relative_to(score_corpus()).as_posix(), (bass, modes[bass]), contour(melody))


def parse_score(source: Path | str):  # noqa: ANN201 - music21 has no types
    """A file of MusicXML, or a tune in ABC, as music21 reads it. Raises ValueError for what it cannot read."""
    from music21 import converter
    from music21.exceptions21 import Music21Exception

    try:
        if isinstance(source, Path):
            return converter.parse(source, forceSource=True, storePickle=False)
        return converter.parse(source, format="abc", forceSource=True, storePickle=False)
    except (Music21Exception, IndexError, KeyError, ValueError, ZeroDivisionError) as error:
        name = source if isinstance(source, Path) else source.splitlines()[:2]
        raise ValueError(f"music21 cannot read {name}: {error}") from error


def written_parts(score) -> list[list[WrittenNote]]:  # noqa: ANN001
    """The notes of each part that has any, ties joined."""
    parts = []
    for part in score.parts:
        part.stripTies(inPlace=True)
        notes = [
            WrittenNote(float(element.offset), float(element.quarterLength), int(pitch.midi))
            for element in part.flatten().notes
            if element.quarterLength > 0
            for pitch in getattr(element, "pitches", ())
        ]
        if notes:
            parts.append(notes)
    return parts


@dataclass(frozen=True)
class ScoreRecipe:
    """A window of a score or tune, transposed and played by General MIDI programs.

    source: a path in the corpus, or a tune in ABC. rate: notes of the first part per second, on average, which sets the
    tempo.
    """

    font: str
    source: str
    transpose: int
    programs: tuple[int, ...]
    rate: float
    seconds: float

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        score = parse_score(self.source if self.source.startswith("X:") else score_corpus() / self.source)
        parts = written_parts(score)
        if not parts:
            raise ValueError(f"music21 finds no notes in {self.source.splitlines()[0]}")
        length = max(note.start + note.length for part in parts for note in part)
        quarter = len(parts[0]) / length / self.rate  # seconds
        start = random.uniform(0.0, max(0.0, length * quarter - self.seconds))
        played = []
        for index, part in enumerate(parts):
            channel = index if index < DRUM_CHANNEL else index + 1
            notes = list(self._play(part, length, quarter, start + self.seconds, random))
            played.append((channel % 16, self.programs[index % len(self.programs)], notes))
        return render(font_path(sources, self.font), as_messages(played), start, self.seconds)

    def _play(
        self, part: Sequence[WrittenNote], length: float, quarter: float, end: float, random: np.random.Generator
    ) -> Iterator[Note]:
        """The notes in seconds; a piece that is too short begins again."""
        for turn in range(int(end / (length * quarter)) + 1):
            for note in part:
                begin = (note.start + turn * length) * quarter
                stop = begin + 0.95 * note.length * quarter
                yield Note(begin, stop, note.pitch + self.transpose, int(random.integers(70, 105)))


def choose_programs(random: np.random.Generator, most: int) -> tuple[int, ...]:
    """One to `most` programs that sound as written."""
    families = random.choice(list(INSTRUMENT_FAMILIES), int(random.integers(1, most + 1)))
    return tuple(int(random.choice(pitched_programs(str(family)))) for family in families)

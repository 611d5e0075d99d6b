"""Accompaniments by MMA: a groove, a tempo and drawn chords give music whose beats and chords are known exactly."""

import functools
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mert_foundry.pipeline.probe_sets.pitch_names import NO_CHORD, TONICS, TRIADS
from mert_foundry.pipeline.probe_sets.task import Beats, Segment
from mert_foundry.pipeline.suite.fonts import font_path
from mert_foundry.pipeline.suite.rendering import DRUM_CHANNEL, TimedMessage, read_midi, render, with_programs
from mert_foundry.pipeline.suite.sources import Sources, run_mma

LIBRARY = "usr/share/mma/lib/stdlib"
# The style files of MMA's standard library with three or four beats a bar, by ear and name.
STYLES = {
    "swing": "swing easyswing fastswing bigband charleston foxtrot jive quickstep dixie",
    "modern_jazz": "bebop modernjazz jazzcombo jazzguitar mellowjazz nitejazz evansish slowjazz folkyjazz"
    " descendingjazz",
    "latin": "beguine bolero chacha mambo merengue rhumba salsa son tango lighttango calypso jazzrhumba bossanova"
    " samba",
    "rock": "50srock 60srock basicrock bubblerock folkrock 8beat softrock twist rock-128 boneym",
    "blues": "blues blues128 countryblues fastblues slowblues boggiewoggie shuffleboggie",
    "country_folk": "bluegrass bluefolk folk hillcountry countryswing westernswing slowcountry zydeco",
    "waltz": "waltz fastwaltz frenchwaltz jazzwaltz countrywaltz broadwaywaltz vienesewaltz latinwaltz rockwaltz",
    "march_polka": "march bwmarch dixiemarch polka strut",
    "ballad": "ballad folkballad guitarballad pianoballad popballad rockballad stringballad ballad128 rb-ballad",
}
NOT_A_GROOVE = re.compile(r"(intro|end|ending|fill|break)\d*$", re.IGNORECASE)
TEMPO_BPM = (60.0, 200.0)
CHORD_CLASSES = (NO_CHORD, *TRIADS)
REST_SHARE = 0.3  # of the pieces have a bar of drums alone
HALF_BAR_SHARE = 0.3  # of the bars have two chords
# By scale: the degrees (semitones above the tonic, quality) and which may follow which.
MAJOR = {
    (0, "maj"): [(5, "maj"), (7, "maj"), (9, "min"), (2, "min"), (4, "min"), (9, "maj")],
    (2, "min"): [(7, "maj"), (5, "min"), (4, "min")],
    (4, "min"): [(9, "min"), (5, "maj")],
    (5, "maj"): [(7, "maj"), (0, "maj"), (2, "min"), (5, "min")],
    (5, "min"): [(0, "maj")],
    (7, "maj"): [(0, "maj"), (9, "min")],
    (9, "min"): [(2, "min"), (5, "maj"), (4, "min")],
    (9, "maj"): [(2, "min")],
}
MINOR = {
    (0, "min"): [(5, "min"), (7, "maj"), (8, "maj"), (10, "maj"), (3, "maj")],
    (3, "maj"): [(8, "maj"), (5, "min")],
    (5, "min"): [(7, "maj"), (0, "min"), (10, "maj")],
    (7, "maj"): [(0, "min"), (8, "maj")],
    (8, "maj"): [(10, "maj"), (3, "maj"), (7, "maj")],
    (10, "maj"): [(3, "maj"), (0, "min")],
}
SPELLINGS = {"maj": ("", "", "7", "M7"), "min": ("m", "m", "m7")}


@dataclass(frozen=True)
class Groove:
    """A groove of a style file, and the beats of its bar."""

    style: str
    file: str
    name: str
    beats: int


@dataclass(frozen=True)
class Accompaniment:
    """A piece as MMA gets it, with its labels. chords: (start beat, end beat, class)."""

    groove: Groove
    tempo: float
    seed: int
    bars: tuple[str, ...]
    chords: tuple[tuple[float, float, str], ...]

    def text(self) -> str:
        """The piece in MMA's language."""
        bars = "\n".join(f"{number} {bar}" for number, bar in enumerate(self.bars, start=1))
        return f"RndSeed {self.seed}\nTempo {self.tempo}\nGroove {self.groove.name}\n{bars}\n"

    def beats(self, start: float, seconds: float) -> Beats:
        """The beats of a window, in seconds from its start."""
        length = 60 / self.tempo
        numbers = range(int(np.ceil(start / length)), int(np.ceil((start + seconds) / length)))
        return Beats(times=tuple(round(number * length - start, 5) for number in numbers), tempo=self.tempo)

    def segments(self, start: float, seconds: float) -> tuple[Segment, ...]:
        """The chords of a window, in seconds from its start."""
        length = 60 / self.tempo
        found = []
        for first, last, label in self.chords:
            begin, end = max(0.0, first * length - start), min(seconds, last * length - start)
            if end > begin:
                found.append(Segment(start=round(begin, 5), end=round(end, 5), label=label))
        return tuple(found)


@functools.cache
def read_grooves(sources: Sources) -> tuple[Groove, ...]:
    """The grooves of all style files of STYLES, in order. Raises ValueError for a file of another metre."""
    grooves = []
    for style, files in STYLES.items():
        for file in files.split():
            text = sources.path("mma", LIBRARY, f"{file}.mma").read_text(encoding="latin-1")
            beats = 3 if style == "waltz" else 4
            stated = {int(value) for value in re.findall(r"^\s*Time\s+(\d+)", text, flags=re.MULTILINE)}
            if not stated <= {beats}:  # a file that extends another one states none
                raise ValueError(f"mma: {file}.mma has bars of {sorted(stated)} beats, not of {beats}")
            names = re.findall(r"^\s*DefGroove\s+(\S+)", text, flags=re.MULTILINE)
            kept = [name for name in names if not NOT_A_GROOVE.search(name)]
            grooves += [Groove(style, file, name, beats) for name in kept]
    return tuple(grooves)


def draw_piece(groove: Groove, seconds: float, random: np.random.Generator) -> Accompaniment:
    """A piece of at least `seconds` and three bars, its tempo uniform in the logarithm."""
    tempo = round(float(np.exp(random.uniform(*np.log(TEMPO_BPM)))), 2)
    count = int(np.ceil(seconds * tempo / 60 / groove.beats)) + 3
    tonic = int(random.integers(12))
    steps = MAJOR if random.random() < 0.6 else MINOR
    degree = next(iter(steps))
    rest = int(random.integers(2, count)) if random.random() < REST_SHARE else -1
    bars, chords = [], []
    for bar in range(count):
        halves = 2 if groove.beats == 4 and random.random() < HALF_BAR_SHARE else 1
        names = []
        for half in range(halves):
            first = bar * groove.beats + half * groove.beats / halves
            label, name = _name_chord(tonic, degree, random)
            names.append(name)
            chords.append((first, first + groove.beats / halves, NO_CHORD if bar == rest else label))
            following = steps[degree]
            degree = following[int(random.integers(len(following)))]
        bars.append("z" if bar == rest else " / ".join(names))
    return Accompaniment(groove, tempo, int(random.integers(1, 2**31)), tuple(bars), tuple(chords))


def _name_chord(tonic: int, degree: tuple[int, str], random: np.random.Generator) -> tuple[str, str]:
    """The class of a chord, and one of its spellings with or without a seventh."""
    semitones, quality = degree
    root = TONICS[(tonic + semitones) % 12]
    return f"{root}:{quality}", root + str(random.choice(SPELLINGS[quality]))


def accompany(sources: Sources, piece: Accompaniment) -> list[TimedMessage]:
    """The messages that MMA writes for a piece."""
    with tempfile.TemporaryDirectory(prefix="mert-mma-") as folder:
        source, target = Path(folder) / "piece.mma", Path(folder) / "piece.mid"
        source.write_text(piece.text())
        run_mma(sources.path("mma"), "-f", str(target), str(source))
        return read_midi(target.read_bytes())


@dataclass(frozen=True)
class AccompanimentRecipe:
    """A window of a piece: as the groove has it, with other programs, or without drums."""

    font: str
    piece: Accompaniment
    start: float
    seconds: float
    programs: tuple[int, ...] = ()
    drums: bool = True

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        messages: Sequence[TimedMessage] = accompany(sources, self.piece)
        if self.programs:
            messages = with_programs(messages, self.programs)
        if not self.drums:
            messages = [timed for timed in messages if timed.message.channel != DRUM_CHANNEL]
        return render(font_path(sources, self.font), messages, self.start, self.seconds)

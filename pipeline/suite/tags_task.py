"""Which instrument families play: pieces of two games and accompaniments, ten seconds each."""

import functools
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mert_foundry.pipeline.probe_sets.task import SPLITS, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.suite.accompaniment import STYLES, AccompanimentRecipe, accompany, draw_piece
from mert_foundry.pipeline.suite.accompaniment_tasks import choose_grooves, split_styles
from mert_foundry.pipeline.suite.augmentation import ROOM
from mert_foundry.pipeline.suite.clip import (
    SHARES,
    AudioPlan,
    FamilyPlan,
    Plans,
    Recipe,
    Size,
    TaskPlan,
    beside,
    split_groups,
)
from mert_foundry.pipeline.suite.fonts import FONT_PACKAGES, INSTRUMENT_FAMILIES, choose_font, font_path
from mert_foundry.pipeline.suite.rendering import DRUM_CHANNEL, TimedMessage, read_midi, render
from mert_foundry.pipeline.suite.sources import Sources

PACKAGES = (*FONT_PACKAGES, "freedoom", "mma", "openttd-openmsx", "tinysoundfont")
TASKS = ("tags",)
SECONDS = 10.0
CLIPS: dict[Size, int] = {"small": 108, "full": 1500}
ACCOMPANIED = 3  # every third clip is an accompaniment
LEAST_NOTES = 12  # a window with fewer is not taken
LEAST_SHARE = 0.1  # of the notes of a window that a family plays to be its tag
WINDOWS = 20  # tries for a window with enough notes
WADS = ("freedoom1.wad", "freedoom2.wad")
# By number of the General MIDI family; both kinds of synthesizers are one tag, ethnic programs none.
TAGS_OF = {
    number: "synth" if name.startswith("synth") else name
    for name, number in INSTRUMENT_FAMILIES.items()
    if name != "ethnic"
}
CLASSES = (*dict.fromkeys(TAGS_OF.values()), "drums")


@dataclass(frozen=True)
class GamePiece:
    """A MIDI piece of a game, by the hash of its content; `lump` is a file, and in it an offset and a size."""

    group: str
    lump: tuple[Path, int, int]

    def read(self) -> list[TimedMessage]:
        """Its messages."""
        return read_lump(*self.lump)


@functools.lru_cache(maxsize=256)
def read_lump(path: Path, offset: int, size: int) -> list[TimedMessage]:
    """The messages of a MIDI file within a file; kept, since many windows are drawn from one piece."""
    with open(path, "rb") as file:
        file.seek(offset)
        return read_midi(file.read(size))


@dataclass(frozen=True)
class GameRecipe:
    """A window of a game's piece."""

    font: str
    piece: GamePiece
    start: float

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        return render(font_path(sources, self.font), self.piece.read(), self.start, SECONDS)


def plan(plans: Plans) -> FamilyPlan:
    """Two thirds from games, split by piece; a third accompaniments, split by style file."""
    pieces = game_pieces(plans.sources)
    splits = split_groups([piece.group for piece in pieces], plans.random("tags", "splits"))
    audio, clips = [], []
    for split in SPLITS:
        own = [piece for piece in pieces if splits[piece.group] == split]
        for index in range(round(CLIPS[plans.size] * SHARES[split])):
            random = plans.random("tags", split, index)
            if index % ACCOMPANIED == ACCOMPANIED - 1:
                drawn = _draw_accompaniment(plans, split, index, random)
            else:
                drawn = _draw_window(own[index % len(own)], split, random)
            recipe, tags, group = drawn
            path = f"audio/tags/{split}-{index:04d}.ogg"
            audio.append(AudioPlan(path, SECONDS, recipe, ROOM))
            clips.append(ProbeClip(path=beside(path), label=tags, split=split, track=path, group=group))
    task = ProbeTask(
        name="tags",
        kind="multilabel",
        classes=CLASSES,
        metrics=("average_precision", "roc_auc"),
        published_as="MTG-Jamendo instrument",
    )
    return FamilyPlan((TaskPlan(task, tuple(clips)),), tuple(audio))


def _draw_accompaniment(
    plans: Plans, split: Split, index: int, random: np.random.Generator
) -> tuple[Recipe, tuple[str, ...], str]:
    style = list(STYLES)[index // ACCOMPANIED % len(STYLES)]
    grooves = choose_grooves(plans, style, split, split_styles(plans))
    groove = grooves[int(random.integers(len(grooves)))]
    start = random.uniform(0.0, 4.0)
    piece = draw_piece(groove, start + SECONDS, random)
    recipe = AccompanimentRecipe(choose_font(random, split, "", None), piece, start, SECONDS)
    return recipe, find_tags(accompany(plans.sources, piece), start), f"style-{groove.file}"


def _draw_window(piece: GamePiece, split: Split, random: np.random.Generator) -> tuple[Recipe, tuple[str, ...], str]:
    """A window with enough notes. Raises ValueError when a piece has none."""
    messages = piece.read()
    length = messages[-1].time
    for _ in range(WINDOWS):
        start = round(random.uniform(0.0, max(0.0, length - SECONDS)), 3)
        if tags := find_tags(messages, start):
            return GameRecipe(choose_font(random, split, "", None), piece, start), tags, f"game-{piece.group}"
    raise ValueError(f"tags: no window of {SECONDS} s with {LEAST_NOTES} notes in {piece.lump[0]} at {piece.lump[1]}")


def find_tags(messages: list[TimedMessage], start: float) -> tuple[str, ...]:
    """The families that play a tenth of a window's notes or more, in the order of CLASSES; none when it
    has few notes.
    """
    programs = [0] * 16
    counts = dict.fromkeys(CLASSES, 0)
    total = 0
    for time, message in messages:
        if message.type == "program_change":
            programs[message.channel] = message.program
        if message.type == "note_on" and message.velocity and start <= time < start + SECONDS:
            total += 1
            tag = "drums" if message.channel == DRUM_CHANNEL else TAGS_OF.get(programs[message.channel] // 8)
            if tag:
                counts[tag] += 1
    return tuple(tag for tag in CLASSES if total >= LEAST_NOTES and counts[tag] >= LEAST_SHARE * total)


@functools.cache
def game_pieces(sources: Sources) -> tuple[GamePiece, ...]:
    """Pieces of both games that differ, in the order of their hashes."""
    found: dict[str, GamePiece] = {}
    for wad in WADS:
        path = sources.path("freedoom", "usr/share/games/doom", wad)
        for offset, size in music_lumps(path):
            _add(found, path, offset, size)
    for path in sorted(sources.path("openttd-openmsx", "usr/share/games/openttd/baseset/openmsx").glob("*.mid")):
        _add(found, path, 0, path.stat().st_size)
    return tuple(found[group] for group in sorted(found))


def _add(found: dict[str, GamePiece], path: Path, offset: int, size: int) -> None:
    """Note a piece that is MIDI and long enough."""
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if content[:4] == b"MThd":
        group = hashlib.sha256(content).hexdigest()[:12]
        piece = GamePiece(group, (path, offset, size))
        if group not in found and piece.read()[-1].time > 2 * SECONDS:
            found[group] = piece


def music_lumps(wad: Path) -> list[tuple[int, int]]:
    """(offset, size) of a Doom WAD's lumps whose name begins with D_: its music. Format: doomwiki.org/wiki/WAD."""
    content = wad.read_bytes()
    magic, count, directory = struct.unpack_from("<4sii", content)
    if magic not in (b"IWAD", b"PWAD"):
        raise ValueError(f"{wad}: begins with {magic!r}, not with IWAD or PWAD")
    lumps = [struct.unpack_from("<ii8s", content, directory + 16 * index) for index in range(count)]
    return [(offset, size) for offset, size, name in lumps if name.startswith(b"D_")]

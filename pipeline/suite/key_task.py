"""The key of a piece: chorales of Bach, and tunes of folk song books; tunes are tested as a condition of their own."""

from collections.abc import Sequence

import numpy as np

from mert_foundry.pipeline.probe_sets.pitch_names import KEYS, TONICS
from mert_foundry.pipeline.probe_sets.task import SPLITS, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.suite.augmentation import ROOM
from mert_foundry.pipeline.suite.clip import (
    SHARES,
    AudioPlan,
    FamilyPlan,
    Plans,
    Size,
    TaskPlan,
    beside,
    shuffled,
    split_groups,
)
from mert_foundry.pipeline.suite.fonts import FONT_PACKAGES, choose_font
from mert_foundry.pipeline.suite.scores import (
    Chorale,
    ScoreRecipe,
    Tune,
    choose_programs,
    read_chorale,
    read_tunes,
    score_corpus,
)

PACKAGES = (*FONT_PACKAGES, "music21", "tinysoundfont")
TASKS = ("key",)
SECONDS = 15.0
BOOKS = ("essenFolksong", "oneills1850", "ryansMammoth")
CLIPS: dict[Size, int] = {"small": 192, "full": 1800}
CHORALES: dict[Size, int] = {"small": 120, "full": 408}  # scores that are read: reading all of them takes minutes
MELODY = "melody"  # the condition of test clips of a single voice, whose key is ambiguous
# Of each kind of piece: notes per second of the first part, lowest and highest, and most programs.
RATES = {"chorale": (1.2, 2.5), "tune": (2.5, 5.0)}
VOICES = {"chorale": 4, "tune": 2}


def plan(plans: Plans) -> FamilyPlan:
    """Half of the clips from chorales, half from tunes; every key equally often in each split, by transposition."""
    audio: list[AudioPlan] = []
    clips: list[ProbeClip] = []
    for kind, pieces in (("chorale", chorales(plans)), ("tune", tunes(plans))):
        splits = split_groups([piece.group for piece in pieces], plans.random("key", kind, "splits"))
        for split in SPLITS:
            condition = MELODY if kind == "tune" and split == "test" else ""
            random = plans.random("key", kind, split)
            for index, (piece, label) in enumerate(_assign(plans, kind, split, pieces, splits)):
                path = f"audio/key/{split}-{kind}-{index:04d}.ogg"
                recipe = _draw_recipe(kind, split, condition, piece, label, random)
                audio.append(AudioPlan(path, SECONDS, recipe, ROOM))
                clips.append(
                    ProbeClip(
                        path=beside(path),
                        label=label,
                        split=split,
                        track=path,
                        group=f"{kind}-{piece.group}",
                        condition=condition,
                    )
                )
    task = ProbeTask(
        name="key",
        kind="multiclass",
        classes=KEYS,
        metrics=("weighted_key_score", "accuracy"),
        published_as="GiantSteps key",
    )
    return FamilyPlan((TaskPlan(task, tuple(clips)),), tuple(audio))


def _draw_recipe(
    kind: str, split: Split, condition: str, piece: Chorale | Tune, label: str, random: np.random.Generator
) -> ScoreRecipe:
    """A piece in the key of its label, with programs, font and tempo that are drawn."""
    programs = choose_programs(random, VOICES[kind])
    return ScoreRecipe(
        font=choose_font(random, split, condition, programs),
        source=piece.path if isinstance(piece, Chorale) else piece.text,
        transpose=_shift(piece, label),
        programs=programs,
        rate=random.uniform(*RATES[kind]),
        seconds=SECONDS,
    )


def chorales(plans: Plans) -> list[Chorale]:
    """Scores of Bach with a certain key."""
    paths = shuffled(sorted((score_corpus() / "bach").glob("*.mxl")), plans.random("key", "chorales"))
    read = (read_chorale(path) for path in paths[: CHORALES[plans.size]])
    return [chorale for chorale in read if chorale]


def tunes(plans: Plans) -> list[Tune]:
    """Tunes in major or minor that end on their tonic, in a random order."""
    found = [tune for tune in read_tunes(BOOKS) if tune.key]
    return shuffled(found, plans.random("key", "tunes"))


def _assign(
    plans: Plans, kind: str, split: Split, pieces: Sequence[Chorale | Tune], splits: dict[str, Split]
) -> list[tuple[Chorale | Tune, str]]:
    """Pieces of a split with the keys that they are transposed to; when all pieces were used, the first comes again."""
    count = round(CLIPS[plans.size] / 2 * SHARES[split])
    assigned = []
    for mode in ("major", "minor"):
        own = [piece for piece in pieces if splits[piece.group] == split and piece.key and piece.key[1] == mode]
        if not own:
            raise ValueError(f"key: no {kind} in {mode} falls into {split}; take another seed")
        for index in range(count // 2):
            assigned.append((own[index % len(own)], f"{TONICS[index % len(TONICS)]} {mode}"))
    return assigned


def _shift(piece: Chorale | Tune, label: str) -> int:
    """Semitones from a piece's key to a label, -6 to 5."""
    assert piece.key is not None
    return (TONICS.index(label.split()[0]) - piece.key[0] + 6) % 12 - 6

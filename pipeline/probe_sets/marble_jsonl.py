"""Any set in the JSONL of MARBLE v2: `NAME.train.jsonl`, `NAME.val.jsonl`, `NAME.test.jsonl`, one line a file.

A line has `audio_path`, `label`, `num_samples`, `sample_rate`, and `ori_uid` where several files are of one song. Paths
begin at the folder that MARBLE is started in (`data/GTZAN/...`), so leading folders are removed until the first file is
found below the set's own folder. Names, classes and lengths of clips of MARBLE's own sets stand below; of another set
the form of the labels tells the kind, and the labels of all three files are its classes. The task is called `marble_`
and the name in small letters.

The split is taken as it is: whether a song or an artist lies in two of them is not looked at.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from mert_foundry.pipeline.probe_sets import emomusic, gtzan, magnatagatune, mtg_jamendo
from mert_foundry.pipeline.probe_sets.checks import check_audio, check_clips
from mert_foundry.pipeline.probe_sets.chord_labels import CHORDS, chord_class
from mert_foundry.pipeline.probe_sets.pitch_names import KEYS
from mert_foundry.pipeline.probe_sets.tables import find, read_json_lines
from mert_foundry.pipeline.probe_sets.task import (
    Beats,
    Kind,
    Label,
    LabelledSet,
    Metric,
    ProbeClip,
    ProbeTask,
    Segment,
    Split,
)
from mert_foundry.pipeline.storage.documents import first_error

FILE_OF_SPLIT: dict[Split, str] = {"train": "train", "valid": "val", "test": "test"}
METRICS: dict[Kind, tuple[Metric, ...]] = {
    "multiclass": ("accuracy", "macro_accuracy"),
    "multilabel": ("roc_auc", "average_precision"),
    "regression": ("r2",),
    "frame_classes": ("frame_accuracy",),
    "beats": ("beat_f_70ms", "beat_f_20ms", "tempo_accuracy_1", "tempo_accuracy_2"),
}
SECTIONS = ("intro", "verse", "pre-chorus", "chorus", "bridge", "outro", "instrumental")
# Sections that MARBLE counts as another one.
SAME_SECTION = {
    "solo": "instrumental", "pre-chorus_chorus": "chorus", "intro_chorus": "chorus",
    "verse_pre-chorus": "verse", "intro_verse": "verse",
}  # fmt: skip


@dataclass(frozen=True)
class MarbleSet:
    """One of MARBLE's own sets: what its lines do not say.

    drops: lines with labels outside the classes are skipped, not refused. same: labels that count as another. joins:
    predictions of files with the same `ori_uid` are averaged; elsewhere they are one piece, but each has its own label.
    """

    kind: Kind
    classes: tuple[str, ...] = ()
    clip_seconds: float | None = None
    clip_minimum: float = 0.8
    metrics: tuple[Metric, ...] = ()
    drops: bool = False
    same: dict[str, str] = field(default_factory=dict)
    joins: bool = False


KEY_METRICS: tuple[Metric, ...] = ("weighted_key_score", "accuracy")
MARBLE_SETS = {
    "MTT": MarbleSet("multilabel", magnatagatune.TAGS, 30),
    "GS": MarbleSet("multiclass", KEYS, 30, metrics=KEY_METRICS, joins=True),
    "EMO": MarbleSet("regression", emomusic.VALUES, 15),
    "GTZANGenre": MarbleSet("multiclass", gtzan.GENRES, 30.2),
    "GTZANBeatTracking": MarbleSet("beats"),
    "MTGInstrument": MarbleSet("multilabel", mtg_jamendo.INSTRUMENTS, 30),
    "MTGMood": MarbleSet("multilabel", mtg_jamendo.MOODS, 30),
    "MTGGenre": MarbleSet("multilabel", mtg_jamendo.GENRES, 30),
    "MTGTop50": MarbleSet("multilabel", mtg_jamendo.TOP_50, 30),
    "Chords1217": MarbleSet("frame_classes", CHORDS),
    "HookTheoryKey": MarbleSet("multiclass", KEYS, 15, metrics=KEY_METRICS, drops=True),
    "HookTheoryStructure": MarbleSet("multiclass", SECTIONS, 15, clip_minimum=0.1, same=SAME_SECTION),
}
Line = tuple[Split, Path, int, dict]


def task_name(name: str) -> str:
    """`marble_gtzan_beat_tracking` of GTZANBeatTracking."""
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", name)
    return "_".join(["marble", *words]).lower()


def names_in(folder: Path) -> list[str]:
    """Names of the sets of a folder."""
    return sorted(path.name.removesuffix(".train.jsonl") for path in folder.glob("*.train.jsonl"))


def read_marble(folder: Path, name: str) -> LabelledSet:
    """Read the three files of a set.

    Raises:
        FolderError: one of them, or audio that they list, is not there.
        ValueError: a line is not of this form, naming file and line.
    """
    lines: list[Line] = [
        (split, path, number, line)
        for split, suffix in FILE_OF_SPLIT.items()
        for path in (find(folder, f"{name}.{suffix}.jsonl"),)
        for number, line in read_json_lines(path)
    ]
    marble_set = MARBLE_SETS.get(name) or _guess(lines, folder / f"{name}.train.jsonl")
    task = ProbeTask(
        name=task_name(name),
        kind=marble_set.kind,
        classes=marble_set.classes,
        metrics=marble_set.metrics or METRICS[marble_set.kind],
        clip_seconds=marble_set.clip_seconds,
        clip_minimum=marble_set.clip_minimum,
        published_as=f"MARBLE v2 {name}",
    )
    dropped = _folders_above(folder, lines)
    clips, locations = [], []
    for split, path, number, line in lines:
        try:
            label = _label(marble_set, line["label"])
            if label is not None:
                clips.append(_clip(marble_set, line, label, split, dropped))
                locations.append(f"{path} line {number}")
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{path} line {number}: {_fault(error)}") from error
    check_clips(task, clips, locations.__getitem__)
    check_audio(folder, clips, locations.__getitem__)
    return LabelledSet(task=task, root=str(folder), clips=tuple(clips))


def _clip(marble_set: MarbleSet, line: dict, label: Label, split: Split, dropped: int) -> ProbeClip:
    path = "/".join(PurePosixPath(line["audio_path"]).parts[dropped:])
    # The same song may be in two of the published splits.
    song = f"{split}: {line.get('ori_uid', path)}"
    return ProbeClip(
        path=path,
        label=label,
        split=split,
        track=song if marble_set.joins else path,
        group=song,
        end=line["num_samples"] / line["sample_rate"] if marble_set.clip_seconds else None,
    )


def _folders_above(folder: Path, lines: list[Line]) -> int:
    """How many leading parts of the paths lie above the set's folder, by the first file that is there."""
    paths = (PurePosixPath(str(line.get("audio_path", ""))).parts for _, _, _, line in lines[:1])
    for parts in paths:
        for count in range(len(parts)):
            if folder.joinpath(*parts[count:]).exists() and not parts[count].startswith("/"):
                return count
    # No file is there. MARBLE's own lists begin with data/SET/, so the error is about the path after these two folders.
    return 2


def _label(marble_set: MarbleSet, label: object) -> Label | None:
    """A line's label in our form; None for a line that is skipped."""
    if marble_set.kind == "multiclass":
        name = "_".join(label) if isinstance(label, list) else str(label)
        name = marble_set.same.get(name, name)
        return None if marble_set.drops and name not in marble_set.classes else name
    if marble_set.kind == "beats":
        if not isinstance(label, dict):
            raise ValueError(f"a label of beats is {{beat, tempo}}, not {label!r}")
        return Beats(times=tuple(sorted(set(map(float, label["beat"])))), tempo=label.get("tempo") or None)
    if not isinstance(label, list):
        raise ValueError(f"a label of {marble_set.kind} is a list, not {label!r}")
    if marble_set.kind == "frame_classes":
        return tuple(_segments(label))
    return tuple(map(float, label)) if marble_set.kind == "regression" else tuple(map(str, label))


def _segments(label: list[dict]) -> Iterator[Segment]:
    """Stretches of chords that can be scored."""
    for segment in label:
        chord = chord_class(segment["chord_str"])
        if chord is not None and segment["end_time"] > segment["start_time"]:
            yield Segment(start=segment["start_time"], end=segment["end_time"], label=chord)


def _guess(lines: list[Line], path: Path) -> MarbleSet:
    """Kind and classes of a set that is not MARBLE's own, from its labels."""
    labels = [line.get("label") for _, _, _, line in lines]
    first = labels[0] if labels else None
    is_known: dict[Kind, Callable[[object], bool]] = {
        "multiclass": lambda label: isinstance(label, str),
        "beats": lambda label: isinstance(label, dict) and "beat" in label,
        "frame_classes": lambda label: isinstance(label, list) and bool(label) and isinstance(label[0], dict),
        "regression": lambda label: isinstance(label, list) and bool(label) and isinstance(label[0], int | float),
        "multilabel": lambda label: isinstance(label, list) and all(isinstance(name, str) for name in label),
    }
    kind = next((kind for kind, fits in is_known.items() if fits(first)), None)
    if kind is None:
        raise ValueError(f"{path} line 1: a label like {str(first)[:60]} is of no kind that is known here")
    songs = {(split, line.get("ori_uid"), str(line.get("label"))) for split, _, _, line in lines if "ori_uid" in line}
    joins = len({song[:2] for song in songs}) == len(songs)  # no song has two labels
    if kind == "multiclass":
        return MarbleSet(kind, tuple(sorted({str(label) for label in labels})), joins=joins)
    if kind == "multilabel":
        names = {str(name) for label in labels if isinstance(label, list) for name in label}
        return MarbleSet(kind, tuple(sorted(names)), joins=joins)
    if kind == "regression" and isinstance(first, list):
        return MarbleSet(kind, tuple(f"value_{index}" for index in range(len(first))), joins=joins)
    return MarbleSet(kind, CHORDS if kind == "frame_classes" else ())


def _fault(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no field {error}"
    return first_error(error) if isinstance(error, ValidationError) else str(error)

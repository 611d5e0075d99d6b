"""GiantSteps key (Knees and others, ISMIR 2015): 24 keys of two-minute previews of electronic dance music.

Training and validation come from the GiantSteps MTG key set (Faraldo), test is the GiantSteps key set. Of the first,
tracks count whose annotator was sure (C = 2) of a single key (Korzeniowski and Widmer, 2018). The split by artists is
Castellon's (jukemir, ISMIR 2021), which MARBLE took over: by SHA-1 of the artist's name, 100 train to 16 valid; who
made a track with a valid artist is valid too, over two rounds.

MARBLE picks for each model, on the validation split, the rule that joins the clips of a song (vote, maximum, mean
logit, mean probability); here it is always the mean.
"""

from collections.abc import Iterable
from hashlib import sha1
from pathlib import Path

from mert_foundry.pipeline.probe_sets.pitch_names import KEYS
from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.tables import find, find_clone, read_rows, read_text
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask, Split

FLATS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
TRAINING, TEST = "giantsteps-mtg-key-dataset", "giantsteps-key-dataset"
TRAIN_SHARE, VALID_SHARE = 100, 16
ROUNDS = 2  # of calling collaborators of valid artists valid


def read_clips(root: Path) -> list[ProbeClip]:
    """Tracks of both folders, uncut."""
    return [*_training_clips(find_clone(root, TRAINING)), *_test_clips(find_clone(root, TEST))]


def split_artists(tracks: Iterable[tuple[str, ...]]) -> dict[str, Split]:
    """The split of each artist, from the artists of all tracks in the order of the table."""
    tracks = list(tracks)
    splits: dict[str, Split] = {}
    for artist in (artist for track in tracks for artist in track):
        draw = int(sha1(artist.lower().encode()).hexdigest(), 16) % (TRAIN_SHARE + VALID_SHARE)
        splits[artist] = "train" if draw < TRAIN_SHARE else "valid"
    for _ in range(ROUNDS):
        for track in tracks:
            if any(splits[artist] == "valid" for artist in track):
                splits |= dict.fromkeys(track, "valid")
    return splits


def _training_clips(folder: Path) -> list[ProbeClip]:
    annotations = folder / "annotations"
    artists = {
        row["ID"]: tuple(artist.strip() for artist in row["ARTIST"].split(","))
        for _, row in read_rows(find(annotations, "beatport_metadata.txt"), ("ID", "ARTIST"), delimiter="\t")
    }
    splits = split_artists(artists.values())
    clips = []
    table = find(annotations, "annotations.txt")
    for number, row in read_rows(table, ("ID", "MANUAL KEY", "C"), delimiter="\t"):
        if row["C"] != "2" or "/" in row["MANUAL KEY"]:
            continue
        if row["ID"] not in artists:
            raise ValueError(f"{table} line {number}: track {row['ID']} is not in beatport_metadata.txt")
        first = artists[row["ID"]][0]
        clips.append(_clip(folder.name, row["ID"], row["MANUAL KEY"], splits[first], group=f"artist {first}"))
    return clips


def _test_clips(folder: Path) -> list[ProbeClip]:
    keys = sorted(find(folder, "annotations/key").glob("*.LOFI.key"))
    return [
        _clip(folder.name, (uid := key.name.split(".")[0]), read_text(key), "test", group=f"track {uid}")
        for key in keys
    ]


def _clip(folder: str, uid: str, key: str, split: Split, group: str) -> ProbeClip:
    tonic, _, mode = key.strip().partition(" ")
    return ProbeClip(
        path=f"{folder}/audio/{uid}.LOFI.mp3",
        label=f"{FLATS.get(tonic, tonic)} {mode}",
        split=split,
        track=uid,
        group=group,
    )


TASKS = (
    PublishedTask(
        task=ProbeTask(
            name="giantsteps_key",
            kind="multiclass",
            classes=KEYS,
            metrics=("weighted_key_score", "accuracy"),
            clip_seconds=30,
            clip_minimum=1,
            published_as="MARBLE GS",
        ),
        folder="giantsteps_key",
        page="https://github.com/GiantSteps/giantsteps-key-dataset and .../giantsteps-mtg-key-dataset, audio by"
        " audio_dl.sh",
        files=(f"{TRAINING}*/annotations/annotations.txt", f"{TRAINING}*/audio/*.LOFI.mp3",
               f"{TEST}*/annotations/key/*.LOFI.key", f"{TEST}*/audio/*.LOFI.mp3"),
        split="MTG set: train and valid 100 to 16 by hash of artist; the other set: test",
        counts=(923, 236, 604),
        read_clips=read_clips,
    ),
)  # fmt: skip

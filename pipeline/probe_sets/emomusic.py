"""EmoMusic (Soleymani and others, 2013): arousal and valence of 744 clips of 45 seconds.

Test is the evaluation part of MediaEval 2013; the rest is split by SHA-1 of the artist's name, 8:2 (Castellon and
others, jukemir, ISMIR 2021). 53 of the 409 artists are in the test part and in another, because it was published so.
Values are standardised by mean and standard deviation of training and validation together.

The first 30 seconds of each clip are used, in windows of 5, as in the code of MARBLE v1 (its paper says 45). v2 takes
15.
"""

from hashlib import sha1
from pathlib import Path

import numpy as np

from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.tables import find, read_rows
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask, Split

VALUES = ("arousal", "valence")
HEARD_SECONDS = 30.0
SPLIT_COLUMN = "Mediaeval 2013 set"


def read_clips(root: Path) -> list[ProbeClip]:
    """Clips of `songs_info.csv` with the means of `static_annotations.csv`."""
    songs, ratings = (find(root, name, f"annotations/{name}") for name in ("songs_info.csv", "static_annotations.csv"))
    columns = ("song_id", "Artist", SPLIT_COLUMN)
    rows = {row["song_id"]: row for _, row in read_rows(songs, columns)}
    values: dict[str, tuple[float, float]] = {}
    for number, row in read_rows(ratings, ("song_id", "mean_arousal", "mean_valence")):
        try:
            values[row["song_id"]] = float(row["mean_arousal"]), float(row["mean_valence"])
        except ValueError as error:
            raise ValueError(f"{ratings} line {number}: {error}") from error
    if unrated := [song for song in rows if song not in values]:
        raise ValueError(f"{ratings}: no line for song {unrated[0]} of {songs.name}")
    splits = {song: _split(row) for song, row in rows.items()}
    developed = np.array([values[song] for song in rows if splits[song] != "test"])
    scaled = {song: (np.array(values[song]) - developed.mean(axis=0)) / developed.std(axis=0) for song in rows}
    return [
        ProbeClip(
            path=f"clips_45seconds/{song}.mp3",
            label=tuple(map(float, scaled[song])),
            split=splits[song],
            track=song,
            group=f"{splits[song]}: {simple_artist(row['Artist'])}",
            end=HEARD_SECONDS,
        )
        for song, row in rows.items()
    ]


def simple_artist(name: str) -> str:
    """An artist's name in ASCII letters and single spaces: what is hashed."""
    letters = "".join(sign for sign in name.lower() if sign.isascii() and (sign.isalpha() or sign.isspace()))
    return " ".join(letters.split())


def _split(row: dict[str, str]) -> Split:
    if row[SPLIT_COLUMN] == "evaluation":
        return "test"
    tenth = int(sha1(simple_artist(row["Artist"]).encode()).hexdigest(), 16) % 10
    return "train" if tenth < 8 else "valid"


TASKS = (
    PublishedTask(
        task=ProbeTask(
            name="emomusic",
            kind="regression",
            classes=VALUES,
            metrics=("r2",),
            clip_seconds=5,
            clip_minimum=1,
            published_as="MARBLE EMO",
        ),
        folder="emomusic",
        page="https://cvml.unige.ch/databases/emoMusic/",
        files=("**/songs_info.csv", "**/static_annotations.csv", "clips_45seconds/*.mp3"),
        split="test of MediaEval 2013; train and valid 8 to 2 by hash of artist",
        counts=(504, 115, 125),
        read_clips=read_clips,
    ),
)

"""MUSDB18 source separation (Rafii and others, 2017): four stems of 150 songs, by magnitudes of frames.

The layout is that of MUSDB18-HQ: `train` and `test`, a folder a song, in it `mixture.wav` and the four stems. The 14
validation songs are those of the `musdb` package. Songs are not cut here. MARBLE trains on 64 random excerpts of 6 s a
song, each a new mixture of stems of several songs, and tests on excerpts of 90 s.
"""

from pathlib import Path

from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.tables import find
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.storage.folder_kinds import FolderError

STEMS = ("vocals", "drums", "bass", "other")
SONGS = {"train": 100, "test": 50}
VALIDATION_SONGS = frozenset(
    {
        "ANiMAL - Rockshow",
        "Actions - One Minute Smile",
        "Alexander Ross - Goodbye Bolero",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Fergessen - Nos Palpitants",
        "James May - On The Line",
        "Johnny Lokke - Promises & Lies",
        "Leaf - Summerghost",
        "Meaxic - Take A Step",
        "Patrick Talbot - A Reason To Leave",
        "Skelpolu - Human Mistakes",
        "Traffic Experiment - Sirens",
        "Triviul - Angelsaint",
        "Young Griffo - Pennies",
    }
)


def read_clips(root: Path) -> list[ProbeClip]:
    """One clip a song, the mixture, labelled by the paths of its stems."""
    clips = []
    for part, count in SONGS.items():
        folder = find(root, part)
        if packed := sorted(folder.glob("*.stem.mp4")):
            raise FolderError(
                f"{packed[0]} holds all stems in one file; unpack them with musdbconvert, or take MUSDB18-HQ"
            )
        songs = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(songs) != count:
            raise FolderError(f"{folder} has {len(songs)} songs, not {count}")
        if part == "train" and (lacking := sorted(VALIDATION_SONGS - set(songs))):
            raise FolderError(f"{folder} lacks the validation song {lacking[0]}")
        clips += [_clip(part, song) for song in songs]
    return clips


def _clip(part: str, song: str) -> ProbeClip:
    split: Split = "test" if part == "test" else "valid" if song in VALIDATION_SONGS else "train"
    return ProbeClip(
        path=f"{part}/{song}/mixture.wav",
        label={stem: f"{part}/{song}/{stem}.wav" for stem in STEMS},
        split=split,
        track=song,
        group=song,
    )


TASKS = (
    PublishedTask(
        task=ProbeTask(
            name="musdb18", kind="separation", classes=STEMS, metrics=("sdr",), published_as="MARBLE MUSDB18"
        ),
        folder="musdb18",
        page="https://zenodo.org/records/3338373 (MUSDB18-HQ)",
        files=("train", "test"),
        split="published, 14 validation songs of the musdb package; in songs",
        counts=(86, 14, 50),
        read_clips=read_clips,
    ),
)

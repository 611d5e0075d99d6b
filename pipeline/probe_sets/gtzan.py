"""GTZAN: 10 genres (Tzanetakis and Cook, 2002), and the beats that GTZAN-Rhythm (Marchand and others, 2015) adds.

The split is the "fault-filtered" one (Kereliuk, Sturm and Larsen, 2015) of 930 tracks: no artist lies in two splits,
and exact copies and distorted tracks are excluded. The lists stand below, so files such as `train_filtered.txt` are not
needed.

Audio is `genres/GENRE/GENRE.00000.wav` or, in the first release, `.au`; other mirrors call the folder
`genres_original`. In some of them jazz.00054 cannot be decoded; it is in the training split.

Beats: the paper of MERT names a tolerance of 20 ms, both versions of MARBLE score with 70 ms; both are metrics here.
MARBLE v1 trains on random crops of 10 s and tests on 30 s, v2 tests on 10 s too.
"""

from pathlib import Path

from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.tables import find, read_json
from mert_foundry.pipeline.probe_sets.task import Beats, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.storage.folder_kinds import FolderError

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
# Numbers of the tracks of each genre, as ranges.
TRACKS: dict[Split, dict[str, str]] = {
    "train": {
        "blues": "29-49,73-97",
        "classical": "30-33,43-48,50-67,80-99",
        "country": "19-26,28-29,65-99",
        "disco": "5,15-20,22-37,39-45,47,49,53-54,56-57,59,61,70,73-74,89",
        "hiphop": "2-25,28-29,31-38,41-42,55-61,77-80",
        "jazz": "0-1,11-24,41,47-72",
        "metal": "2-3,5,21,24,35,46-57,59-66,69,71-72,79-80,84,86,89-99",
        "pop": "2-9,11-12,16-20,23-29,31-36,38-42,44,46,49-50,80,97-99",
        "reggae": "0-2,4,6,9,11-12,14-32,42-45,49-51,54-60,63,69",
        "rock": "0-9,16-26,57-70,91-99",
    },
    "valid": {
        "blues": "0-11,50-60",
        "classical": "0-10,68-76",
        "country": "0-7,9-18,27,41-42,45,49",
        "disco": "0,2-4,6-14,46,48,52,67-68,72,75,90,95",
        "hiphop": "81-98",
        "jazz": "2-10,25-32",
        "metal": "0-1,6-11,16-20,36-37,68,76-77,81-82",
        "pop": "10,53,55,58-62,81,83-86",
        "reggae": "61-62,70,72,74,76-78,85,92-99",
        "rock": "38,49-56,71-85",
    },
    "test": {
        "blues": "12-28,61-72,98-99",
        "classical": "11-29,34-41,49,77-79",
        "country": "30-40,43-44,46-48,50-51,53-64",
        "disco": "1,21,58,62-66,69,76-88,91-94,96-97,99",
        "hiphop": "0,26-27,30,40,43-45,51-54,62-75,99",
        "jazz": "73-99",
        "metal": "12-15,22-23,25-33,38-39,67,70,73-75,78,83,85,87-88",
        "pop": "0-1,13-14,43,63-66,69-79,82,88-96",
        "reggae": "34-40,46-48,52-53,64-68,71,79,82-84,87-90",
        "rock": "10-15,27-37,39-48,86-90",
    },
}
AUDIO_FOLDERS = ("genres", "genres_original")
AUDIO_PATTERN = "genres*/*/*.wav or genres*/*/*.au"
PAGE = "http://marsyas.info/downloads/datasets.html"


def listed_tracks() -> list[tuple[str, str, Split]]:
    """Genre, name without extension, and split of the 930 tracks."""
    return [
        (genre, f"{genre}.{number:05}", split)
        for split, genres in TRACKS.items()
        for genre, ranges in genres.items()
        for first, _, last in (part.partition("-") for part in ranges.split(","))
        for number in range(int(first), int(last or first) + 1)
    ]


def read_genre(root: Path) -> list[ProbeClip]:
    """All listed tracks with their genres."""
    folder = find(root, *AUDIO_FOLDERS).name
    return [
        ProbeClip(path=_audio_path(root, folder, genre, name), label=genre, split=split, track=name, group=name)
        for genre, name, split in listed_tracks()
    ]


def read_rhythm(root: Path) -> list[ProbeClip]:
    """All listed tracks with their beats, by the JAMS files of GTZAN-Rhythm."""
    folder = find(root, *AUDIO_FOLDERS).name
    jams = _jams_folder(root)
    return [
        ProbeClip(
            path=_audio_path(root, folder, genre, name),
            label=read_beats(find(jams, f"{name}.wav.jams", f"{name}.jams")),
            split=split,
            track=name,
            group=name,
        )
        for genre, name, split in listed_tracks()
    ]


def read_beats(path: Path) -> Beats:
    """Beats and tempo of a JAMS file, which is JSON (Humphrey and others, ISMIR 2014).

    Raises ValueError when it has no annotation of beats, naming the file.
    """
    document = read_json(path)
    try:
        annotations = document["annotations"]  # type: ignore[index]
        beats = [
            annotation
            for annotation in annotations
            if annotation["namespace"] == "beat"
            and annotation.get("sandbox", {}).get("annotation_type", "beat") == "beat"
        ]
        if not beats:
            raise ValueError(f"{path}: no annotation with namespace beat and annotation_type beat")
        times = sorted({float(time) for time in _column(beats[0]["data"], "time")})
        tempos = [a for a in annotations if a["namespace"] == "tempo"]
        values = _column(tempos[0]["data"], "value") if tempos else []
        return Beats(times=tuple(times), tempo=float(values[0]) if values else None)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the form of JAMS ({type(error).__name__}: {error})") from error


def _column(data: list | dict, name: str) -> list:
    """A field of all observations of an annotation, which JAMS stores by rows or by columns."""
    return data[name] if isinstance(data, dict) else [observation[name] for observation in data]


def _audio_path(root: Path, folder: str, genre: str, name: str) -> str:
    extension = "au" if (root / folder / genre / f"{name}.au").exists() else "wav"
    return f"{folder}/{genre}/{name}.{extension}"


def _jams_folder(root: Path) -> Path:
    found = [folder for pattern in ("jams", "*/jams", "*/*/jams") for folder in sorted(root.glob(pattern))]
    if not found:
        raise FolderError(f"{root / 'jams'} or {root / '*' / 'jams'} is not there")
    return found[0]


TASKS = (
    PublishedTask(
        task=ProbeTask(
            name="gtzan_genre",
            kind="multiclass",
            classes=GENRES,
            metrics=("accuracy", "macro_accuracy"),
            published_as="MARBLE GTZANGenre",
        ),
        folder="gtzan",
        page=PAGE,
        files=(AUDIO_PATTERN,),
        split="fault-filtered, 930 tracks",
        counts=(443, 197, 290),
        read_clips=read_genre,
    ),
    PublishedTask(
        task=ProbeTask(
            name="gtzan_rhythm",
            kind="beats",
            metrics=("beat_f_70ms", "beat_f_20ms", "tempo_accuracy_1", "tempo_accuracy_2"),
            published_as="MARBLE GTZANBT",
        ),
        folder="gtzan",
        page=f"{PAGE}, and GTZAN-Rhythm_v2_ismir2015_lbd_2015-10-28 from"
        " http://anasynth.ircam.fr/home/media/GTZAN-rhythm",
        files=(AUDIO_PATTERN, "**/jams/*.jams"),
        split="fault-filtered, 930 tracks",
        counts=(443, 197, 290),
        read_clips=read_rhythm,
    ),
)

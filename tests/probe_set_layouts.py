"""Miniature probe sets in the true layouts: true names of files and columns, real artists and ids,
synthesised audio.
"""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path

from audio_files import tone, write_audio

from mert_foundry.pipeline.probe_sets import gtzan, magnatagatune, mtg_jamendo, musdb18, vocalset


def sounds(root: Path, paths: Iterable[str], seconds: float = 0.25) -> None:
    """Audio files, each a link to one sound of its format."""
    for path in paths:
        extension = Path(path).suffix
        source = root / f".sound{extension}"
        if not source.exists():
            write_audio(source, tone(440, seconds, 16_000), 16_000)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(source, root / path)


def table(path: Path, rows: list[dict[str, str]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> None:
    """A table whose columns are the keys of its first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)


MTT_CLIPS = {
    "2": ("f/american_bach_soloists-j_s__bach_solo_cantatas-01-bwv54__i_aria-30-59.mp3", {"classical", "strings", "opera", "violin"}),  # noqa: E501
    "6": ("f/american_bach_soloists-j_s__bach_solo_cantatas-01-bwv54__i_aria-146-175.mp3", {"classical", "violin"}),
    "11": ("c/lvx_nova-lvx_nova-01-contimune-30-59.mp3", {"ambient", "new age"}),
    "12": ("b/ambient_teknology-phoenix-01-ambient-88-117.mp3", set()),
    "35644": ("6/norine_braun-now_and_zen-08-gently-117-146.mp3", {"guitar"}),
}  # fmt: skip


def make_magnatagatune(root: Path) -> None:
    """Five clips of 188 columns, one of them published empty."""
    others = [f"other tag {number}" for number in range(138)]
    rows = [
        {"clip_id": clip} | {tag: str(int(tag in tags)) for tag in [*magnatagatune.TAGS, *others]} | {"mp3_path": path}
        for clip, (path, tags) in MTT_CLIPS.items()
    ]
    table(root / "annotations_final.csv", rows, "\t", csv.QUOTE_ALL)
    sounds(root, (f"mp3/{path}" for clip, (path, _) in MTT_CLIPS.items() if clip != "35644"))
    (root / "mp3/6").mkdir()
    (root / f"mp3/{MTT_CLIPS['35644'][0]}").touch()


# Artists and keys of the published set; their splits by jukemir's metadata. The last two do not count.
GIANTSTEPS = [
    ("5061", "Philippe Van Mullem", "D# minor", "2"),
    ("14720", "Willie Morales, Robbie Rivera", "D minor", "2"),
    ("1144674", "Robbie Rivera, Norm, Jochen Pash", "G minor", "2"),
    ("297335", "Matthew Dear, Four Tet", "F# major", "2"),
    ("8000", "Brainbashers", "C minor / C major", "2"),
    ("8001", "Brainbashers", "C minor", "1"),
]


def make_giantsteps_key(root: Path, clone: str = "") -> None:
    """Six tracks of the training set, two of the test set; `clone` is what the folders' names end in."""
    training, test = root / f"giantsteps-mtg-key-dataset{clone}", root / f"giantsteps-key-dataset{clone}"
    table(
        training / "annotations/beatport_metadata.txt",
        [{"ID": uid, "ARTIST": artist, "SONG TITLE": "A", "MIX": "B"} for uid, artist, _, _ in GIANTSTEPS],
        "\t",
    )
    table(
        training / "annotations/annotations.txt",
        [{"ID": uid, "MANUAL KEY": key, "C": sure} for uid, _, key, sure in GIANTSTEPS],
        "\t",
    )
    sounds(root, (f"{training.name}/audio/{uid}.LOFI.mp3" for uid, *_ in GIANTSTEPS))
    (test / "annotations/key").mkdir(parents=True)
    for uid, key in {"1004923": "C minor", "10089": "Gb major\n"}.items():
        (test / f"annotations/key/{uid}.LOFI.key").write_text(key)
        sounds(root, [f"{test.name}/audio/{uid}.LOFI.mp3"])


def make_gtzan(root: Path, extension: str = "wav", folder: str = "genres") -> None:
    """All 930 tracks as links to one sound, with two forms of JAMS."""
    tracks = gtzan.listed_tracks()
    sounds(root, (f"{folder}/{genre}/{name}.{extension}" for genre, name, _ in tracks))
    (root / "rhythm/jams").mkdir(parents=True)
    for index, (_, name, _) in enumerate(tracks):
        write_jams(root / f"rhythm/jams/{name}.wav.jams", [0.5, 1.0, 1.5], by_columns=index % 2 == 1)


def write_jams(path: Path, times: list[float], by_columns: bool = False, kind: str = "beat") -> None:
    """A JAMS file with downbeats before the beats, and a tempo."""

    def observations(values: list[float], name: str) -> list | dict:
        rows = [{"time": 0.0, "duration": 0.0, "value": 1.0, "confidence": None} | {name: value} for value in values]
        return {field: [row[field] for row in rows] for field in rows[0]} if by_columns and rows else rows

    document = {
        "annotations": [
            {"namespace": "beat", "sandbox": {"annotation_type": "downbeat"}, "data": observations(times[:1], "time")},
            {"namespace": "beat", "sandbox": {"annotation_type": kind}, "data": observations(times, "time")},
            {"namespace": "tempo", "sandbox": {}, "data": observations([126.46], "value")},
        ],
        "file_metadata": {"duration": 30.0},
    }
    path.write_text(json.dumps(document))


# Published ratings and artists, their splits by jukemir's metadata.
EMOMUSIC = [
    ("2", "The New Mystikal Troubadours", "development", "3.1", "3"),
    ("4", "Kevin MacLeod", "development", "5.7", "5.5"),
    ("120", "Steve Gunn", "development", "3.8", "5"),
    ("95", "Steve Gunn", "evaluation", "3.3", "4.6"),
]


def make_emomusic(root: Path, folder: str = ".") -> None:
    """Four songs; the published tables have white space around values."""
    songs = [
        {
            "song_id": song, "file_name": f"{song}.mp3", "Artist": f"\t{artist}", "Song title": "\tTonight, A Lonely"
            " Century",
            "start of the segment (min.sec)": "0.48", "end of the segment (min.sec)": "1.33", "Genre": "\tBlues",
            "Mediaeval 2013 set": part,
        }
        for song, artist, part, _, _ in EMOMUSIC
    ]  # fmt: skip
    ratings = [
        {"song_id": song, "mean_arousal": arousal, "std_arousal": "1", "mean_valence": valence, "std_valence": "1"}
        for song, _, _, arousal, valence in EMOMUSIC
    ]
    table(root / folder / "songs_info.csv", songs)
    table(root / folder / "static_annotations.csv", ratings)
    sounds(root, (f"clips_45seconds/{song}.mp3" for song, *_ in EMOMUSIC))


NSYNTH = {
    "train": [("bass_synthetic_033-022-050", "bass", 22), ("guitar_acoustic_001-082-050", "guitar", 82)],
    "valid": [("keyboard_electronic_001-021-127", "keyboard", 21)],
    "test": [("keyboard_electronic_001-022-127", "keyboard", 22), ("vocal_synthetic_003-108-050", "vocal", 108)],
}


def make_nsynth(root: Path) -> None:
    """Five notes."""
    for split, notes in NSYNTH.items():
        sounds(root, (f"nsynth-{split}/audio/{note}.wav" for note, _, _ in notes))
        examples = {
            note: {
                "note": 1, "note_str": note, "instrument": 3, "instrument_str": note.split("-")[0], "pitch": pitch,
                "velocity": 50,
                "sample_rate": 16000, "qualities": [0] * 10, "qualities_str": [], "instrument_family": 0,
                "instrument_family_str": family, "instrument_source": 2, "instrument_source_str": "synthetic",
            }
            for note, family, pitch in notes
        }  # fmt: skip
        (root / f"nsynth-{split}/examples.json").write_text(json.dumps(examples))


def make_vocalset(root: Path) -> None:
    """Each of 20 singers with each of 17 techniques."""
    folders = {
        singer: singer.replace("f", "female").replace("m", "male", singer[0] == "m") for singer in vocalset.SINGERS
    }
    sounds(
        root,
        (
            f"FULL/{folders[singer]}/arpeggios/{technique}/{singer}_arpeggios_{technique}_a.wav"
            for singer in vocalset.SINGERS
            for technique in (*vocalset.TECHNIQUES, *vocalset.DYNAMICS)
        ),
    )
    sounds(
        root, ["FULL/female2/scales/vibrato/f2_scales_vibrato_a(1).wav", "FULL/male1/excerpts/vibrato/.DS_Store.wav"]
    )


MARBLE_CHUNKS = {
    "train": ["belt/f1_arpeggios_belt_c_a_00.wav", "belt/f1_arpeggios_belt_c_a_01.wav"],
    "valid": ["trill/m2_long_trill_a_00.wav"],
    "test": ["vocal_fry/f2_scales_vocal_fry_a_00.wav"],
}


def make_marble_vocalset(root: Path) -> None:
    """Chunks and lists as MARBLE v1 prepares them."""
    for split, chunks in MARBLE_CHUNKS.items():
        sounds(root, (f"audio/{chunk}" for chunk in chunks))
        for target in "ts":
            (root / f"{split}_{target}.txt").write_text("".join(f"{chunk}\n" for chunk in chunks))


def make_mtg_jamendo(root: Path, audio: str = "audio-low", clone: str = "") -> None:
    """Three tracks in each of the four subsets; lines end as in the published files."""
    tags = {
        "instrument": mtg_jamendo.INSTRUMENTS,
        "moodtheme": mtg_jamendo.MOODS,
        "genre": mtg_jamendo.GENRES,
        "top50tags": mtg_jamendo.TOP_50,
    }
    for subset, names in tags.items():
        for index, split in enumerate(("train", "validation", "test")):
            path = root / f"mtg-jamendo-dataset{clone}/data/splits/split-0/autotagging_{subset}-{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            fields = [f"track_000024{index}", f"artist_00000{index}", "album_000033", f"4{index}/24{index}.mp3", "90.1"]
            lines = ["\t".join(mtg_jamendo.COLUMNS), "\t".join([*fields, names[index], names[-1]])]
            path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    extension = ".low.mp3" if audio == "audio-low" else ".mp3"
    sounds(root, (f"{audio}/4{index}/24{index}{extension}" for index in range(3)))


def make_musdb18(root: Path) -> None:
    """100 and 50 songs of five links each; the names of the validation songs are real."""
    training = [*musdb18.VALIDATION_SONGS, *(f"Artist {number} - Song" for number in range(86))]
    for part, songs in {"train": training, "test": [f"Band {number} - Song" for number in range(50)]}.items():
        sounds(root, (f"{part}/{song}/{name}.wav" for song in songs for name in ("mixture", *musdb18.STEMS)))


MARBLE_LABELS: dict[str, list] = {
    "MTT": ["classical", "violin"],
    "GS": "Eb minor",
    "EMO": [-0.2568980419200396, 0.25994786922319774],
    "GTZANGenre": "blues",
    "GTZANBeatTracking": {"beat": [0.428173, 0.898377], "downbeat": [0.428173], "tempo": 126.46, "meter": "4/4"},
    "MTGInstrument": ["instrument---voice"],
    "MTGMood": ["mood/theme---film"],
    "MTGGenre": ["genre---rock"],
    "MTGTop50": ["genre---rock", "instrument---voice"],
    "Chords1217": [
        {"start_time": 0.0, "end_time": 0.42, "chord_str": "N"},
        {"start_time": 0.42, "end_time": 1.25, "chord_str": "F#:min7/b3"},
        {"start_time": 1.25, "end_time": 2.5, "chord_str": "D:sus4"},
    ],
    "HookTheoryKey": "D major",
    "HookTheoryStructure": ["pre-chorus", "chorus"],
}  # fmt: skip


def make_marble(folder: Path, name: str, labels: dict[str, list] | None = None, prefix: str = "data/GTZAN") -> None:
    """The three files of a set of MARBLE v2; without `labels` one line a split, with the label above."""
    for split, values in (labels or {split: [MARBLE_LABELS[name]] for split in ("train", "val", "test")}).items():
        lines = []
        for index, label in enumerate(values):
            path = f"wav/{name}-{split}-{index}.wav"
            sounds(folder, [path])
            lines.append(
                {
                    "audio_path": f"{prefix}/{path}" if prefix else path, "ori_uid": f"{split}{index}", "label": label,
                    "duration": 30.0, "sample_rate": 44100, "num_samples": 1323000, "bit_depth": 16, "channels": 1,
                }
            )  # fmt: skip
        (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

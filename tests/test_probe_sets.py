"""Published probe sets, each read from a miniature in its true layout."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import tone, write_audio
from hypothesis import given
from hypothesis import strategies as st
from probe_set_layouts import (
    EMOMUSIC,
    MARBLE_LABELS,
    make_emomusic,
    make_giantsteps_key,
    make_gtzan,
    make_magnatagatune,
    make_marble,
    make_marble_vocalset,
    make_mtg_jamendo,
    make_musdb18,
    make_nsynth,
    make_vocalset,
    sounds,
    write_jams,
)

from mert_foundry.pipeline.probe_sets import gtzan, musdb18, vocalset
from mert_foundry.pipeline.probe_sets.checks import check_clips
from mert_foundry.pipeline.probe_sets.chord_labels import CHORDS, chord_class
from mert_foundry.pipeline.probe_sets.clips import cut, files_to_measure, find_late_start
from mert_foundry.pipeline.probe_sets.durations import audio_seconds
from mert_foundry.pipeline.probe_sets.giantsteps_key import KEYS, split_artists
from mert_foundry.pipeline.probe_sets.marble_jsonl import MARBLE_SETS, task_name
from mert_foundry.pipeline.probe_sets.registry import PUBLISHED, load_tasks
from mert_foundry.pipeline.probe_sets.task import Beats, LabelledSet, ProbeClip, ProbeTask, Segment
from mert_foundry.pipeline.storage.folder_kinds import FolderError

MAKERS: dict[str, Callable[[Path], None]] = {
    "magnatagatune": make_magnatagatune,
    "giantsteps_key": make_giantsteps_key,
    "gtzan": make_gtzan,
    "emomusic": make_emomusic,
    "nsynth": make_nsynth,
    "vocalset": make_vocalset,
    "mtg_jamendo": make_mtg_jamendo,
    "musdb18": make_musdb18,
}


def make(root: Path, folder: str, /, **settings: str) -> Path:
    """One miniature set in a data folder; returns its folder."""
    (root / folder).mkdir(parents=True)
    MAKERS[folder](root / folder, **settings)
    return root / folder


def load(root: Path, name: str) -> LabelledSet:
    [labelled] = load_tasks(str(root), [name])
    assert labelled.task.name == name
    return labelled


def by_track(labelled: LabelledSet) -> dict[str, ProbeClip]:
    return {clip.track: clip for clip in labelled.clips}


def splits(labelled: LabelledSet) -> Counter:
    return Counter(clip.split for clip in labelled.clips)


def error(root: Path, name: str, kind: type[ValueError] = FolderError) -> str:
    """The one line that reading a task fails with."""
    with pytest.raises(kind) as caught:
        load_tasks(str(root), [name])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All published sets in miniature, read only."""
    root = tmp_path_factory.mktemp("data")
    for folder in MAKERS:
        make(root, folder)
    return root


def test_all_fourteen_tasks_are_found_and_have_audio(data: Path):
    found = load_tasks(str(data), [])
    assert [labelled.task.name for labelled in found] == list(PUBLISHED)
    assert len(PUBLISHED) == 14
    for labelled in found:
        assert {clip.split for clip in labelled.clips} == {"train", "valid", "test"}
        for clip in labelled.clips[:3]:
            assert soundfile.info(Path(labelled.root) / clip.path).frames


def test_magnatagatune(data: Path):
    labelled = load(data, "magnatagatune")
    assert len(labelled.task.classes) == len(set(labelled.task.classes)) == 50
    assert splits(labelled) == {"test": 2, "valid": 1, "train": 1}  # the clip that is published empty is left out
    first, second, third, untagged = labelled.clips
    assert first.path.startswith("mp3/f/american_bach") and set(first.label) == {
        "classical",
        "strings",
        "opera",
        "violin",
    }
    assert third.label == ("ambient", "new age") and untagged.label == ()
    assert first.group == second.group != third.group and first.track != second.track


def test_giantsteps_key(data: Path):
    clips = by_track(load(data, "giantsteps_key"))
    assert {track: (clip.split, clip.label) for track, clip in clips.items()} == {
        "5061": ("train", "Eb minor"),
        "14720": ("valid", "D minor"),
        "1144674": ("valid", "G minor"),
        "297335": ("valid", "Gb major"),
        "1004923": ("test", "C minor"),
        "10089": ("test", "Gb major"),
    }
    assert len(KEYS) == 24 and KEYS[12] == "C minor"


def test_giantsteps_clones_may_be_named_as_archives_unpack(tmp_path: Path):
    make(tmp_path, "giantsteps_key", clone="-master")
    assert len(load_tasks(str(tmp_path), [])[0].clips) == 6


def test_who_works_with_a_valid_artist_is_valid_over_two_rounds():
    alone = split_artists([("Four Tet",), ("Philippe Van Mullem",), ("E-Craig",), ("Hatiras",), ("Jimpster",)])
    train = [artist for artist, split in alone.items() if split == "train"]
    valid = next(
        artist
        for artist, split in split_artists([("Robbie Rivera",), ("Four Tet",), ("Pavo",)]).items()
        if split == "valid"
    )
    first, second, third = train[:3]
    # Listed from the far end, each round of calling carries one step.
    chained = split_artists([(second, third), (first, second), (valid, first)])
    assert chained == {valid: "valid", first: "valid", second: "valid", third: "train"}


def test_gtzan_lists_are_the_fault_filtered_ones(data: Path):
    labelled = load(data, "gtzan_genre")
    assert splits(labelled) == {"train": 443, "valid": 197, "test": 290}
    assert len(by_track(labelled)) == 930
    clips = by_track(labelled)
    # The first lines of train_filtered.txt, valid_filtered.txt and test_filtered.txt, and what none of them lists.
    assert [clips[name].split for name in ("blues.00029", "blues.00000", "blues.00012")] == ["train", "valid", "test"]
    assert "reggae.00086" not in clips and clips["rock.00099"].label == "rock"


@pytest.mark.parametrize("extension, folder", [("au", "genres"), ("wav", "genres_original")])
def test_gtzan_in_its_other_layouts(tmp_path: Path, extension: str, folder: str):
    make(tmp_path, "gtzan", extension=extension, folder=folder)
    assert load(tmp_path, "gtzan_genre").clips[0].path == f"{folder}/blues/blues.00029.{extension}"


def test_gtzan_rhythm_reads_both_forms_of_jams(data: Path):
    labelled = load(data, "gtzan_rhythm")
    assert {clip.label for clip in labelled.clips} == {Beats(times=(0.5, 1.0, 1.5), tempo=126.46)}
    assert len(labelled.clips) == 930


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "no JSON"),
        ("[]", "not the form of JAMS"),
        ('{"annotations": [{"namespace": "tempo", "data": []}]}', "no annotation with namespace beat"),
        ('{"annotations": [{"namespace": "beat", "data": [{"value": 1}]}]}', "not the form of JAMS (KeyError: 'time')"),
    ],
)
def test_a_damaged_jams_file_is_named(tmp_path: Path, content: str, complaint: str):
    path = tmp_path / "blues.00029.wav.jams"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {complaint}")):
        gtzan.read_beats(path)


def test_downbeats_alone_are_no_beats(tmp_path: Path):
    write_jams(tmp_path / "a.jams", [1.0], kind="8th-note")
    with pytest.raises(ValueError, match="annotation_type beat"):
        gtzan.read_beats(tmp_path / "a.jams")


def test_emomusic(data: Path):
    labelled = load(data, "emomusic")
    clips = by_track(labelled)
    assert {song: clip.split for song, clip in clips.items()} == {
        "2": "valid", "4": "valid", "120": "train", "95": "test"
    }  # fmt: skip
    developed = np.array([clip.label for clip in labelled.clips if clip.split != "test"])
    assert np.allclose(developed.mean(axis=0), 0) and np.allclose(developed.std(axis=0), 1)
    raw = np.array([[float(arousal), float(valence)] for *_, arousal, valence in EMOMUSIC])
    scale, shift = raw[:3].std(axis=0), raw[:3].mean(axis=0)
    assert np.allclose(np.array(clips["95"].label) * scale + shift, [3.3, 4.6])
    for clip in labelled.clips:
        os.truncate(Path(labelled.root) / clip.path, 700_000)  # 45 s at 128 kbit/s, as published
    assert len(cut(labelled, {}).clips) == 4 * 6 and not files_to_measure(labelled)


def test_emomusic_with_its_tables_in_a_folder(tmp_path: Path):
    make(tmp_path, "emomusic", folder="annotations")
    assert len(load_tasks(str(tmp_path), [])[0].clips) == 4


def test_nsynth(data: Path):
    instrument, pitch = load_tasks(str(data), ["nsynth_instrument", "nsynth_pitch"])
    assert len(instrument.task.classes) == 11 and len(pitch.task.classes) == 128
    note = "keyboard_electronic_001-022-127"
    clip = by_track(instrument)[note]
    assert (clip.path, clip.label, clip.split) == (f"nsynth-test/audio/{note}.wav", "keyboard", "test")
    assert by_track(pitch)[note].label == "22"
    # One instrument may be in valid and in test: its notes are no group across them.
    assert clip.group != by_track(instrument)["keyboard_electronic_001-021-127"].group


def test_vocalset_technique_has_singers_apart(data: Path):
    labelled = load(data, "vocalset_technique")
    singers = {
        split: {clip.group for clip in labelled.clips if clip.split == split} for split in ("train", "valid", "test")
    }
    assert [len(found) for found in singers.values()] == [9, 6, 5]
    assert singers["test"] == {"f2", "f8", "m3", "m5", "m10"} and singers["valid"] == vocalset.valid_singers()
    assert len(labelled.clips) == 200 and len(labelled.task.classes) == 10
    assert {clip.label for clip in labelled.clips} == set(vocalset.TECHNIQUES)


def test_vocalset_singer_takes_all_seventeen_techniques(data: Path):
    labelled = load(data, "vocalset_singer")
    assert len(labelled.clips) == 340 and {clip.label for clip in labelled.clips} == set(vocalset.SINGERS)
    shares = [splits(labelled)[split] / 340 for split in ("train", "valid", "test")]
    assert np.allclose(shares, [0.48, 0.32, 0.2], atol=0.08)
    clip = by_track(labelled)["FULL/male11/arpeggios/belt/m11_arpeggios_belt_a.wav"]
    assert clip.label == "m11"


def test_vocalset_as_marble_prepares_it(tmp_path: Path):
    make_marble_vocalset(tmp_path / "vocalset")
    technique, singer = load_tasks(str(tmp_path), [])
    assert splits(technique) == {"train": 2, "valid": 1, "test": 1}
    assert [clip.label for clip in technique.clips] == ["belt", "belt", "trill", "vocal_fry"]
    assert [clip.label for clip in singer.clips] == ["f1", "f1", "m2", "f2"]
    assert technique.clips[0].group == technique.clips[1].group and technique.clips[0].track != technique.clips[1].track


def test_vocalset_without_a_singer(tmp_path: Path):
    shutil.rmtree(make(tmp_path, "vocalset") / "FULL/female3")
    assert "has no recording of the singers f3 (it needs FULL/*/*/*/*.wav" in error(tmp_path, "vocalset_singer")


@pytest.mark.parametrize(
    "name, classes", [("mtg_instrument", 40), ("mtg_mood", 56), ("mtg_genre", 87), ("mtg_top50", 50)]
)
def test_mtg_jamendo(data: Path, name: str, classes: int):
    labelled = load(data, name)
    assert len(labelled.task.classes) == len(set(labelled.task.classes)) == classes
    assert [clip.path for clip in labelled.clips] == [f"audio-low/4{i}/24{i}.low.mp3" for i in range(3)]
    assert [clip.split for clip in labelled.clips] == ["train", "valid", "test"]
    assert labelled.clips[0].label == (labelled.task.classes[0], labelled.task.classes[-1])
    assert len(cut(labelled, {}).clips) == 9  # 90.1 s each


def test_mtg_jamendo_in_full_quality(tmp_path: Path):
    make(tmp_path, "mtg_jamendo", audio="audio", clone="-main")
    assert load(tmp_path, "mtg_mood").clips[0].path == "audio/40/240.mp3"


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("track_1\tartist_1\n", "line 3: not TRACK_ID"),
        ("t\ta\tb\t1/1.mp3\tlong\tgenre---rock\n", "line 3: not TRACK_ID"),
    ],
)
def test_a_damaged_line_of_mtg_jamendo_is_named(tmp_path: Path, line: str, complaint: str):
    root = make(tmp_path, "mtg_jamendo")
    path = root / "mtg-jamendo-dataset/data/splits/split-0/autotagging_genre-test.tsv"
    path.write_text(path.read_text() + line)
    assert complaint in error(tmp_path, "mtg_genre", ValueError)


def test_musdb18(data: Path):
    labelled = load(data, "musdb18")
    assert splits(labelled) == {"train": 86, "valid": 14, "test": 50}
    clip = by_track(labelled)["ANiMAL - Rockshow"]
    assert clip.split == "valid" and clip.path == "train/ANiMAL - Rockshow/mixture.wav"
    assert clip.label == {stem: f"train/ANiMAL - Rockshow/{stem}.wav" for stem in musdb18.STEMS}


def test_musdb18_short_packed_or_of_other_songs(tmp_path: Path):
    root = make(tmp_path, "musdb18")
    song = root / "train/ANiMAL - Rockshow"
    song.rename(root / "train/Another - Song")
    assert "lacks the validation song ANiMAL - Rockshow" in error(tmp_path, "musdb18")
    shutil.rmtree(root / "train/Another - Song")
    assert "train has 99 songs, not 100" in error(tmp_path, "musdb18")
    (root / "train/A - B.stem.mp4").touch()
    assert "holds all stems in one file" in error(tmp_path, "musdb18")


# What is taken away of each set, and what the line must say.
MISSING = {
    "magnatagatune": ("annotations_final.csv", "annotations_final.csv is not there"),
    "giantsteps_key": (
        "giantsteps-mtg-key-dataset/annotations/beatport_metadata.txt", "beatport_metadata.txt is not there",
    ),
    "gtzan_genre": ("genres/jazz/jazz.00054.wav", "train split: 1 of 930 audio files are not there, the first is"),
    "gtzan_rhythm": ("rhythm/jams/pop.00010.wav.jams", "pop.00010.jams is not there"),
    "emomusic": ("clips_45seconds/95.mp3", "test split: 1 of 4 audio files are not there, the first is"),
    "nsynth_pitch": ("nsynth-valid/examples.json", "nsynth-valid/examples.json is not there"),
    "mtg_top50": ("audio-low", "audio-low or"),
    "musdb18": ("test/Band 7 - Song/bass.wav", "test split: 1 of 750 audio files are not there, the first is"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_part_is_one_line_with_the_download_page(tmp_path: Path, name: str):
    taken, complaint = MISSING[name]
    path = make(tmp_path, PUBLISHED[name].folder) / taken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    line = error(tmp_path, name)
    assert line.startswith(f"{name}: ") and complaint in line and str(path.parent) in line
    assert PUBLISHED[name].page in line and PUBLISHED[name].files[0] in line


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_set_that_is_not_there_at_all_is_one_line(tmp_path: Path, name: str):
    line = error(tmp_path, name)
    assert line.startswith(f"{name}: {tmp_path / PUBLISHED[name].folder} is not there (it needs ")


def test_damaged_tables_are_named(tmp_path: Path):
    path = make(tmp_path, "emomusic") / "static_annotations.csv"
    whole = path.read_text()
    path.write_text(whole.replace("mean_arousal", "arousal"))
    assert f"{path}: no column mean_arousal among song_id" in error(tmp_path, "emomusic", ValueError)
    path.write_text(whole.replace("5.7", "high"))
    assert f"{path} line 3: could not convert" in error(tmp_path, "emomusic", ValueError)
    path.write_text(whole.splitlines()[0] + "\n")
    assert f"{path}: no line for song 2" in error(tmp_path, "emomusic", ValueError)
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: not UTF-8" in error(tmp_path, "emomusic", ValueError)
    path = make(tmp_path, "nsynth") / "nsynth-test/examples.json"
    path.write_text('{"note": {"pitch": 5}}')
    assert "note note has no pitch or no instrument_str" in error(tmp_path, "nsynth_pitch", ValueError)
    path.write_text('{"note": {"pitch": 500, "instrument_str": "a"}}')
    sounds(path.parent, ["audio/note.wav"])
    assert "label '500' is none of the classes" in error(tmp_path, "nsynth_pitch", ValueError)
    path = make(tmp_path, "magnatagatune") / "annotations_final.csv"
    path.write_text(path.read_text().replace("c/lvx", "x/lvx"))
    assert f"{path} line 4: mp3_path 'x/lvx" in error(tmp_path, "magnatagatune", ValueError)


# MARBLE v2


@pytest.mark.parametrize("name", MARBLE_SETS)
def test_a_set_of_marble_by_its_name(tmp_path: Path, name: str):
    make_marble(tmp_path / "data/GTZAN", name)
    [labelled] = load_tasks(str(tmp_path / "data"), [])
    assert labelled.task.name == task_name(name) and labelled.task.published_as == f"MARBLE v2 {name}"
    assert [clip.split for clip in labelled.clips] == ["train", "valid", "test"]
    assert labelled.clips[0].path == f"wav/{name}-train-0.wav" and labelled.clips[0].group == "train: train0"
    assert (labelled.clips[0].track == labelled.clips[0].group) == (name == "GS")
    expected = {
        "EMO": tuple(MARBLE_LABELS["EMO"]),
        "GTZANBeatTracking": Beats(times=(0.428173, 0.898377), tempo=126.46),
        "Chords1217": (Segment(start=0, end=0.42, label="N"), Segment(start=0.42, end=1.25, label="Gb:min")),
        "HookTheoryStructure": "chorus",
    }
    label = MARBLE_LABELS[name]
    assert labelled.clips[0].label == expected.get(name, tuple(label) if isinstance(label, list) else label)
    assert len(cut(labelled, {}).clips) == 3 * (2 if labelled.task.clip_seconds == 15 else 1)


def test_names_of_marbles_sets_in_small_letters():
    assert [task_name(name) for name in ("GTZANBeatTracking", "MTGTop50", "GS", "Chords1217", "HookTheoryKey")] == [
        "marble_gtzan_beat_tracking", "marble_mtg_top50", "marble_gs", "marble_chords1217", "marble_hook_theory_key",
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "data/Mine", "/somewhere/else/data/Mine"])
def test_paths_of_marble_begin_above_the_set(tmp_path: Path, prefix: str):
    make_marble(tmp_path / "Mine", "GTZANGenre", prefix=prefix)
    assert load_tasks(str(tmp_path), [])[0].clips[2].path == "wav/GTZANGenre-test-0.wav"


@pytest.mark.parametrize(
    "values, kind, classes",
    [
        (["b", "a"], "multiclass", ("a", "b")),
        ([["x"], ["y", "x"], []], "multilabel", ("x", "y")),
        ([[1, 2.5]], "regression", ("value_0", "value_1")),
        ([{"beat": [1, 2]}], "beats", ()),
        ([[{"start_time": 0, "end_time": 1, "chord_str": "C"}]], "frame_classes", CHORDS),
    ],
)
def test_labels_tell_the_kind_of_another_set(tmp_path: Path, values: list, kind: str, classes: tuple[str, ...]):
    make_marble(tmp_path / "Own", "MyOwnSet", dict.fromkeys(("train", "val", "test"), values))
    [labelled] = load_tasks(str(tmp_path), ["marble_my_own_set"])
    assert (labelled.task.kind, labelled.task.classes) == (kind, classes)
    assert len(labelled.clips) == 3 * len(values)


def make_songs(root: Path, labels: list[str], name: str) -> LabelledSet:
    """Two files of one song in each split, with these labels."""
    make_marble(root, name, dict.fromkeys(("train", "val", "test"), labels))
    for path in root.glob("*.jsonl"):
        path.write_text(re.sub('(train|val|test)1"', r'\g<1>0"', path.read_text()))
    return load_tasks(str(root.parent), [])[0]


def test_files_of_a_song_are_joined_where_they_share_a_label(tmp_path: Path):
    assert len(by_track(make_songs(tmp_path / "a/GS", ["C minor", "C minor"], "GS"))) == 3
    assert len(by_track(make_songs(tmp_path / "b/Own", ["x", "x"], "Own"))) == 3
    sections = make_songs(tmp_path / "c/HookTheory", ["verse", "chorus"], "HookTheoryStructure")
    other = make_songs(tmp_path / "d/Own", ["x", "y"], "Own")
    for labelled in (sections, other):
        assert len(by_track(labelled)) == 6 and len({clip.group for clip in labelled.clips}) == 3


def test_keys_beyond_the_24_are_left_out_where_marble_leaves_them_out(tmp_path: Path):
    labels = {"train": ["D major", "D dorian"], "val": ["C minor"], "test": ["E mixolydian", "A minor"]}
    make_marble(tmp_path / "HookTheory", "HookTheoryKey", labels)
    assert [clip.label for clip in load_tasks(str(tmp_path), [])[0].clips] == ["D major", "C minor", "A minor"]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"label": "polka"}, "line 1: label 'polka' is none of the classes blues"),
        ({"num_samples": None}, "line 1: unsupported operand"),
        ({"audio_path": "wav/none.wav"}, "1 of 3 audio files are not there"),
        ({"audio_path": "../../etc/passwd"}, "leads out of its folder"),
        (None, "line 1: no JSON object"),
    ],
)
def test_a_damaged_line_of_marble_is_named(tmp_path: Path, change: dict | None, complaint: str):
    make_marble(tmp_path / "GTZAN", "GTZANGenre", prefix="")
    path = tmp_path / "GTZAN/GTZANGenre.test.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) if change else "[1]")
    line = error(tmp_path, "marble_gtzan_genre", ValueError)
    assert str(path) in line and complaint in line


def test_a_field_or_file_of_marble_that_is_missing_is_named(tmp_path: Path):
    make_marble(tmp_path / "GTZAN", "GTZANGenre")
    path = tmp_path / "GTZAN/GTZANGenre.val.jsonl"
    path.write_text("{}\n")
    assert f"{path} line 1: no field 'label'" in error(tmp_path, "marble_gtzan_genre", ValueError)
    path.unlink()
    assert f"{path} is not there" in error(tmp_path, "marble_gtzan_genre")


@pytest.mark.parametrize(
    "label, expected",
    [
        ("C", "C:maj"), ("F#:min7/b3", "Gb:min"), ("Bb:7(#9)", "Bb:maj"), ("Cb:maj", "B:maj"), ("E:(1,b3,5)", "E:min"),
        ("D:sus4(3)", "D:maj"), ("A:maj(*3)", None), ("G:dim", None), ("G:aug", None), ("C:5", None),
        ("C:maj(b3)", None),
        ("N", "N"), ("X", None), ("D:maj/2", "D:maj"), ("G:hdim7/b7", None), ("C:sus2/3", "C:maj"),
    ],
)  # fmt: skip
def test_chords_by_the_triad_that_they_hold(label: str, expected: str | None):
    assert chord_class(label) == expected


@pytest.mark.parametrize("label", ["", "H:maj", "C:major", "C:maj(x)", "C:maj/0", "C maj"])
def test_what_is_no_chord_is_refused(label: str):
    with pytest.raises(ValueError, match="is no"):
        chord_class(label)


# Which tasks are there


def test_tasks_in_the_order_asked_for_each_once(data: Path):
    names = ["nsynth_pitch", "emomusic", "nsynth_pitch"]
    assert [labelled.task.name for labelled in load_tasks(str(data), names)] == ["nsynth_pitch", "emomusic"]


def test_a_folder_without_tasks_says_what_is_looked_for_and_what_is_there(tmp_path: Path):
    for name in "abcdefghijk":
        (tmp_path / name).mkdir()
    with pytest.raises(FolderError) as caught:
        load_tasks(str(tmp_path), [])
    assert "neither a task.yaml nor one of the folders emomusic, giantsteps_key, gtzan" in str(caught.value)
    assert "there is a, b, c, d, e, f, g, h, 3 more" in str(caught.value)
    with pytest.raises(FolderError, match="is not there"):
        load_tasks(str(tmp_path / "none"), [])


def test_an_unknown_task_says_which_there_are(tmp_path: Path):
    make(tmp_path, "emomusic")
    with pytest.raises(FolderError, match="no task emo; there is emomusic$"):
        load_tasks(str(tmp_path), ["emo"])


def test_the_same_task_in_two_folders_is_refused(tmp_path: Path):
    make_marble(tmp_path / "A", "GS")
    make_marble(tmp_path / "B", "GS")
    with pytest.raises(FolderError, match="B: task marble_gs is in another folder"):
        load_tasks(str(tmp_path), [])


def test_the_table_of_the_guide_is_that_of_the_registry():
    guide = (Path(__file__).parent.parent / "pipeline/probe_sets/README.md").read_text()
    for name, task in PUBLISHED.items():
        files = ", ".join(f"`{pattern}`" for pattern in task.files)
        counts = " / ".join(f"{count:,}" for count in task.counts)
        assert f"| `{name}` | `{task.folder}` | {files} | {task.split} | {counts} | {task.page} |" in guide
    assert set(re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE)) == set(PUBLISHED)
    assert all(name in guide for name in MARBLE_SETS)


# Clips


def one_clip(start: float, end: float | None, length: float | None, minimum: float = 0.8) -> LabelledSet:
    task = ProbeTask(
        name="t", kind="multiclass", classes=("a",), metrics=("accuracy",), clip_seconds=length, clip_minimum=minimum
    )
    clip = ProbeClip(path="a.wav", label="a", split="train", track="t", group="g", start=start, end=end)
    return LabelledSet(task=task, root="/", clips=(clip,))


@pytest.mark.parametrize(
    "seconds, length, minimum, expected",
    [
        (120.06, 30, 1, [(0, 30), (30, 60), (60, 90), (90, 120)]),  # GiantSteps
        (44.75, 30, 1, [(0, 30)]),
        (54.0, 30, 0.8, [(0, 30), (30, 54.0)]),
        (53.9, 30, 0.8, [(0, 30)]),
        (29.98, 30, 1, [(0, 30)]),  # headers round
        (12.0, 30, 0.8, [(0, 12.0)]),  # shorter than a clip, and still there
        (30.0, 30.2, 0.8, [(0, 30.0)]),
    ],
)
def test_clips_are_cut_from_the_front(seconds: float, length: float, minimum: float, expected: list):
    labelled = one_clip(0, None, length, minimum)
    assert files_to_measure(labelled) == ["a.wav"]
    assert [(clip.start, clip.end) for clip in cut(labelled, {"a.wav": seconds}).clips] == expected


def test_a_task_without_clip_seconds_is_heard_whole():
    labelled = one_clip(0, None, None)
    assert cut(labelled, {}) is labelled and files_to_measure(labelled) == []


def test_a_stretch_behind_the_end_of_its_file_is_refused():
    with pytest.raises(ValueError, match="a.wav: a clip starts at 12.0 s, the file ends at 10.0 s"):
        cut(one_clip(12, None, 5), {"a.wav": 10.0})


def test_a_stretch_ends_with_its_file_whatever_its_row_says(tmp_path: Path):
    write_audio(tmp_path / "a.wav", tone(440, 2.5))
    believed, absurd = (one_clip(0, end, 1).model_copy(update={"root": str(tmp_path)}) for end in (2.5, 1e9))
    assert files_to_measure(believed) == [] and files_to_measure(absurd) == ["a.wav"]
    assert [(clip.start, clip.end) for clip in cut(absurd, {"a.wav": 2.5}).clips] == [(0, 1), (1, 2)]
    # What is stated to the rounding of a header stays as it is stated.
    assert [clip.end for clip in cut(one_clip(1, 2.52, 5), {"a.wav": 2.5}).clips] == [2.52]


def test_a_late_start_is_found_in_tasks_that_cut_and_in_those_that_do_not():
    for length in (5, None):
        late = one_clip(12, 13, length)
        assert files_to_measure(late) == ["a.wav"]
        assert find_late_start(late, {"a.wav": 12.0}) is late.clips[0]
        assert find_late_start(late, {"a.wav": 12.5}) is None


@given(
    start=st.floats(0, 100), duration=st.floats(0.1, 500), length=st.floats(0.5, 60), minimum=st.floats(0, 1)
)  # fmt: skip
def test_cut_clips_tile_their_stretch(start: float, duration: float, length: float, minimum: float):
    end = start + duration
    pieces = cut(one_clip(start, end, length, minimum), {}).clips
    assert pieces[0].start == start and pieces[-1].end <= end + 0.051
    for left, right in zip(pieces, pieces[1:]):
        assert left.end == right.start and left.end - left.start == pytest.approx(length)
    if len(pieces) > 1:
        assert pieces[-1].end - pieces[-1].start >= min(minimum, 1) * length - 1e-6
    assert end - pieces[-1].end <= max(minimum * length, 0.05) + 1e-6
    assert {clip.track for clip in pieces} == {"t"}


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.opus"])
def test_seconds_of_a_file(tmp_path: Path, name: str):
    write_audio(tmp_path / name, tone(440, 2.5, 48_000), 48_000)
    assert audio_seconds(tmp_path / name) == pytest.approx(2.5, abs=0.03)


def test_seconds_of_a_stream_without_a_length(tmp_path: Path):
    write_audio(tmp_path / "a.ac3", tone(440, 2.5, 48_000), 48_000)
    assert audio_seconds(tmp_path / "a.ac3") == pytest.approx(2.5, abs=0.05)


# The contract


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"start": 5.0, "end": 5.0}, "it starts at 5.0 s and ends at 5.0 s"),
        ({"label": {"times": (2.0, 1.0)}}, "the beat at 1.0 s follows one at 2.0 s"),
        ({"label": ({"start": 2.0, "end": 1.0, "label": "a"},)}, "it starts at 2.0 s and ends at 1.0 s"),
    ],
)
def test_a_clip_that_cannot_be(change: dict, complaint: str):
    values = {"path": "a.wav", "label": "a", "split": "train", "track": "t", "group": "g"}
    with pytest.raises(ValueError, match=re.escape(complaint)):
        ProbeClip.model_validate(values | change)


@pytest.mark.parametrize("path", ["../a.wav", "/a.wav", "a/../../b.wav", ".", "a\0.wav"])
def test_a_path_may_not_leave_its_folder(path: str):
    clip = one_clip(0, None, None).clips[0]
    task = ProbeTask(name="t", kind="separation", classes=("a",), metrics=("sdr",))
    for change in ({"path": path, "label": {"a": "b.wav"}}, {"label": {"a": path}}):
        with pytest.raises(ValueError, match="line 1: the path .* leads out of its folder"):
            check_clips(task, [clip.model_copy(update=change)], lambda index: "line 1")


def test_a_track_is_of_one_group():
    task = ProbeTask(name="t", kind="multiclass", classes=("a",), metrics=("accuracy",))
    clip = ProbeClip(path="a.wav", label="a", split="train", track="t", group="g")
    other = clip.model_copy(update={"path": "b.wav", "group": "h"})
    with pytest.raises(ValueError, match="line 1: track t is in group h, but in group g by line 0"):
        check_clips(task, [clip, other], lambda index: f"line {index}")


def test_a_label_must_have_the_form_of_its_kind():
    clip = {"path": "a.wav", "split": "train", "track": "t", "group": "g"}
    labels = {
        "multiclass": "a", "multilabel": ("a",), "regression": (1.0,),
        "frame_classes": (Segment(start=0, end=1, label="a"),),
        "beats": Beats(times=(1.0,)), "separation": {"a": "b.wav"},
    }  # fmt: skip
    metrics = {
        "multiclass": "accuracy", "multilabel": "roc_auc", "regression": "r2", "frame_classes": "frame_accuracy",
        "beats": "beat_f_70ms", "separation": "sdr",
    }  # fmt: skip
    for kind, metric in metrics.items():
        task = ProbeTask(name="t", kind=kind, classes=("a",), metrics=(metric,))
        for other, label in labels.items():
            with pytest.raises(ValueError) as caught:
                check_clips(task, [ProbeClip(**clip, label=label)], lambda index: "line 1")
            assert ("no clip in valid" in str(caught.value)) == (kind == other), (kind, other)
            assert kind == other or f"line 1: a label of {kind} is " in str(caught.value)

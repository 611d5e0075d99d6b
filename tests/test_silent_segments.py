"""Silent segments of tracks that are not: dropped, counted and listed; labels and audio can be made
again without them.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audio_files import noise, write_audio
from folders import make_manifest
from shard_fixtures import CODES
from tiny_model import tiny_encoder

from mert_foundry.jobs import verify
from mert_foundry.jobs.command.line import run
from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.pipeline.features.shard_tracks import ShardTracks
from mert_foundry.pipeline.inspection.shard_summary import load_shard_set, summarise_shard_set
from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.index import build_index, load_index
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.record import load_record
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.random_projection import RandomProjectionTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers
from mert_foundry.pipeline.teachers.teacher import Teacher, label_track

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore:.*not part in the Zarr format 3 specification.*:UserWarning",
    "ignore::DeprecationWarning",
)

NAME, SECOND = "train-000000", 24_000
SEGMENTS = SegmentConfig(segment_seconds=1.0, shortest_seconds=0.5, examples_per_shard=100)
# What each second of a track is; 0.3 s of the last one follow, which join its segment.
TRACKS = {"middle.wav": "LSSL", "first.wav": "SL", "last.wav": "LLS", "loud.wav": "LL"}


# Silent tracks too, as a manifest of an older version may have them.
MANIFEST = {"splits": {}, "min_seconds": 0.5, "silence_dbfs": -300.0}


def sound(seconds: str, seed: int) -> np.ndarray:
    """Noise at -20 dB where it says L, and of a peak of -65.7 dB, so not zero, where it says S; the
    last lasts 1.3 s.
    """
    loud = noise(len(seconds) + 0.3, seed=seed)
    quiet = np.random.default_rng(seed).uniform(-0.0005, 0.0005, len(loud)).astype(np.float32)
    silent = np.repeat([second == "S" for second in seconds + seconds[-1]], SECOND)[: len(loud)]
    return np.where(silent, quiet, loud)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracks, and one whose channels cancel out: loud as a file, silent in mono."""
    root = tmp_path_factory.mktemp("corpus")
    for number, (name, seconds) in enumerate(TRACKS.items()):
        write_audio(root / name, sound(seconds, number))
    loud = noise(2, seed=9)
    write_audio(root / "opposite.wav", np.stack([loud, -loud], axis=1))
    return root


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return make_manifest(corpus, tmp_path_factory.mktemp("manifest"), **MANIFEST)


@pytest.fixture(scope="module")
def teachers(tiny_codec: Path) -> list[Teacher]:
    return build_teachers(teacher_configs(tiny_codec), "cpu")


def teacher_configs(codec: Path) -> list:
    """A codec, a CQT whose filters reach far into the segments beside, and a cheap one."""
    return [
        EncodecTeacherConfig(kind="encodec", weights=str(codec), codebooks=4),
        CqtTeacherConfig(kind="cqt", lowest_frequency=110.0, bins=24, bins_per_octave=12),
        RandomProjectionTeacherConfig(kind="random_projection", codebook_size=64),
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, manifest: Path, teachers: list[Teacher], tiny_codec: Path) -> Path:
    """One shard of all tracks; read only."""
    folder = label(manifest, tmp_path_factory.mktemp("shards"), teachers, SEGMENTS)
    document = {"teachers": [teacher.model_dump(mode="json") for teacher in teacher_configs(tiny_codec)]}
    (folder / "label.yaml").write_text(yaml.safe_dump(document))
    return folder


def label(manifest: Path, out: Path, teachers: list[Teacher], config: SegmentConfig) -> Path:
    listing = load_manifest(str(manifest))
    (task,) = plan_shards(listing, config)
    seconds: list[float] = []
    process_shard(task, teachers, listing.root, str(out), {}, report=seconds.append)
    assert sum(seconds) == pytest.approx(task.seconds, abs=0.1)
    build_index(
        str(out),
        [task.name],
        [teacher.spec for teacher in teachers],
        name="test",
        manifest_sha256=listing.sha256,
        segment_seconds=config.segment_seconds,
        audio_member=config.audio,
    )
    return out


def keys(manifest: Path) -> dict[str, str]:
    """Track key by file name."""
    return {track.path: track.key for track in load_manifest(str(manifest)).tracks}


def with_zeros(corpus: Path, manifest: Path) -> dict[str, np.ndarray]:
    """int16 samples of each track, by key, with zeros in its silent segments."""
    tracks = {}
    for track in load_manifest(str(manifest)).tracks:
        with decode_track(track, str(corpus)) as decoded:
            audio = decoded.read(0, decoded.num_frames * 320).copy()
        seconds = TRACKS.get(track.path, "SS")
        for number, second in enumerate(seconds):
            if second == "S":
                stop = (number + 1) * SECOND if number + 1 < len(seconds) else None
                audio[number * SECOND : stop] = 0
        tracks[track.key] = audio
    return tracks


def open_reader(shards: Path) -> ShardReader:
    index = load_index(str(shards))
    return ShardReader(str(shards), index, index.shardlist)


def check(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, list[str]]:
    """Exit code and stdout of `mert verify` in this process."""
    capsys.readouterr()
    code = run(verify.main, [str(argument) for argument in arguments], verify.__doc__)
    return code, capsys.readouterr().out.splitlines()


def test_silent_segments_are_dropped_counted_and_listed(manifest: Path, shards: Path):
    key, record = keys(manifest), load_record(str(shards), NAME)
    assert {entry.key for entry in record.members} == {
        f"{key[name]}-{number:05d}"
        for name, seconds in TRACKS.items()
        for number, second in enumerate(seconds)
        if second == "L"
    }
    dropped = {drop.key: drop for drop in record.dropped_segments}
    assert set(dropped) == {
        f"{key['middle.wav']}-00001",
        f"{key['middle.wav']}-00002",
        f"{key['first.wav']}-00000",
        f"{key['last.wav']}-00002",
    }
    last = dropped[f"{key['last.wav']}-00002"]
    assert (last.start_sample, last.num_frames, last.segments, last.reason) == (2 * SECOND, 97, 3, "silent")
    assert last.detail == "peak -65.7 dBFS, at least -60.0 dBFS is asked for"  # 17 of 32768
    (track,) = record.dropped_tracks
    assert (track.track, track.reason, track.segments) == (key["opposite.wav"], "silent", 2)
    assert track.detail == "peak -200.0 dBFS, at least -60.0 dBFS is asked for"
    assert record.dropped == load_index(str(shards)).dropped == {"silent": 6}
    summary = summarise_shard_set(load_shard_set(str(shards)))
    assert summary.dropped_segments == record.dropped_segments and summary.tracks == 4
    assert (summary.track_seconds.maximum, summary.example_seconds.maximum) == (
        pytest.approx(4.3, abs=0.02),
        pytest.approx(1.3, abs=0.02),
    )


def test_verify_finds_no_fault_and_the_same_labels(manifest: Path, shards: Path, capsys: pytest.CaptureFixture):
    assert check(capsys, shards, "--manifest", manifest, "--relabel", 1000) == (0, ["1 shards, 7 examples: no fault"])


def test_labels_are_those_of_the_track_with_zeros_for_what_was_dropped(
    corpus: Path, manifest: Path, shards: Path, teachers: list[Teacher]
):
    reader, tracks = open_reader(shards), with_zeros(corpus, manifest)
    for key in set(tracks) - {keys(manifest)["opposite.wav"]}:
        track = reader.read_track(0, key)
        np.testing.assert_array_equal(track.audio, tracks[key])
        labels = {teacher.spec.name: label_track(teacher, track.audio) for teacher in teachers}
        for number, start in track.starts.items():
            clip = reader.read(0, number)
            for teacher in teachers:
                name, frames = teacher.spec.name, range(start, start + len(clip.audio) // 320)
                np.testing.assert_array_equal(clip.targets[name], labels[name].take(frames, teacher.spec.frame_axis))


def test_tracks_put_together_from_shards_are_whole(corpus: Path, manifest: Path, shards: Path):
    tracks, expected = ShardTracks(str(shards)), with_zeros(corpus, manifest)
    listed = tracks.list_tracks()
    assert [track.key for track in listed] == sorted(set(expected) - {keys(manifest)["opposite.wav"]})
    for track in listed:
        audio = tracks.open(track)
        whole = expected[track.key]
        assert track.num_samples == len(whole)
        np.testing.assert_array_equal(np.concatenate(list(audio.blocks())), whole / np.float32(32768))
        for start, count in [
            (0, 10**9),
            (SECOND - 7, 20),
            (SECOND + 5, 100),
            (2 * SECOND - 1, SECOND),
            (len(whole) - 5, 50),
        ]:
            np.testing.assert_array_equal(audio.read(start, count), whole[start : start + count])
    tracks.close()


@pytest.mark.process
def test_features_from_shards_are_those_of_files_with_zeros(corpus: Path, manifest: Path, shards: Path, tmp_path: Path):
    import zarr

    from mert_foundry.jobs import extract

    config = tiny_encoder()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StoredModel(config, MertEncoder(config).state_dict(), 24_000)
    assert export_model(tmp_path / "model", model, {}) == []
    names = {key: name for name, key in keys(manifest).items()}
    for key, audio in with_zeros(corpus, manifest).items():
        if audio.any():
            write_audio(tmp_path / "audio" / names[key], audio)
    stores = []
    for number, source in enumerate([shards, tmp_path / "audio"]):
        settings = [f"model={tmp_path / 'model'}", f"input={source}", f"out={tmp_path / str(number)}", "dtype=float32"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", "0")
            patch.setenv("WORLD_SIZE", "1")
            assert run(extract.main, settings, extract.__doc__, extract.CONFIG) == 0
        stores.append(zarr.open_group(tmp_path / str(number), mode="r"))
    ours, reference = stores
    assert ours["key"][:].tolist() == reference["key"][:].tolist()
    np.testing.assert_array_equal(ours["length"][:], reference["length"][:])
    np.testing.assert_allclose(ours["features"][:], reference["features"][:], atol=1e-5)


def test_training_reads_what_is_there(shards: Path):
    index = load_index(str(shards))
    stream = BatchStream(
        str(shards), load_index(str(shards)), "train", StreamConfig(batch_size=7, crop_samples=320 * 50, threads=1), 0
    )
    batch, _ = next(stream)
    stream.close()
    assert sorted(batch["key"]) == sorted(entry.key for entry in load_record(str(shards), NAME).members)
    assert len(batch["key"]) == index.totals["train"].examples and batch["valid"].all()


def test_they_stay_when_the_config_says_so(corpus: Path, manifest: Path, teachers: list[Teacher], tmp_path: Path):
    kept = label(manifest, tmp_path, teachers[2:], SEGMENTS.model_copy(update={"drop_silent": False}))
    record = load_record(str(kept), NAME)
    assert (record.examples, record.dropped, record.dropped_segments, record.dropped_tracks) == (13, {}, [], [])
    reader = open_reader(kept)
    for track in load_manifest(str(manifest)).tracks:
        with decode_track(track, str(corpus)) as decoded:
            audio = decoded.read(0, decoded.num_frames * 320)
        np.testing.assert_array_equal(reader.read_track(0, track.key).audio, audio)


@pytest.mark.parametrize(("peak", "silent"), [(32, True), (33, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_segment_is_silent_below_a_peak_of_one_in_a_thousand(
    teachers: list[Teacher], tmp_path: Path, peak: int, silent: bool, sign: int
):
    audio = np.zeros(2 * SECOND, np.int16)
    audio[100], audio[SECOND + 100] = -32768, sign * peak  # -60 dB are 32.77 of 32768
    write_audio(tmp_path / "audio" / "a.wav", audio)
    label(
        make_manifest(tmp_path / "audio", tmp_path / "manifest", **MANIFEST),
        tmp_path / "shards",
        teachers[2:],
        SEGMENTS,
    )
    assert load_record(str(tmp_path / "shards"), NAME).dropped == ({"silent": 1} if silent else {})


def test_a_record_of_before_there_were_dropped_segments_loads(shards: Path, tmp_path: Path):
    content = json.loads((shards / f"{NAME}.json").read_text())
    content["dropped"] = {"silent": 2}
    del content["dropped_segments"]
    (tmp_path / f"{NAME}.json").write_text(json.dumps(content))
    record = load_record(str(tmp_path), NAME)
    assert record.dropped_segments == [] and len(record.dropped_tracks) == 1


def test_a_last_segment_of_another_length_than_the_manifest_says_is_found(
    manifest: Path, teachers: list[Teacher], tmp_path: Path, capsys: pytest.CaptureFixture
):
    label(manifest, tmp_path, teachers[2:], SEGMENTS)
    path, key = tmp_path / f"{NAME}.json", keys(manifest)["last.wav"]
    content = json.loads(path.read_text())
    (last,) = (drop for drop in content["dropped_segments"] if drop["track"] == key)
    last.update(num_frames=100, num_samples=32_000)
    path.write_text(json.dumps(content))
    index = load_index(str(tmp_path))
    build_index(
        str(tmp_path),
        [NAME],
        index.targets,
        name="test",
        manifest_sha256=index.manifest_sha256,
        segment_seconds=1.0,
        audio_member="flac",
    )
    code, lines = check(capsys, tmp_path, "--manifest", manifest)
    assert (code, lines[0]) == (1, f"{NAME}.tar: {key}: 250 frames in its segments, the manifest says 247")


class ShortTeacher:
    """Ends before the last frame of a track."""

    spec = CODES

    def label(self, blocks):
        frames = sum(len(block) for block in blocks) // 320
        yield np.zeros((2, frames - 1), np.uint16)


def test_a_teacher_that_ends_within_a_dropped_segment_is_an_error(tmp_path: Path):
    write_audio(tmp_path / "audio" / "last.wav", sound("LLS", 0))
    manifest = make_manifest(tmp_path / "audio", tmp_path / "manifest", **MANIFEST)
    key = keys(manifest)["last.wav"]
    with pytest.raises(ValueError, match=rf"{key}-00002\.codes: uint16 \(2, 96\), expected uint16 \(2, 97\)"):
        label(manifest, tmp_path / "shards", [ShortTeacher()], SEGMENTS)
    assert not list((tmp_path / "shards").glob("*"))

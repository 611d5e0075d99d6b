"""Random access: any range is that part of the whole; damage is named; files are bounded."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fsspec.core import url_to_fs
from shard_fixtures import as_dropped, index_shards, make_track, write_examples, write_set

from mert_foundry.pipeline.features.shard_tracks import ShardTracks
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.reader import ShardReader


def open_reader(folder, split="train", **options):
    index = load_index(str(folder))
    return ShardReader(str(folder), index, index.shards(split), **options)


def same(clip, start, end, whole):
    np.testing.assert_array_equal(clip.audio, whole.audio[320 * start : 320 * end])
    np.testing.assert_array_equal(clip.targets["codes"], whole.targets["codes"][:, start:end])
    np.testing.assert_array_equal(clip.targets["cqt"], whole.targets["cqt"][start:end])
    dtypes = (clip.audio.dtype, clip.targets["codes"].dtype, clip.targets["cqt"].dtype)
    assert dtypes == (np.int16, np.uint16, np.float16)


@pytest.mark.parametrize("audio_member", ["flac", "pcm.npy"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_any_range_is_that_part_of_the_example(tmp_path, audio_member, place):
    folder = str(tmp_path) if place == "local" else f"memory://test-shard-reader-{audio_member}"
    examples = make_track("a", 30, 200, 45)
    write_examples(folder, "train-000000", examples, audio_member)
    index_shards(folder, ["train-000000"], audio_member)
    reader = open_reader(folder)
    for number, example in enumerate(examples):
        frames = example.info.num_frames
        same(reader.read(0, number), 0, frames, example)
        for start, count in [(0, 1), (0, frames), (7, 20), (frames - 1, 1), (frames - 20, 20)]:
            clip = reader.read(0, number, start, count)
            assert clip.key == example.key
            same(clip, start, start + count, example)


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (0, 31), (30, 1), (5, 0)])
def test_refuses_frames_that_are_not_there(tmp_path, start, count):
    write_examples(tmp_path, "train-000000", make_track("a", 30))
    index_shards(tmp_path, ["train-000000"])
    with pytest.raises(ValueError, match=rf"train-000000\.tar: a-00000: frames {start} .*30"):
        open_reader(tmp_path).read(0, 0, start, count)


def test_track_is_put_together(tmp_path):
    examples = make_track("a", 30, 25, 41)
    write_examples(tmp_path, "train-000000", [*make_track("0", 9), *examples, *make_track("b", 12)])
    index_shards(tmp_path, ["train-000000"])
    track = open_reader(tmp_path).read_track(0, "a")
    np.testing.assert_array_equal(track.audio, np.concatenate([example.audio for example in examples]))
    np.testing.assert_array_equal(track.targets["codes"][0], np.arange(96) % 16)
    np.testing.assert_array_equal(track.targets["cqt"][:, 0], np.arange(96))
    assert (track.key, track.audio_sha256) == ("a", "c" * 64)


@pytest.mark.parametrize("dropped", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_track_with_dropped_segments_has_zeros_in_their_places(tmp_path, dropped):
    whole = make_track("a", 30, 25, 41)
    outcomes = [as_dropped(example) if number in dropped else example for number, example in enumerate(whole)]
    write_examples(tmp_path, "train-000000", [*make_track("0", 9), *outcomes])
    index_shards(tmp_path, ["train-000000"])
    track = open_reader(tmp_path).read_track(0, "a")
    kept = [number for number in range(3) if number not in dropped]
    assert track.starts == {1 + place: [0, 30, 55][number] for place, number in enumerate(kept)}
    for number, example in enumerate(whole):
        start, end = example.info.start_sample, example.info.start_sample + example.info.num_samples
        np.testing.assert_array_equal(track.audio[start:end], example.audio * (number in kept))
        np.testing.assert_array_equal(
            track.targets["codes"][:, start // 320 : end // 320], example.targets["codes"] * (number in kept)
        )
        np.testing.assert_array_equal(
            track.targets["cqt"][start // 320 : end // 320], example.targets["cqt"] * (number in kept)
        )
    assert (len(track.audio), track.audio.dtype, track.targets["codes"].shape) == (96 * 320, np.int16, (2, 96))


@pytest.mark.parametrize("changes", [{"start_sample": 320 * 29}, {"segment": 0}, {"segment": 2}])
def test_a_dropped_segment_in_the_wrong_place_is_refused(tmp_path, changes):
    first, hole, last = make_track("a", 30, 25, 41)
    hole = as_dropped(hole).model_copy(update=changes)
    write_examples(tmp_path, "train-000000", [first, hole, last])
    index_shards(tmp_path, ["train-000000"])
    with pytest.raises(ValueError, match=r"train-000000\.tar: the segments of track a are not all here"):
        ShardTracks(str(tmp_path)).list_tracks()
    with pytest.raises(
        ValueError, match=r"train-000000\.tar: track a: 3 segments found, 3 expected, one after another"
    ):
        open_reader(tmp_path).read_track(0, "a")


@pytest.mark.parametrize(("order", "found"), [((0, 2), 2), ((0, 1), 2), ((1, 0, 2), 3), ((), 0)])
def test_track_that_is_not_whole_is_refused(tmp_path, order, found):
    examples = make_track("a", 30, 25, 41)
    write_examples(tmp_path, "train-000000", [*[examples[number] for number in order], *make_track("b", 9)])
    index_shards(tmp_path, ["train-000000"])
    with pytest.raises(ValueError, match=rf"train-000000\.tar: track a: {found} segments found"):
        open_reader(tmp_path).read_track(0, "a")


@pytest.mark.parametrize("audio_member", ["flac", "pcm.npy"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_truncated_tar_names_shard_key_and_sizes(tmp_path, audio_member, place):
    folder = str(tmp_path) if place == "local" else f"memory://test-truncated-{audio_member}"
    write_set(folder, [3], audio_member)
    filesystem, path = url_to_fs(f"{folder}/train-000000.tar")
    entry = open_reader(folder).entries(0)[2]
    filesystem.pipe_file(path, filesystem.cat_file(path)[: entry.members[audio_member][0] + 700])
    reader = open_reader(folder)
    reader.read(0, 1)
    there = 700 if audio_member == "flac" else 700 - 128  # of PCM the 128 bytes of header are not read
    with pytest.raises(ValueError) as error:
        reader.read(0, 2)
    assert f"train-000000.tar: train0x2-00000.{audio_member}: " in str(error.value)
    assert f"{there} read; the file is truncated" in str(error.value)


def test_missing_tar_and_foreign_record_are_named(tmp_path):
    write_set(tmp_path, [3, 2])
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000001\.tar"):
        open_reader(tmp_path).read(1, 0)
    record = tmp_path / "train-000000.json"
    record.write_bytes(record.read_bytes().replace(b"cpu", b"gpu"))
    with pytest.raises(ValueError, match=r"train-000000\.json: SHA-256 \w{64}, the index says \w{64}"):
        open_reader(tmp_path).read(0, 0)


def open_tars(folder):
    """How many tars of `folder` this process holds open (Linux)."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(str(folder) in os.readlink(link) for link in links if link.is_symlink())


def test_open_files_are_bounded_and_let_go(tmp_path):
    write_set(tmp_path, [1] * 12)
    reader = open_reader(tmp_path, open_shards=3)
    for shard in range(12):
        reader.read(shard, 0)
        assert open_tars(tmp_path) <= 3
    reader.close()
    assert open_tars(tmp_path) == 0


def test_threads_share_a_reader_with_one_open_file(tmp_path):
    """Files are evicted under reading threads all the time; no read may land in another file."""
    write_set(tmp_path, [2] * 8)
    whole = open_reader(tmp_path)
    wanted = {(shard, example): whole.read(shard, example) for shard in range(8) for example in range(2)}
    reader = open_reader(tmp_path, open_shards=1)
    places = list(wanted) * 20
    with ThreadPoolExecutor(8) as threads:
        for place, clip in zip(places, threads.map(lambda place: reader.read(*place), places), strict=True):
            assert clip.key == wanted[place].key
            np.testing.assert_array_equal(clip.audio, wanted[place].audio)
            np.testing.assert_array_equal(clip.targets["cqt"], wanted[place].targets["cqt"])

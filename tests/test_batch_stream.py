"""The stream's contract: the same batches in any world, resumed anywhere, every example once."""

import gc
import json
import re
import threading
import time
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from shard_fixtures import SPECS, write_set

from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.stream import loader
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig, validation_batches
from mert_foundry.pipeline.stream.crops import random_crop

SIZES, VALID_SIZES = [3, 0, 4, 1, 5], [4, 3]  # 13 examples to train on: no batch size here divides it
CROP_FRAMES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder, SIZES, valid_sizes=VALID_SIZES)
    return str(folder)


def config(batch_size=4, **changes):
    defaults = {"batch_size": batch_size, "crop_samples": 320 * CROP_FRAMES, "shuffle_window": 2, "threads": 2}
    return StreamConfig(**defaults | changes)


def read(folder, count, position=None, world_size=1, seed=3, **changes):
    """`count` global batches, each put together from all ranks, and the position after each."""
    streams = [
        BatchStream(folder, load_index(folder), "train", config(**changes), seed, rank, world_size, position)
        for rank in range(world_size)
    ]
    try:
        return [joined([next(stream) for stream in streams]) for _ in range(count)]
    finally:
        for stream in streams:
            stream.close()


def joined(parts):
    batches, positions = zip(*parts, strict=True)
    assert all(position == positions[0] for position in positions)
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if name != "key"}
    return whole | {"key": sum((batch["key"] for batch in batches), [])}, positions[0]


def assert_same(first, second):
    assert len(first) == len(second)
    for (left, left_position), (right, right_position) in zip(first, second, strict=True):
        assert left_position == right_position
        assert left.keys() == right.keys()
        assert left["key"] == right["key"]
        for name in left.keys() - {"key"}:
            assert left[name].dtype == right[name].dtype
            assert torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module")
def reference(folder):
    """Ten global batches of four: more than three epochs."""
    return read(folder, 10)


def test_batch_has_the_documented_form(reference):
    batch, _ = reference[0]
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in batch.items() if name != "key"}
    assert shapes == {
        "audio": (torch.int16, (4, 6400)),
        "codes": (torch.uint16, (4, 2, 20)),
        "cqt": (torch.float16, (4, 20, 4)),
        "valid": (torch.bool, (4, 20)),
        "row": (torch.int64, (4,)),
    }
    assert batch["row"].tolist() == [0, 1, 2, 3]
    assert all(isinstance(key, str) for key in batch["key"])


def test_audio_and_targets_agree_to_the_frame(folder, reference):
    lengths = {entry.key: entry.num_frames for entries in all_entries(folder) for entry in entries}
    short = 0
    for batch, _ in reference:
        for row, key in enumerate(batch["key"]):
            frames = min(CROP_FRAMES, lengths[key])
            short += frames < CROP_FRAMES
            first = batch["audio"][row, 0].item() // 320
            assert batch["audio"][row, : 320 * frames].tolist() == list(range(320 * first, 320 * (first + frames)))
            assert batch["codes"][row, 0, :frames].tolist() == [(first + frame) % 16 for frame in range(frames)]
            assert batch["codes"][row, 1, :frames].tolist() == [(first + frame + 1) % 16 for frame in range(frames)]
            assert batch["cqt"][row, :frames, 0].tolist() == [first + frame for frame in range(frames)]
            assert batch["valid"][row].tolist() == [frame < frames for frame in range(CROP_FRAMES)]
            assert not batch["audio"][row, 320 * frames :].any()
            assert not batch["codes"][row, :, frames:].to(torch.int64).any()
            assert not batch["cqt"][row, frames:].any()
    assert short, "no example shorter than the crop was drawn"


def all_entries(folder, split="train"):
    index = load_index(folder)
    reader = ShardReader(folder, index, index.shards(split))
    return [reader.entries(shard) for shard in range(len(index.shards(split)))]


def test_crops_are_those_of_seed_epoch_and_key(folder, reference):
    lengths = {entry.key: entry.num_frames for entries in all_entries(folder) for entry in entries}
    keys = [key for batch, _ in reference for key in batch["key"]]
    samples = torch.cat([batch["audio"][:, 0] for batch, _ in reference])
    for number, (key, sample) in enumerate(zip(keys, samples.tolist(), strict=True)):
        assert sample // 320 == random_crop(3, number // 13, key, lengths[key], CROP_FRAMES).start_frame


def test_every_epoch_has_every_example_once(folder, reference):
    keys = [key for batch, _ in reference for key in batch["key"]]
    everything = sorted(entry.key for entries in all_entries(folder) for entry in entries)
    assert len(everything) == 13
    for epoch in range(3):
        assert sorted(keys[13 * epoch : 13 * (epoch + 1)]) == everything
    assert keys[:13] != keys[13:26]
    # The tail of an epoch goes on in the batch that begins the next one.
    assert [(position["epoch"], position["offset"]) for _, position in reference[2:4]] == [(0, 12), (1, 3)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_same_batches_for_every_world_size_and_thread_count(folder, reference, world_size, threads, prefetch):
    assert_same(read(folder, 10, world_size=world_size, threads=threads, prefetch=prefetch), reference)


def test_a_rank_gets_its_contiguous_rows(folder, reference):
    with BatchStream(folder, load_index(folder), "train", config(), 3, rank=1, world_size=2) as stream:
        batch, _ = next(stream)
    assert batch["row"].tolist() == [2, 3]
    assert batch["key"] == reference[0][0]["key"][2:]


worlds, counts = st.sampled_from([1, 2, 4]), st.integers(0, 9)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.tuples(counts, counts), sizes=st.tuples(worlds, worlds, worlds), threads=st.integers(1, 4))
def test_resumes_anywhere_twice_in_a_row_in_another_world(folder, reference, stops, sizes, threads):
    first, second = sorted(stops)
    position, batches = None, []
    for count, world_size in zip((first, second - first, 10 - second), sizes, strict=True):
        batches += read(folder, count, position, world_size, threads=threads)
        position = json.loads(json.dumps(batches[-1][1])) if batches else None
    assert_same(batches, reference)


def test_resumes_with_another_batch_size(folder, reference):
    keys = [key for batch, _ in reference for key in batch["key"]]
    resumed = read(folder, 4, position=reference[2][1], batch_size=6)
    assert [key for batch, _ in resumed for key in batch["key"]] == keys[12:36]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order_version": 2}, "order_version 2 .* 1"),
        ({"seed": 4}, "seed 4 .* 3"),
        ({"split": "valid"}, "split valid .* train"),
        ({"shuffle_window": 3}, "shuffle_window 3 .* 2"),
        ({"index_digest": "0" * 64}, "index_digest 0{64} .* [0-9a-f]{64}"),
        ({"offset": 13}, "offset 13 in an epoch of 13"),
        ({"offset": -1}, "offset"),
        ({"epoch": "1"}, "epoch"),
        ({"world": 2}, "world"),
    ],
)
def test_refuses_a_position_that_does_not_fit(folder, reference, change, words):
    with pytest.raises(ValueError, match=f"^stream position: {words}"):
        BatchStream(folder, load_index(folder), "train", config(), 3, position=reference[0][1] | change)


def test_refuses_a_position_with_a_part_missing(folder, reference):
    position = {name: value for name, value in reference[0][1].items() if name != "index_digest"}
    with pytest.raises(ValueError, match="stream position: index_digest"):
        BatchStream(folder, load_index(folder), "train", config(), 3, position=position)


def test_refuses_worlds_and_crops_that_do_not_fit(folder):
    with pytest.raises(ValueError, match="batch size 4 is not a multiple of the world size 3"):
        BatchStream(folder, load_index(folder), "train", config(), 3, rank=0, world_size=3)
    with pytest.raises(ValueError, match="rank 2 .* 2"):
        BatchStream(folder, load_index(folder), "train", config(), 3, rank=2, world_size=2)
    with pytest.raises(ValidationError, match="120001 samples"):
        config(crop_samples=120_001)
    with pytest.raises(ValueError, match="no split 'test'"):
        BatchStream(folder, load_index(folder), "test", config(), 3)


def stream_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batch_stream")]


def test_no_thread_outlives_its_stream(folder):
    with BatchStream(folder, load_index(folder), "train", config(), 3) as stream:
        next(stream)
        assert stream_threads()
    assert not stream_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)
    stream = BatchStream(folder, load_index(folder), "train", config(), 3)
    next(stream)
    del stream
    gc.collect()
    for _ in range(100):
        if not stream_threads():
            break
        time.sleep(0.05)
    assert not stream_threads()


def test_prefetch_is_bounded(folder, monkeypatch):
    filled = []
    original = ShardReader.read_cuts
    monkeypatch.setattr(ShardReader, "read_cuts", lambda self, *place: filled.append(place) or original(self, *place))
    with BatchStream(folder, load_index(folder), "train", config(prefetch=2), 3) as stream:
        for served in range(1, 6):
            next(stream)
            time.sleep(0.1)
            assert len(filled) == 4 * (served + 2)


def test_a_batch_that_is_long_in_coming_is_spoken_of(folder, monkeypatch, caplog):
    """As when a store takes a request and never answers."""
    answers = threading.Event()
    original = ShardReader.read_cuts
    monkeypatch.setattr(loader, "WARN_EVERY", 0.1)
    monkeypatch.setattr(ShardReader, "read_cuts", lambda self, *place: answers.wait(30) and original(self, *place))
    with BatchStream(folder, load_index(folder), "train", config(), 3) as stream:
        threading.Timer(0.5, answers.set).start()
        next(stream)
    messages = [record.getMessage() for record in caplog.records]
    assert messages and all(
        re.fullmatch(r"waiting for the examples of a batch: \d s so far", each) for each in messages
    )


def test_an_error_in_a_thread_reaches_the_consumer_and_ends_the_stream(tmp_path):
    write_set(tmp_path, [3, 4])
    tar = tmp_path / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with BatchStream(str(tmp_path), load_index(str(tmp_path)), "train", config(prefetch=1), 3) as stream:
        with pytest.raises(ValueError, match=r"train-000001\.tar: train1x\d-00000\.\S+: .* truncated"):
            list(islice(stream, 4))
        assert not stream_threads()
        with pytest.raises(RuntimeError, match="closed"):
            next(stream)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_validation_covers_a_split_once(folder, world_size, batch_size):
    passes = [
        list(validation_batches(folder, load_index(folder), "valid", config(batch_size), rank, world_size))
        for rank in range(world_size)
    ]
    keys = Counter(key for batches in passes for batch in batches for key in batch["key"])
    assert keys == Counter(entry.key for entries in all_entries(folder, "valid") for entry in entries)
    lengths = {entry.key: entry.num_frames for entries in all_entries(folder, "valid") for entry in entries}
    for batch in (batch for batches in passes for batch in batches):
        assert len(batch["key"]) == len(batch["audio"]) == len(batch["row"]) <= batch_size // world_size
        for key, audio in zip(batch["key"], batch["audio"], strict=True):
            assert audio[0].item() // 320 == max(0, lengths[key] - CROP_FRAMES) // 2
    assert not stream_threads()


def test_validation_left_early_ends_its_threads(folder):
    batches = validation_batches(folder, load_index(folder), "valid", config(1))
    next(batches)
    batches.close()
    assert not stream_threads()


@pytest.mark.parametrize("audio_member", ["flac", "pcm.npy"])
def test_stream_from_a_remote_filesystem(tmp_path, audio_member, reference):
    remote = f"memory://test-batch-stream-{audio_member}"
    write_set(remote, SIZES, audio_member, VALID_SIZES)
    for (here, _), (there, _) in zip(reference, read(remote, 10), strict=True):
        assert here["key"] == there["key"]
        for name in ("audio", "valid", "row", *(spec.name for spec in SPECS)):
            assert torch.equal(here[name], there[name])

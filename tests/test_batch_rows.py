"""What makes the stream fast changes no bit: rows of reused memory, dr_flac, compared headers, looked-up levels."""

import io
import math
import os
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_fixtures import SPECS, index_shards, make_example, make_track, write_examples, write_set

from mert_foundry.model.objective.value_scale import Companding
from mert_foundry.pipeline.shards import format as shard_format
from mert_foundry.pipeline.shards.format import (
    decode_array,
    decode_example,
    decode_flac,
    decode_intact_flac,
    encode_array,
    encode_flac,
)
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.reader import Cut, ShardReader
from mert_foundry.pipeline.stream.batch_arrays import BatchArrays
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig, validation_batches
from mert_foundry.pipeline.stream.crops import random_crop

SIZES, VALID_SIZES = [5, 3, 4], [4, 3]


@pytest.fixture(scope="module", params=["flac", "pcm.npy"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder, SIZES, request.param, VALID_SIZES)
    return folder


def naive_examples(folder, split):
    """Every example of a split, decoded whole from the bytes of its tar, by key."""
    index = load_index(str(folder))
    reader = ShardReader(str(folder), index, index.shards(split))
    examples = {}
    for shard, listed in enumerate(index.shards(split)):
        tar = (folder / listed.url).read_bytes()
        for entry in reader.entries(shard):
            members = {suffix: tar[start : start + size] for suffix, (start, size, _) in entry.members.items()}
            examples[entry.key] = decode_example(entry.key, members, SPECS, index.audio_member)
    return examples


def naive_row(example, start, count, frames):
    """The crop, padded with zeros to `frames` frames."""

    def padded(array, length, axis=0):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, length - array.shape[axis])
        return np.pad(array, widths)

    return {
        "audio": padded(example.audio[320 * start : 320 * (start + count)], 320 * frames),
        "codes": padded(example.targets["codes"][:, start : start + count], frames, axis=1),
        "cqt": padded(example.targets["cqt"][start : start + count], frames),
        "valid": np.arange(frames) < count,
    }


def assert_rows(batch, row, expected):
    for name, array in expected.items():
        found = batch[name][row].numpy()
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 70),
    batch_size=st.integers(1, 9),
    threads=st.integers(1, 3),
    prefetch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_batches_are_those_of_a_naive_reader(folder, frames, batch_size, threads, prefetch, seed):
    """Longer than an epoch, so that blocks of memory come back; rows of short examples hold no rest of
    a former batch.
    """
    examples = naive_examples(folder, "train")
    config = StreamConfig(batch_size=batch_size, crop_samples=320 * frames, threads=threads, prefetch=prefetch)
    seen = 0
    with BatchStream(str(folder), load_index(str(folder)), "train", config, seed) as stream:
        for batch, _ in islice(stream, 2 * sum(SIZES) // batch_size + 2 * prefetch):
            for row, key in enumerate(batch["key"]):
                length = examples[key].info.num_frames
                crop = random_crop(seed, seen // sum(SIZES), key, length, frames)
                assert_rows(batch, row, naive_row(examples[key], *crop, frames))
                seen += 1


def test_a_smaller_last_validation_batch_is_whole_too(folder):
    examples = naive_examples(folder, "valid")
    config = StreamConfig(batch_size=3, crop_samples=320 * 20, prefetch=1)
    for batch in validation_batches(str(folder), load_index(str(folder)), "valid", config):
        for row, key in enumerate(batch["key"]):
            length = examples[key].info.num_frames
            start, count = max(0, length - 20) // 2, min(length, 20)
            assert_rows(batch, row, naive_row(examples[key], start, count, 20))


def test_a_batch_that_is_kept_keeps_its_content(folder):
    config = StreamConfig(batch_size=4, crop_samples=320 * 20, prefetch=1)
    with BatchStream(str(folder), load_index(str(folder)), "train", config, 0) as stream:
        batch, _ = next(stream)
        part, copy = batch["audio"][2, 100:200], batch["audio"][2, 100:200].clone()
        del batch
        for _ in islice(stream, 12):
            pass
        assert torch.equal(part, copy)


@pytest.mark.process
def test_a_forked_process_keeps_the_content_of_its_batches():
    arrays = BatchArrays({"audio": ((6,), "int16")})
    batch = arrays.take(4)["audio"]
    batch[:] = 1
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        os._exit(0 if (batch == 1).all() else 1)
    del batch
    arrays.take(4)["audio"][:] = 2
    os.write(write, b"x")
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)


def test_memory_comes_back_when_the_last_view_goes():
    arrays = BatchArrays({"audio": ((6,), "int16"), "valid": ((3,), "bool")})
    first = arrays.take(4)
    assert {name: (array.shape, array.dtype) for name, array in first.items()} == {
        "audio": ((4, 6), np.int16),
        "valid": ((4, 3), np.bool_),
    }
    place = first["audio"].ctypes.data
    view = torch.from_numpy(first["valid"])[1:].numpy()
    del first
    second = arrays.take(4)
    assert second["audio"].ctypes.data != place
    del view
    third = arrays.take(2)
    assert third["audio"].ctypes.data == place


SOUNDS = {
    "silence": lambda rng, n: np.zeros(n),
    "constant": lambda rng, n: np.full(n, -32768),
    "full scale noise": lambda rng, n: rng.integers(-32768, 32768, n),
    "quiet noise": lambda rng, n: rng.integers(-3, 4, n),
    "tone": lambda rng, n: 20_000 * np.sin(np.arange(n) * rng.uniform(0.001, 3)),
    "square": lambda rng, n: 32_767 * np.sign(np.sin(np.arange(n) * rng.uniform(0.001, 1))),
    "clicks": lambda rng, n: 30_000 * (rng.random(n) > 0.999),
    "wasted bits": lambda rng, n: 256 * rng.integers(-100, 100, n),
}


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), parts=st.lists(st.sampled_from(sorted(SOUNDS)), min_size=1, max_size=4), seed=st.integers(0, 999)
)
def test_dr_flac_gives_the_bits_of_libsndfile(data, parts, seed):
    rng = np.random.default_rng(seed)
    audio = np.concatenate([SOUNDS[part](rng, data.draw(st.integers(1, 9_000))) for part in parts]).astype(np.int16)
    flac = encode_flac(audio)
    start = data.draw(st.integers(0, len(audio) - 1))
    count = data.draw(st.integers(1, len(audio) - start))
    found = np.full(count, 77, np.int16)
    decode_intact_flac("x", flac, len(audio), [(start, found)])
    np.testing.assert_array_equal(found, audio[start : start + count])
    np.testing.assert_array_equal(decode_flac("x", flac, len(audio), start, count), found)


def test_flac_without_miniaudio(monkeypatch):
    audio = np.arange(9_000, dtype=np.int16)
    monkeypatch.setattr(shard_format, "lib", None)
    found = np.zeros(100, np.int16)
    decode_intact_flac("x", encode_flac(audio), 9_000, [(5_000, found)])
    np.testing.assert_array_equal(found, audio[5_000:5_100])


@pytest.mark.parametrize("content", [b"", b"fLaC", b"RIFF" * 20])
def test_what_is_no_flac_is_named(content):
    with pytest.raises(ValueError, match="^x: cannot be decoded"):
        decode_intact_flac("x", content, 100, [(0, np.zeros(10, np.int16))])


def test_flac_of_another_length_is_named():
    flac = encode_flac(np.zeros(640, np.int16))
    with pytest.raises(ValueError, match=r"x: \(Hz, channels, samples\) \(24000, 1, 640\), expected \(24000, 1, 320\)"):
        decode_intact_flac("x", flac, 320, [(0, np.zeros(10, np.int16))])


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), start=st.integers(0, 50))
def test_a_flipped_bit_of_flac_or_codes_is_refused_by_name(tmp_path_factory, place, bit, start):
    """Wherever it is in the member: dr_flac alone would go on with the samples of a later time."""
    folder = tmp_path_factory.mktemp("damaged")
    track = make_track("a", 60)
    write_examples(folder, "train-000000", track)
    index = index_shards(folder, ["train-000000"])
    entry = ShardReader(str(folder), index, index.shards("train")).entries(0)[0]
    tar = folder / "train-000000.tar"
    content = tar.read_bytes()
    for suffix in ("flac", "codes.npy"):
        offset, size, _ = entry.members[suffix]
        damaged = bytearray(content)
        damaged[offset + int(place * size)] ^= 1 << bit
        tar.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"train-000000\.tar: a-00000\.{suffix}: CRC-32"):
            ShardReader(str(folder), index, index.shards("train")).read(0, 0, start, 10)


@pytest.mark.filterwarnings("ignore")  # Python parses a damaged header
@settings(max_examples=300, deadline=None)
@given(
    place=st.integers(0, 127), byte=st.integers(0, 255), dtype=st.sampled_from(["uint16", "float16", "uint8"]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)  # fmt: skip
def test_a_header_with_another_byte_is_what_numpy_says_or_refused(place, byte, dtype, shape):
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    content = bytearray(encode_array(array))
    content[place] = byte
    try:
        found = decode_array("x", bytes(content), dtype, shape)
    except ValueError as error:
        assert str(error).startswith("x: ")
    else:
        np.testing.assert_array_equal(found, np.load(io.BytesIO(bytes(content))))
        np.testing.assert_array_equal(found, array)


def test_a_header_of_another_writer_is_parsed():
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    content = encode_array(array).replace(
        b"'descr': '<u2', 'fortran_order': False,", b"'fortran_order':False,'descr':'<u2'   ,", 1
    )
    assert content != encode_array(array)
    np.testing.assert_array_equal(decode_array("x", content, "uint16", (3, 4)), array)


@settings(max_examples=30, deadline=None)
@given(peak=st.floats(0.1, 1e4), mu=st.floats(1, 1e5), shape=st.lists(st.integers(0, 5), max_size=3))
def test_looked_up_levels_have_the_bits_of_computed_ones(peak, mu, shape):
    levels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    computed = torch.expm1(levels.float() * (math.log1p(mu) / 255.0)) * (peak / mu)
    found = Companding(peak=peak, mu=mu).expand(levels)
    assert found.dtype == torch.float32 and found.shape == levels.shape
    assert torch.equal(found, computed)


@pytest.mark.parametrize("audio_member", ["flac", "pcm.npy"])
@pytest.mark.parametrize("lib", [True, False])
def test_cuts_of_one_example_fill_their_arrays(tmp_path, monkeypatch, audio_member, lib):
    """Apart, overlapping, alike, one within another, and in any order."""
    if not lib:
        monkeypatch.setattr(shard_format, "lib", None)
    write_examples(tmp_path, "train-000000", [make_example("track", 60)], audio_member)
    index = index_shards(tmp_path, ["train-000000"], audio_member)
    example = make_example("track", 60)
    cuts = [
        Cut(start, count, {"audio": np.zeros(320 * count, np.int16), "codes": np.zeros((2, count), np.uint16),
                    "cqt": np.zeros((count, 4), np.float16)})
        for start, count in [(40, 20), (0, 12), (5, 12), (5, 12), (7, 3), (16, 2), (17, 4)]
    ]  # fmt: skip
    ShardReader(str(tmp_path), index, index.shards("train")).read_cuts(0, 0, cuts)
    for start, _, arrays in cuts:
        stop = start + len(arrays["cqt"])
        np.testing.assert_array_equal(arrays["audio"], example.audio[320 * start : 320 * stop])
        np.testing.assert_array_equal(arrays["codes"], example.targets["codes"][:, start:stop])
        np.testing.assert_array_equal(arrays["cqt"], example.targets["cqt"][start:stop])

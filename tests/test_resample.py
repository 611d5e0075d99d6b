"""Resampling block by block against torchaudio on the whole signal, and against physics."""

import numpy as np
import pytest
import torch
from audio_files import noise, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample

from pipeline import resample as module
from pipeline.frames import resampled_length
from pipeline.resample import decoded_track, resample_blocks, to_float, to_mono

RATES = [8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000]


def in_blocks(audio: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Cut `[..., T]` into blocks of these sizes in turn."""
    blocks, start, turn = [], 0, 0
    while start < audio.shape[-1]:
        blocks.append(audio[..., start : start + sizes[turn % len(sizes)]])
        start += blocks[-1].shape[-1]
        turn += 1
    return blocks


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    seconds=st.floats(1e-5, 4),
    sizes=st.lists(st.one_of(st.integers(500, 9000), st.integers(30_000, 200_000)), min_size=1, max_size=4),
    block_seconds=st.sampled_from([1, 1, 2, 20]),
    target=st.sampled_from([24_000, 24_000, 16_000]),
)
def test_blocks_join_to_torchaudios_result(rate: int, seconds: float, sizes: list[int], block_seconds: int, target: int):
    length = max(1, round(seconds * rate))
    audio = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_SECONDS", block_seconds)
        parts = list(resample_blocks(in_blocks(audio, sizes), rate, target))
    joined = np.concatenate(parts)
    expected = resample(torch.from_numpy(audio), rate, target).numpy()
    assert joined.dtype == np.float32 and len(joined) == len(expected) == resampled_length(length, rate, target)
    np.testing.assert_allclose(joined, expected, atol=1e-5)


def test_blocks_of_the_real_size_join_without_a_trace():
    audio = noise(47, 22_050)
    joined = np.concatenate(list(resample_blocks(in_blocks(audio, [1 << 18]), 22_050)))
    np.testing.assert_allclose(joined, resample(torch.from_numpy(audio), 22_050, 24_000).numpy(), atol=1e-5)


def test_memory_is_that_of_a_block():
    """Output comes long before the input ends, and no part is longer than a block."""
    fed = 0

    def feed():
        nonlocal fed
        for _ in range(20):
            fed += 1
            yield noise(10, 48_000, seed=fed)

    stream = resample_blocks(feed(), 48_000)
    first = next(stream)
    assert fed <= 4 and len(first) == module.BLOCK_SECONDS * 24_000
    assert max(map(len, stream)) <= module.BLOCK_SECONDS * 24_000


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_stays_where_it_is(rate: int):
    output = np.concatenate(list(resample_blocks(in_blocks(tone(1000, 2, rate), [10_000]), rate)))
    inner = slice(1000, -1000)
    np.testing.assert_allclose(output[inner], tone(1000, 2)[inner], atol=5e-3)


def test_what_24_khz_cannot_hold_is_gone():
    output = np.concatenate(list(resample_blocks([tone(15_000, 2, 48_000)], 48_000)))
    assert np.abs(output[1000:-1000]).max() < 0.01


def test_no_input_gives_no_output():
    assert list(resample_blocks([], 44_100)) == []
    assert len(decoded_track([], 44_100)) == 0


def test_channels_are_averaged():
    left, right = tone(300, 1), tone(700, 1)
    np.testing.assert_allclose(to_mono(np.stack([left, right])), (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(to_mono(left[None]), left)
    assert not to_mono(np.stack([left, -left])).any()


@pytest.mark.parametrize("rate", [24_000, 44_100])
@pytest.mark.parametrize("length", [0, 1, 319, 320, 321, 50_000])
def test_a_track_is_16_bit_and_whole_frames(rate: int, length: int):
    audio = np.random.default_rng(0).uniform(-1, 1, (2, length)).astype(np.float32)
    track = decoded_track(in_blocks(audio, [7000]), rate)
    frames = -(-length * 24_000 // rate) // 320
    assert track.dtype == np.int16 and len(track) == 320 * frames
    if frames:
        whole = resample(torch.from_numpy(audio.mean(axis=0)), rate, 24_000).numpy()[: len(track)]
        np.testing.assert_allclose(to_float(track), np.clip(whole, -1, 32_767 / 32_768), atol=0.51 / 32_768 + 1e-5)

"""Resampling block by block against torchaudio on the whole signal, exact integers, and physics."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from audio_files import noise, tone
from encodec.utils import convert_audio
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torchaudio.transforms import Resample

from mert_foundry.pipeline.audio import resample as module
from mert_foundry.pipeline.audio.blocks import to_float, to_int16
from mert_foundry.pipeline.audio.resample import Resampler, decoded_track, resample_to_int16, to_mono
from mert_foundry.pipeline.frames import resampled_length

RATES = [8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000]


def in_blocks(audio: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Cut `[..., T]` into blocks of these sizes in turn."""
    blocks, start, turn = [], 0, 0
    while start < audio.shape[-1]:
        blocks.append(audio[..., start : start + sizes[turn % len(sizes)]])
        start += blocks[-1].shape[-1]
        turn += 1
    return blocks


def resampled(audio: np.ndarray, rate: int, target: int = 24_000, device: str = "cpu") -> np.ndarray:
    """The resampler's own float64 result for a mono signal."""
    return np.concatenate(list(Resampler(rate, target, torch.device(device)).stream([audio])))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    seconds=st.floats(1e-5, 12),
    target=st.sampled_from([24_000, 24_000, 16_000]),
)
@example(rate=44_160, seconds=3.0, target=24_000)
@example(rate=44_056, seconds=3.0, target=24_000)
@example(rate=22_255, seconds=3.0, target=24_000)
def test_a_signal_comes_out_as_from_encodecs_own_conversion(rate: int, seconds: float, target: int):
    assume(rate != target)
    audio = np.random.default_rng(rate).uniform(-1, 1, max(1, round(seconds * rate))).astype(np.float32)
    expected = convert_audio(torch.from_numpy(audio)[None], rate, target, 1)[0].numpy()
    found = resampled(audio, rate, target)
    assert found.dtype == np.float64 and len(found) == len(expected) == resampled_length(len(audio), rate, target)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def exact_resample(audio: np.ndarray, rate: int) -> np.ndarray:
    """Torchaudio's filters over integers of any size, one output after the other: no sum is ever rounded."""
    transform = Resample(rate, 24_000)
    taps = [[int(value) for value in row] for row in (transform.kernel[:, 0] * 2.0**26).round().tolist()]
    silence = [0] * len(taps[0])
    steps = silence[: transform.width] + [int(value) for value in np.rint(audio * 2.0**23)] + silence
    period = len(taps[0]) - 2 * transform.width
    outputs = []
    for number in range(resampled_length(len(audio), rate)):
        row, phase = divmod(number, len(taps))
        outputs.append(sum(tap * steps[row * period + place] for place, tap in enumerate(taps[phase]) if tap) / 2**49)
    return np.array(outputs)


@settings(max_examples=20, deadline=None)
@given(
    rate=st.sampled_from([8000, 22_050, 44_100, 48_000, 192_000]), length=st.integers(1, 2000), seed=st.integers(0, 99)
)
def test_the_arithmetic_is_exact_bit_for_bit(rate: int, length: int, seed: int):
    """Which is why it may run anywhere. Loud samples, so that every bit of a float64 is needed."""
    audio = np.random.default_rng(seed).choice([-4, 4, 3.9999998, -3.9999998], length).astype(np.float32)
    np.testing.assert_array_equal(resampled(audio, rate), exact_resample(audio, rate))


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    seconds=st.floats(1e-5, 12),
    sizes=st.lists(
        st.one_of(st.integers(1, 3), st.integers(500, 9000), st.integers(30_000, 200_000)), min_size=2, max_size=4
    ),
    channels=st.integers(1, 3),
    block_seconds=st.sampled_from([1, 2, 5]),
)
def test_blocks_change_no_bit(rate: int, seconds: float, sizes: list[int], channels: int, block_seconds: int):
    """Of the float64 values, loud ones that need all their bits; then of what is kept of them."""
    assume(max(sizes) > 400)
    audio = np.random.default_rng(rate).uniform(-4, 4, (channels, max(1, round(seconds * rate)))).astype(np.float32)
    whole = mono = to_mono(audio)
    with pytest.MonkeyPatch.context() as patch:
        if rate != 24_000:
            whole = resampled(mono, rate)
            patch.setattr(module, "BLOCK_SECONDS", block_seconds)
            parts = Resampler(rate, 24_000, torch.device("cpu")).stream(in_blocks(mono, sizes))
            np.testing.assert_array_equal(np.concatenate(list(parts)), whole)
        kept = np.concatenate(list(resample_to_int16(in_blocks(audio, sizes), rate)))
    np.testing.assert_array_equal(kept, to_int16(whole))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rate", [rate for rate in RATES if rate != 24_000])
def test_a_gpu_gives_the_bits_of_a_cpu(rate: int):
    audio = np.random.default_rng(rate).uniform(-4, 4, 12 * rate).astype(np.float32)
    np.testing.assert_array_equal(resampled(audio, rate, device="cuda"), resampled(audio, rate))


def test_threads_share_the_filters_of_a_rate(monkeypatch: pytest.MonkeyPatch):
    """Also when all need them at once: at odd rates making them takes 31 bytes for each of millions of coefficients."""
    made = []
    monkeypatch.setattr(module, "Resample", lambda *rates: made.append(rates) or Resample(*rates))
    audio = [noise(1, 44_150, seed=seed)[None] for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda samples: decoded_track([samples], 44_150), audio))
    assert made == [(44_150, 24_000)]
    for samples, found in zip(audio, together, strict=True):
        np.testing.assert_array_equal(found, decoded_track(in_blocks(samples, [7000]), 44_150))


def test_memory_is_that_of_a_block():
    """Output comes long before the input ends, and no part is longer than a block."""
    fed = 0

    def feed():
        nonlocal fed
        for _ in range(20):
            fed += 1
            yield noise(10, 48_000, seed=fed)[None]

    stream = resample_to_int16(feed(), 48_000)
    first = next(stream)
    most = module.BLOCK_SECONDS * 24_000
    assert fed == 1 and 0 < len(first) <= most
    assert max(map(len, stream)) <= most


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_stays_where_it_is(rate: int):
    output = to_float(decoded_track(in_blocks(tone(1000, 2, rate)[None], [10_000]), rate))
    inner = slice(1000, -1000)
    np.testing.assert_allclose(output[inner], tone(1000, 2)[inner], atol=5e-3)


def test_what_24_khz_cannot_hold_is_gone():
    output = resampled(tone(15_000, 2, 48_000), 48_000)
    assert np.abs(output[1000:-1000]).max() < 0.01


def test_no_input_gives_no_output():
    assert list(resample_to_int16([], 44_100)) == []
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
        whole = convert_audio(torch.from_numpy(audio), rate, 24_000, 1)[0].numpy()[: len(track)]
        np.testing.assert_allclose(to_float(track), np.clip(whole, -1, 32_767 / 32_768), rtol=0, atol=0.52 / 32_768)

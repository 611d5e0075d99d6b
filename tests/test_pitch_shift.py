"""Sound shifted in pitch at its own tempo: frequencies, times and lengths, the same whatever the blocks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import noise, tone, write_audio
from cqt_reference import read_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.audio.decoding import decoding
from mert_foundry.pipeline.audio.pitch_shift import shift_to_int16
from mert_foundry.pipeline.audio.resample import mono_to_int16
from mert_foundry.pipeline.teachers.cqt import CqtTeacher, CqtTeacherConfig

BURSTS = [0.0, 0.5, 1.7, 3.0, 4.4, 6.1, 8.8]  # seconds


def shifted(audio: np.ndarray, rate: int, semitones: int, block: int = 1 << 18) -> np.ndarray:
    """float32 `[T]`, in blocks of a size, to int16 at 24 kHz; without a filter where there is no shift."""
    blocks = (audio[start : start + block] for start in range(0, len(audio), block))
    results = shift_to_int16(blocks, rate, semitones) if semitones else mono_to_int16(blocks, rate)
    return np.concatenate([np.zeros(0, np.int16), *results])


def spectrum(audio: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(audio * np.hanning(len(audio))))


def loudest_frequency(audio: np.ndarray) -> float:
    """Hz, at 24 kHz, from the parabola through the logarithms of the three highest bins."""
    levels = spectrum(audio)
    peak = int(levels.argmax())
    left, top, right = np.log(levels[peak - 1 : peak + 2])
    return (peak + (left - right) / (left - 2 * top + right) / 2) * 24_000 / len(audio)


@pytest.mark.parametrize(
    ("rate", "semitones"), [(44_100, 2), (44_100, -2), (48_000, 7), (22_050, -5), (16_000, 11), (96_000, -11)]
)
def test_a_tone_of_a_file_is_heard_at_the_shifted_pitch_and_nothing_else_is(tmp_path: Path, rate: int, semitones: int):
    path = write_audio(tmp_path / "a.wav", tone(440, 8, rate), rate)
    with decoding(path) as plain, decoding(path, semitones=semitones) as copy:
        original, audio = np.concatenate(list(plain.blocks)), np.concatenate(list(copy.blocks))
    assert copy.digest.hexdigest() == plain.digest.hexdigest(), "the digest is of the file"
    assert len(audio) == len(original) == 8 * 24_000
    assert 1200 * abs(math.log2(loudest_frequency(audio) / (440 * 2 ** (semitones / 12)))) < 3
    powers = spectrum(audio) ** 2
    peak = int(powers.argmax())
    assert powers[peak - 40 : peak + 41].sum() > 0.99 * powers.sum()
    assert np.abs(audio[:2400]).max() > 16_000 and np.abs(audio[-240:]).max() > 16_000, "from the first to the last"


@pytest.mark.parametrize(("rate", "semitones"), [(44_100, 2), (44_100, -7), (8000, -2), (192_000, 11)])
def test_what_is_heard_stays_where_it_is(rate: int, semitones: int):
    """Bursts of noise begin within 20 ms of those of the original, at the end as at the start: the
    tempo is the same.
    """
    audio, burst = np.zeros(9 * rate, np.float32), noise(0.1, rate) * np.exp(-np.arange(rate // 10) / (0.02 * rate))
    for second in BURSTS:
        start = round(second * rate)
        audio[start : start + len(burst)] = burst
    found = np.abs(shifted(audio, rate, semitones).astype(int))
    for second in BURSTS:
        first = max(0, round((second - 0.1) * 24_000))
        near = found[first : first + 4800]
        assert abs((first + int(np.argmax(near > near.max() / 10))) / 24_000 - second) < 0.02


def test_a_shift_down_brings_in_what_the_file_has_above_12_khz():
    sound = tone(15_000, 2, 44_100)
    assert np.abs(shifted(sound, 44_100, 0)[2400:-2400]).max() < 500
    audio = shifted(sound, 44_100, -7)
    assert np.abs(audio[2400:-2400]).max() > 14_000
    assert loudest_frequency(audio) == pytest.approx(15_000 * 2 ** (-7 / 12), rel=1e-3)


@settings(max_examples=30)
@given(
    length=st.one_of(st.integers(0, 3000), st.integers(0, 60_000)),
    rate=st.sampled_from([1000, 8000, 22_050, 24_000, 44_099, 44_100, 192_000]),
    semitones=st.sampled_from([-11, -2, -1, 1, 3, 11]),
    block=st.integers(64, 50_000),
)
def test_any_length_is_kept_and_blocks_make_no_difference(length: int, rate: int, semitones: int, block: int):
    audio = noise(1, length, seed=1)
    once = shifted(audio, rate, semitones)
    assert len(once) == len(shifted(audio, rate, 0))
    np.testing.assert_array_equal(shifted(audio, rate, semitones, block), once)


@pytest.mark.parametrize("semitones", [-3, 2])
def test_the_constant_q_spectrum_of_music_moves_by_the_bins_of_the_shift(clips: Path, semitones: int):
    music = read_clip(clips / "wesnoth-1.16-music/transience.flac")
    config = CqtTeacherConfig(kind="cqt", lowest_frequency=110, bins=48, bins_per_octave=12, storage="float16")
    teacher = CqtTeacher(config, torch.device("cpu"))
    original, copy = (
        np.concatenate([teacher.spec.values(part) for part in teacher.label([audio])]).astype(np.float64)
        for audio in (music, shifted(music, 24_000, semitones).astype(np.float32) / 32_768)
    )
    moved = {
        bins: np.corrcoef(original[:, 12:36].ravel(), copy[: len(original), 12 + bins : 36 + bins].ravel())[0, 1]
        for bins in range(-6, 7)
    }
    assert max(moved, key=moved.__getitem__) == semitones, moved
    assert moved[semitones] > 0.9 > 0.5 > moved[0], moved

"""Log-mel and chroma against torchaudio, against transformers' copy of librosa's filters, and against physics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import decoded, noise, tone
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.transforms import MelSpectrogram
from transformers.audio_utils import chroma_filter_bank

from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.teachers.spectra import power_spectra
from mert_foundry.pipeline.teachers.spectra.power_spectra import Chroma, LogMel, chroma_filters

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(clips: Path) -> np.ndarray:
    return to_float(decoded(clips / "wesnoth-1.16-music/transience.flac"))


def computed(feature: LogMel | Chroma, *blocks: np.ndarray) -> np.ndarray:
    return np.concatenate([part.numpy() for part in feature.stream(blocks)])


@pytest.mark.parametrize("chunk_frames", [750, 13, 1])
def test_logmel_equals_torchaudio_over_a_whole_clip(
    clip: np.ndarray, chunk_frames: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(power_spectra, "CHUNK_FRAMES", chunk_frames)
    audio = clip if chunk_frames > 13 else clip[: 320 * 100]
    whole = MelSpectrogram(24_000, n_fft=2048, hop_length=320, f_min=30, n_mels=229, pad_mode="constant")
    expected = 10 * whole(torch.from_numpy(audio)).clamp_min(1e-10).log10().T[: len(audio) // 320]
    np.testing.assert_allclose(computed(LogMel(229, CPU), audio), expected, atol=2e-3)  # dB


@pytest.mark.parametrize("window_length", [2048, 4096])
@pytest.mark.parametrize("bins", [12, 264])
def test_chroma_filters_are_those_of_librosa(window_length: int, bins: int):
    expected = chroma_filter_bank(window_length, bins, 24_000)
    np.testing.assert_allclose(chroma_filters(24_000, window_length, bins).T, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("frequency", [220.0, 440.0, 1760.0])
@pytest.mark.parametrize("semitones", [0, 3, 10])
def test_a_tone_lights_its_pitch_class_in_every_octave(frequency: float, semitones: int):
    chroma = computed(Chroma(264, CPU), tone(frequency * 2 ** (semitones / 12), 1))
    expected = (9 + semitones) % 12 * 22  # A is nine semitones above C
    distance = (chroma[20:-20].argmax(axis=1) - expected + 132) % 264 - 132
    assert (np.abs(distance) <= 11).all()  # within half a semitone, 5.9 Hz lie between Fourier bins
    assert chroma.max() == 1 and chroma.min() >= 0


def test_chroma_does_not_hear_loudness(clip: np.ndarray):
    audio = clip[: 320 * 50]
    np.testing.assert_allclose(computed(Chroma(264, CPU), audio), computed(Chroma(264, CPU), audio / 8), atol=1e-5)


def test_silence():
    silence = np.zeros(320 * 30, np.float32)
    assert (computed(LogMel(128, CPU), silence) == -100).all()
    assert not computed(Chroma(264, CPU), silence).any()


@pytest.mark.parametrize("frame", [0, 17, 39])
def test_an_impulse_is_loudest_in_its_frame(frame: int):
    audio = np.zeros(320 * 40, np.float32)
    audio[320 * frame] = 1.0
    assert computed(LogMel(64, CPU), audio).sum(axis=1).argmax() == frame


@pytest.mark.slow
@pytest.mark.parametrize("feature", [LogMel(64, CPU), Chroma(24, CPU)], ids=["logmel", "chroma"])
@given(frames=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_values_do_not_depend_on_the_blocks(feature: LogMel | Chroma, frames: list[int]):
    audio = noise(sum(frames) / 75, seed=len(frames))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power_spectra, "CHUNK_FRAMES", 16)
        whole = computed(feature, audio)
        cut = computed(feature, *np.split(audio, np.cumsum(frames)[:-1] * 320))
    assert whole.shape == (sum(frames), feature.size)
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("feature", [LogMel(64, CPU), Chroma(24, CPU)], ids=["logmel", "chroma"])
def test_little_audio_is_held(feature: LogMel | Chroma):
    given_out, computed_frames = 0, 0

    def blocks():
        nonlocal given_out
        for _ in range(40):
            given_out += 150
            yield np.zeros(320 * 150, np.float32)
            assert given_out - computed_frames < 3 * power_spectra.CHUNK_FRAMES

    for part in feature.stream(blocks()):
        computed_frames += len(part)
    assert computed_frames == given_out == 6000

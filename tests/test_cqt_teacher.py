"""The CQT teacher against nnAudio on the whole clip, and against physics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import noise, tone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnAudio.features.cqt import CQT

from pipeline import cqt_teacher
from pipeline.cqt_teacher import CqtTeacher, CqtTeacherConfig
from pipeline.decode import open_audio
from pipeline.resample import decoded_track, to_float

SMALL = {"lowest_frequency": 500.0, "bins": 36, "bins_per_octave": 12}


def make_teacher(**options) -> CqtTeacher:
    return CqtTeacher(CqtTeacherConfig(kind="cqt", **options), torch.device("cpu"))


def whole_cqt(audio: np.ndarray, lowest_frequency: float, bins: int, bins_per_octave: int) -> np.ndarray:
    """nnAudio's own way of the whole track, `[frames, bins]`, without the frame centred on the very end."""
    transform = CQT(
        sr=24_000, hop_length=320, fmin=lowest_frequency, n_bins=bins, bins_per_octave=bins_per_octave, center=True,
        pad_mode="constant", output_format="Magnitude", verbose=False,
    )
    with torch.inference_mode():
        return transform(torch.from_numpy(audio)[None])[0].T.numpy()[: len(audio) // 320]


@pytest.fixture(scope="module")
def small() -> CqtTeacher:
    return make_teacher(**SMALL)


@pytest.fixture(scope="module")
def clip(clips: Path) -> np.ndarray:
    with open_audio(clips / "wesnoth-1.16-music/transience.flac") as audio:
        return to_float(decoded_track(audio.blocks(), audio.header.sample_rate))


def test_equals_nnaudio_on_the_whole_clip_chunked_or_not(small: CqtTeacher, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    expected = whole_cqt(clip, **SMALL)
    for chunk in (10_000, 111, 1):
        audio = clip if chunk > 1 else clip[: 320 * 50]
        monkeypatch.setattr(cqt_teacher, "CHUNK_FRAMES", chunk)
        magnitudes = small.label(audio)
        assert magnitudes.dtype == np.float16 and magnitudes.shape == (len(audio) // 320, 36)
        stop = len(magnitudes) if chunk > 1 else 30  # later frames hear what was cut away
        np.testing.assert_allclose(magnitudes[:stop].astype(np.float32), expected[:stop], rtol=1e-3, atol=1e-5)


def test_equals_nnaudio_at_the_published_settings(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cqt_teacher, "CHUNK_FRAMES", 40)
    audio = clip[: 320 * 90]
    published = {"lowest_frequency": 32.7, "bins": 336, "bins_per_octave": 48}
    teacher = make_teacher()
    assert {name: teacher.spec.teacher[name] for name in published} == published
    np.testing.assert_allclose(teacher.label(audio).astype(np.float32), whole_cqt(audio, **published), rtol=1e-3, atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.integers(1, 30), chunk=st.integers(1, 9))
def test_short_tracks_and_any_chunks(small: CqtTeacher, frames: int, chunk: int):
    audio = noise(frames / 75, seed=frames)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cqt_teacher, "CHUNK_FRAMES", chunk)
        magnitudes = small.label(audio)
    np.testing.assert_allclose(magnitudes.astype(np.float32), whole_cqt(audio, **SMALL), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("index", [0, 5, 20, 35])
def test_a_tone_lights_its_own_bin(small: CqtTeacher, index: int):
    magnitudes = small.label(tone(500.0 * 2 ** (index / 12), 1)).astype(np.float32)
    assert (magnitudes[20:-20].argmax(axis=1) == index).all()
    assert (magnitudes[20:-20, index] > 3 * np.delete(magnitudes[20:-20], [index - 1, index, (index + 1) % 36], axis=1).max(axis=1)).all()


def test_twice_as_loud_is_twice_the_magnitude(small: CqtTeacher):
    audio = tone(1000, 0.5)
    np.testing.assert_allclose(
        small.label(audio).astype(np.float32), 2 * small.label(audio / 2).astype(np.float32), rtol=3e-3, atol=1e-5
    )


def test_silence_is_silent(small: CqtTeacher):
    magnitudes = small.label(np.zeros(320 * 30, np.float32))
    assert magnitudes.shape == (30, 36) and not magnitudes.any()


@pytest.mark.parametrize("frame", [0, 17, 40])
def test_an_impulse_peaks_at_its_frame(small: CqtTeacher, frame: int):
    audio = np.zeros(320 * 60, np.float32)
    audio[320 * frame] = 1.0
    magnitudes = small.label(audio).astype(np.float32)
    assert (magnitudes.argmax(axis=0) == frame).all()
    for distance in range(1, min(frame, 5)):
        np.testing.assert_allclose(magnitudes[frame + distance], magnitudes[frame - distance], atol=1e-3)


def test_a_bin_above_half_the_sample_rate_is_refused():
    with pytest.raises(ValueError, match="12[0-9]{3} Hz.*12000 Hz"):
        make_teacher(lowest_frequency=6200, bins=13, bins_per_octave=12)
    assert make_teacher(lowest_frequency=5900, bins=13, bins_per_octave=12).spec.size == 13


def test_fingerprint_follows_the_settings_not_the_name(small: CqtTeacher):
    assert make_teacher(**SMALL, name="pitch").spec.fingerprint == small.spec.fingerprint
    for change in ({"lowest_frequency": 501.0}, {"bins": 35}, {"bins_per_octave": 13}):
        assert make_teacher(**SMALL | change).spec.fingerprint != small.spec.fingerprint

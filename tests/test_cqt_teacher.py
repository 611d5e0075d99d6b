"""The CQT teacher: nnAudio's magnitudes, stored within their rounding, whatever the blocks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import noise, tone
from cqt_reference import PUBLISHED, read_clip, reference_cqt
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.teachers.cqt import CqtTeacher, CqtTeacherConfig

SMALL = {"lowest_frequency": 500.0, "bins": 36, "bins_per_octave": 12}
HALF_A_LEVEL = 0.0183  # of a value: (1 + mu)^(1 / 510) - 1, with mu = 10,000


def make_teacher(**options) -> CqtTeacher:
    return CqtTeacher(CqtTeacherConfig(kind="cqt", **options), torch.device("cpu"))


def label(teacher: CqtTeacher, *blocks: np.ndarray) -> np.ndarray:
    return np.concatenate(list(teacher.label(blocks)))


def values(teacher: CqtTeacher, *blocks: np.ndarray) -> np.ndarray:
    return teacher.spec.values(label(teacher, *blocks))


@pytest.fixture(scope="module")
def small() -> CqtTeacher:
    return make_teacher(**SMALL)


@pytest.fixture(scope="module")
def clip(clips: Path) -> np.ndarray:
    return read_clip(clips / "wesnoth-1.16-music/transience.flac")


@pytest.fixture(scope="module")
def expected(clip: np.ndarray) -> np.ndarray:
    return reference_cqt(clip, **PUBLISHED)


def test_float16_is_nnaudio_rounded(clip: np.ndarray, expected: np.ndarray):
    teacher = make_teacher(storage="float16")
    assert {name: teacher.spec.teacher[name] for name in PUBLISHED} == PUBLISHED
    assert (teacher.spec.dtype, teacher.spec.companding) == ("float16", None)
    stored = label(teacher, clip)
    assert stored.dtype == np.float16 and stored.shape == teacher.spec.shape(len(clip) // 320)
    np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=6e-4, atol=2e-5)


def test_uint8_is_nnaudio_to_half_a_level(clip: np.ndarray, expected: np.ndarray):
    teacher = make_teacher()
    curve = teacher.spec.companding
    assert (teacher.spec.dtype, curve.peak, curve.mu) == ("uint8", 225.0, 10_000.0)
    stored = label(teacher, clip)
    assert stored.dtype == np.uint8 and stored.shape == teacher.spec.shape(len(clip) // 320)
    found = teacher.spec.values(stored)
    np.testing.assert_allclose(found, expected, rtol=HALF_A_LEVEL + 1e-4, atol=HALF_A_LEVEL * 225 / 10_000 + 2e-5)
    variance = expected.astype(np.float64).var(axis=0).mean()
    assert np.square(found - expected).mean() < 5e-4 * variance


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 99), max_size=6), storage=st.sampled_from(["float16", "uint8"]))
def test_the_sizes_of_blocks_do_not_matter_bit_for_bit(cuts: list[int], storage: str):
    teacher, audio = make_teacher(**SMALL, storage=storage), noise(100 / 75, seed=1)
    teacher.chunk_frames = 30
    blocks = np.split(audio, [320 * edge for edge in sorted(set(cuts))])
    np.testing.assert_array_equal(label(teacher, *blocks), label(teacher, audio))


def test_labels_come_before_the_track_has_ended(small: CqtTeacher):
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.zeros(3200, np.float32)

    labels = small.label(endless())
    assert [len(next(labels)) for _ in range(3)] == [750] * 3


@pytest.mark.parametrize("frames", [1, 2, 30, 750, 751])
def test_as_many_frames_as_the_blocks_have(small: CqtTeacher, frames: int):
    assert label(small, np.zeros(320 * frames, np.float32)).shape == (frames, 36)


@pytest.mark.parametrize("index", [0, 5, 20, 35])
def test_a_tone_lights_its_own_bin(small: CqtTeacher, index: int):
    found = values(small, tone(500.0 * 2 ** (index / 12), 1))[20:-20]
    neighbours = [index - 1, index, (index + 1) % 36]
    assert (found.argmax(axis=1) == index).all()
    assert (found[:, index] > 3 * np.delete(found, neighbours, axis=1).max(axis=1)).all()


@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_silence_is_silent(storage: str):
    stored = label(make_teacher(**SMALL, storage=storage), np.zeros(320 * 30, np.float32))
    assert stored.shape == (30, 36) and not stored.any()


@pytest.mark.parametrize("frame", [0, 17, 40])
def test_an_impulse_peaks_at_its_frame(small: CqtTeacher, frame: int):
    audio = np.zeros(320 * 60, np.float32)
    audio[320 * frame] = 1.0
    found = values(small, audio)
    assert (found.argmax(axis=0) == frame).all()
    for distance in range(1, min(frame, 5)):
        np.testing.assert_allclose(found[frame + distance], found[frame - distance], rtol=0.04, atol=1e-3)


def test_the_loudest_audio_there_is_fits_the_curve():
    """A full-scale square wave at the lowest bin, the one of the longest window: 2 / pi of the window's L1 norm."""
    teacher = make_teacher()
    square = np.sign(tone(32.7, 4) + np.float32(1e-6))
    found = values(teacher, square.astype(np.float32))
    assert found.max() == pytest.approx(2 / np.pi * 224.6, rel=0.03)
    assert found.max() < teacher.spec.companding.peak


def test_audio_beyond_full_scale_is_refused_not_clipped():
    with pytest.raises(ValueError, match="companding curve holds 0 to 225"):
        label(make_teacher(), 10 * tone(32.7, 4))
    with pytest.raises(ValueError, match="companding curve holds 0 to 225"):
        label(make_teacher(), np.full(3200, np.nan, np.float32))


def test_a_bin_above_half_the_sample_rate_is_refused():
    with pytest.raises(ValueError, match="12[0-9]{3} Hz.*12000 Hz"):
        make_teacher(lowest_frequency=6200, bins=13, bins_per_octave=12)
    assert make_teacher(lowest_frequency=5900, bins=13, bins_per_octave=12).spec.size == 13


def test_fingerprint_follows_the_settings_not_the_name(small: CqtTeacher):
    assert make_teacher(**SMALL, name="pitch").spec.fingerprint == small.spec.fingerprint
    for change in ({"lowest_frequency": 501.0}, {"bins": 35}, {"bins_per_octave": 13}, {"storage": "float16"}):
        assert make_teacher(**SMALL | change).spec.fingerprint != small.spec.fingerprint

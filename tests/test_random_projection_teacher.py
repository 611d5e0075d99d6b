"""The random-projection teacher against a naive quantiser, and what it must not depend on."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import CLIPS, decoded

from mert_foundry.pipeline.audio.blocks import float_blocks
from mert_foundry.pipeline.teachers.random_projection import (
    RandomProjectionTeacher,
    RandomProjectionTeacherConfig,
    draw,
)
from mert_foundry.pipeline.teachers.spectra.power_spectra import LogMel
from mert_foundry.pipeline.teachers.teacher import label_track


def make_teacher(**options) -> RandomProjectionTeacher:
    return RandomProjectionTeacher(
        RandomProjectionTeacherConfig(kind="random_projection", **options), torch.device("cpu")
    )


@pytest.fixture(scope="module")
def clip(clips: Path) -> np.ndarray:
    return decoded(clips / "wesnoth-1.16-music/transience.flac")


def naive_cosines(audio: np.ndarray, seed: int, codebooks: int, codebook_size: int) -> np.ndarray:
    """Cosines float64 `[codebooks, frames, entries]` from the definition."""
    drawn = draw(seed, codebooks, codebook_size)
    decibels = np.concatenate([part.numpy() for part in LogMel(128, torch.device("cpu")).stream(float_blocks(audio))])
    level = decibels.astype(np.float64) + 0.26 * np.arange(128)
    level = (level - level.mean(axis=1, keepdims=True)) / level.std(axis=1, keepdims=True)
    projected = level @ drawn["projections"].astype(np.float64)
    entries = drawn["entries"].astype(np.float64)
    lengths = np.linalg.norm(projected, axis=2)[:, :, None] * np.linalg.norm(entries, axis=2)[:, None]
    return projected @ entries.transpose(0, 2, 1) / lengths


def test_codes_are_the_nearest_directions(clip: np.ndarray):
    teacher = make_teacher(seed=3, codebooks=3, codebook_size=500)
    codes = label_track(teacher, clip)
    assert codes.dtype == np.uint16 and codes.shape == (3, len(clip) // 320) == teacher.spec.shape(len(clip) // 320)
    cosines = naive_cosines(clip, 3, 3, 500)
    chosen = np.take_along_axis(cosines, codes[:, :, None].astype(int), axis=2)[:, :, 0]
    assert (cosines.max(axis=2) - chosen).max() < 1e-5
    assert (codes == cosines.argmax(axis=2)).mean() > 0.999


def test_labels_do_not_depend_on_the_blocks(clip: np.ndarray):
    teacher = make_teacher(codebook_size=300)
    whole = label_track(teacher, clip)
    audio = next(float_blocks(clip))
    frames = np.array([1, 9, 100, 101, 700])
    frames = frames[frames < len(audio) // 320]
    cut = np.concatenate(list(teacher.label(np.split(audio, frames * 320))), axis=1)
    again = np.concatenate(list(teacher.label([audio])), axis=1)
    np.testing.assert_array_equal(cut, again)
    np.testing.assert_array_equal(again[:, :200], whole[:, :200])


def test_what_is_drawn_is_the_same_on_every_machine():
    drawn = draw(0, 1, 8192)
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in drawn.items()}
    assert digests == {"projections": "128fb79384e32f74", "entries": "8ed16373d9bc1a30"}


def test_a_codebook_does_not_depend_on_how_many_there_are(clip: np.ndarray):
    audio = clip[: 320 * 100]
    one, three = (label_track(make_teacher(codebooks=count, codebook_size=200), audio) for count in (1, 3))
    np.testing.assert_array_equal(three[:1], one)
    assert (three[0] != three[1]).mean() > 0.9
    assert (label_track(make_teacher(seed=1, codebook_size=200), audio) != one).mean() > 0.9


def test_codes_do_not_depend_on_the_level(clip: np.ndarray):
    teacher = make_teacher()
    audio = clip[: 320 * 300].astype(np.float32) / 32768
    loud, quiet = (np.concatenate(list(teacher.label([gain * audio])), axis=1) for gain in (1.0, 0.1))
    assert (loud == quiet).mean() > 0.98


def test_real_music_uses_many_codes(clips: Path):
    teacher = make_teacher()
    codes = np.concatenate([label_track(teacher, decoded(clips / name)) for name in CLIPS], axis=1)
    shares = np.bincount(codes[0]) / codes.shape[1]
    shares = shares[shares > 0]
    assert np.exp(-(shares * np.log(shares)).sum()) > 300 and shares.max() < 0.1


def test_silence_has_one_code():
    assert len(np.unique(label_track(make_teacher(), np.zeros(320 * 50, np.int16)))) == 1


def test_fingerprint_follows_what_shapes_the_codes():
    first = make_teacher(codebook_size=100).spec
    assert make_teacher(codebook_size=100, name="other").spec.fingerprint == first.fingerprint
    for change in ({"seed": 1}, {"codebooks": 2}, {"codebook_size": 101}):
        assert make_teacher(**{"codebook_size": 100} | change).spec.fingerprint != first.fingerprint

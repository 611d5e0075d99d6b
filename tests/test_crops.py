"""Crops: pure, uniform over all that fit, on the frame grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.pipeline.stream.crops import Crop, centre_crop, crop_frames, random_crop


@pytest.mark.parametrize(("samples", "frames"), [(120_000, 375), (122_880, 384), (320, 1)])
def test_frames_of_a_crop(samples, frames):
    assert crop_frames(samples) == frames


@pytest.mark.parametrize("samples", [0, -320, 319, 120_001])
def test_refuses_what_is_off_the_grid(samples):
    with pytest.raises(ValueError, match=rf"crop of {samples} samples .*320"):
        crop_frames(samples)


lengths = st.integers(1, 300)


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 99), key=st.text(), length=lengths, frames=lengths)
def test_fits_and_is_pure(seed, epoch, key, length, frames):
    for crop in (random_crop(seed, epoch, key, length, frames), centre_crop(length, frames)):
        assert crop.num_frames == min(length, frames)
        assert 0 <= crop.start_frame <= length - crop.num_frames
    assert random_crop(seed, epoch, key, length, frames) == random_crop(seed, epoch, key, length, frames)


def test_never_changes_with_python_or_machine():
    assert [random_crop(7, epoch, "a-00000", 2250, 375).start_frame for epoch in range(4)] == [709, 189, 591, 1656]


@pytest.mark.parametrize("vary", ["seed", "epoch", "key"])
def test_offsets_are_uniform(vary):
    arguments = {"seed": 0, "epoch": 0, "key": "a-00000"}
    starts = [
        random_crop(**arguments | {vary: f"b{n}" if vary == "key" else n}, num_frames=29, frames=10).start_frame
        for n in range(20_000)
    ]
    counts = np.bincount(starts, minlength=20)
    assert len(counts) == 20
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-square, 19 degrees: 50 is beyond the 0.9998 quantile


def test_centre():
    assert centre_crop(30, 10) == Crop(10, 10)
    assert centre_crop(31, 10) == Crop(10, 10)
    assert centre_crop(7, 10) == Crop(0, 7)

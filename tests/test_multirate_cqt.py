"""The multirate transform against nnAudio over whole tracks, and against physics."""

import tracemalloc
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_files import noise, tone
from cqt_reference import PUBLISHED, read_clip, reference_cqt, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.teachers.spectra.multirate_cqt import MultirateCqt

SMALL = {"lowest_frequency": 200.0, "bins": 52, "bins_per_octave": 12}
TRACKS = [
    "asc-music/time-to-strike.ogg",
    "hyperrogue-music/caribbean.ogg",
    "singularity-music/coherence.opus",
    "ufoai-music/main-theme.opus",
    "wesnoth-1.16-music/battle-epic.ogg",
]


def make(sample_rate: int = 24_000, hop: int = 320, **bins) -> MultirateCqt:
    return MultirateCqt(sample_rate, hop, **bins)


def magnitudes(transform: MultirateCqt, audio: np.ndarray, block: int | None = None, frames: int = 750) -> np.ndarray:
    blocks = np.split(audio, range(block, len(audio), block)) if block else [audio]
    return torch.cat(list(transform.stream(blocks, frames))).numpy()


def window(transform: MultirateCqt, bin_number: int, offsets: np.ndarray) -> np.ndarray:
    """Size of a bin's window at offsets from the frame's centre in samples: what an impulse there leaves behind."""
    length = int(transform.lengths[bin_number])
    position = offsets + (length + 1) // 2
    hann = np.where((position >= 0) & (position < length), 0.5 - 0.5 * np.cos(2 * np.pi * position / length), 0)
    return 2 / np.sqrt(length) * hann


@pytest.fixture(scope="module")
def published() -> MultirateCqt:
    return make(**PUBLISHED)


@pytest.fixture(scope="module")
def small() -> MultirateCqt:
    return make(**SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("track", TRACKS)
def test_equals_nnaudio_over_whole_tracks_in_every_octave_and_at_the_ends(
    published: MultirateCqt, clips: Path, track: str
):
    audio = read_clip(clips / track)
    found, expected = magnitudes(published, audio), reference_cqt(audio, **PUBLISHED)
    assert found.shape == expected.shape == (len(audio) // 320, 336)
    assert relative_error(found, expected) < 1e-5
    for octave in np.split(np.arange(336), 7):
        assert relative_error(found[:, octave], expected[:, octave]) < 1e-5
    for end in (slice(10), slice(80), slice(-80, None), slice(-10, None)):
        assert relative_error(found[end], expected[end]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample_rate", "hop", "lowest_frequency", "bins", "bins_per_octave"),
    [
        (24_000, 320, 500.0, 36, 12),
        (24_000, 320, 32.7, 84, 12),
        (24_000, 75, 200.0, 24, 24),  # an odd hop: the rate is never halved
        (24_000, 1, 3000.0, 12, 12),
        (24_000, 320, 6000.0, 12, 12),  # up to 11.3 kHz, where the rate cannot be halved
        (24_000, 320, 40.0, 8, 1),  # windows of one period
        (24_000, 320, 27.5, 20, 3),
        (24_000, 64, 100.0, 1, 12),  # one bin, at a sixteenth of the rate
        (16_000, 160, 65.4, 72, 24),
        (22_050, 512, 32.7, 84, 12),
        (48_000, 640, 32.7, 336, 48),
    ],
)
def test_equals_nnaudio_at_any_settings(sample_rate, hop, lowest_frequency, bins, bins_per_octave):
    audio = noise(0.2 if hop == 1 else 2, seed=5)
    arguments = {"lowest_frequency": lowest_frequency, "bins": bins, "bins_per_octave": bins_per_octave}
    found = magnitudes(make(sample_rate, hop, **arguments), audio)
    expected = reference_cqt(audio, **arguments, sample_rate=sample_rate, hop=hop)
    assert relative_error(found, expected) < 1e-5
    assert max(relative_error(found[:, k], expected[:, k]) for k in range(bins)) < 5e-5


@pytest.mark.parametrize("bin_number", [0, 1, 37, 38, 39, 85, 86, 200, 277, 278, 334, 335])
def test_a_tone_lights_its_own_bin_with_half_its_size(published: MultirateCqt, bin_number: int):
    """Windows have an L1 norm of sqrt(length), and a real tone half its size at its frequency; 38, 86, 278 start a
    rate.
    """
    found = magnitudes(published, tone(32.7 * 2 ** (bin_number / 48), 4))[110:-110]
    assert (found.argmax(axis=1) == bin_number).all()
    np.testing.assert_allclose(found[:, bin_number], 0.5 / 2 * np.sqrt(int(published.lengths[bin_number])), rtol=1e-4)


@pytest.mark.parametrize(
    "audio", [np.ones(96_000, np.float32), tone(11_500, 4)], ids=["constant", "tone above the bins"]
)
def test_what_lies_outside_the_bins_leaves_next_to_nothing(published: MultirateCqt, audio: np.ndarray):
    """A Hann window's side lobe number n is 1 / (pi n^3) of its L1 norm; the nearest of these is number 68."""
    loudest = magnitudes(published, audio)[110:-110].max(axis=0)
    assert (loudest / np.sqrt(published.lengths.numpy()) < 1.1 / (np.pi * 68**3)).all()


def test_silence_is_silent(published: MultirateCqt):
    found = magnitudes(published, np.zeros(320 * 30, np.float32))
    assert found.shape == (30, 336) and not found.any()


@pytest.mark.parametrize("sample", [0, 1, 319, 320 * 40, 320 * 40 + 123, 320 * 80 - 1])
def test_an_impulse_leaves_every_bins_window(published: MultirateCqt, sample: int):
    audio = np.zeros(320 * 80, np.float32)
    audio[sample] = 1
    found = magnitudes(published, audio)
    offsets = sample - 320 * np.arange(80)
    for k in (0, 37, 38, 150, 277, 278, 335):
        expected = window(published, k, offsets)
        np.testing.assert_allclose(found[:, k], expected, atol=2e-5 * 2 / np.sqrt(int(published.lengths[k])))


def test_what_lies_beyond_the_longest_window_is_not_heard(small: MultirateCqt):
    audio = noise(2, seed=1)
    other = audio.copy()
    other[24_000:] = 0
    before = (24_000 - small.context) // 320
    np.testing.assert_array_equal(magnitudes(small, audio)[:before], magnitudes(small, other)[:before])
    assert small.context < 0.5 * 24_000


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 89), max_size=8), frames=st.integers(1, 40))
def test_the_sizes_of_blocks_do_not_matter_bit_for_bit(small: MultirateCqt, cuts: list[int], frames: int):
    audio = noise(90 / 75, seed=3)
    whole = list(small.stream([audio], frames))
    cut = list(small.stream(np.split(audio, [320 * edge for edge in sorted(set(cuts))]), frames))
    assert [len(piece) for piece in cut] == [len(piece) for piece in whole] and len(torch.cat(whole)) == 90
    assert torch.equal(torch.cat(cut), torch.cat(whole))


@settings(max_examples=25)
@given(length=st.integers(1, 60), frames=st.integers(1, 25))
def test_any_length_in_any_chunks(small: MultirateCqt, length: int, frames: int):
    audio = noise(length / 75, seed=length)
    found = magnitudes(small, audio, block=320, frames=frames)
    assert relative_error(found, reference_cqt(audio, **SMALL)) < 1e-5


def test_threads_do_not_matter(published: MultirateCqt):
    audio = noise(12, seed=2)
    alone = magnitudes(published, audio)
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(magnitudes(published, audio), alone)
    finally:
        torch.set_num_threads(1)


def test_a_track_without_end_is_labelled_as_it_comes(small: MultirateCqt):
    heard = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal heard
        for seed in count():
            heard += 100 * 320
            yield noise(100 / 75, seed=seed)

    stream = small.stream(endless(), 50)
    for number in range(1, 20):
        assert next(stream).shape == (50, 52)
        assert heard <= number * 50 * 320 + small.context + 100 * 320


def test_memory_does_not_grow_with_the_track(small: MultirateCqt):
    def peak(blocks: int) -> int:
        tracemalloc.start()
        frames = sum(
            len(piece) for piece in small.stream((np.zeros(320 * 150, np.float32) for _ in range(blocks)), 150)
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert frames == 150 * blocks
        return most

    assert peak(100) < 1.2 * peak(10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"lowest_frequency": 6200, "bins": 13, "bins_per_octave": 12},
            "highest bin at 12400 Hz, half the sample rate is 12000 Hz",
        ),
        ({**SMALL, "hop": 0}, "hop is 0"),
        ({**SMALL, "sample_rate": -1}, "sample_rate is -1"),
        ({**SMALL, "bins": 0}, "bins is 0"),
        ({**SMALL, "bins_per_octave": 0}, "bins_per_octave is 0"),
        ({**SMALL, "lowest_frequency": 0.0}, "lowest_frequency is 0.0"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(published: MultirateCqt, clips: Path):
    audio = read_clip(clips / TRACKS[0])
    found = torch.cat(list(make(**PUBLISHED).cuda().stream([audio], 12_000))).cpu().numpy()
    assert relative_error(found, magnitudes(published, audio)) < 1e-5

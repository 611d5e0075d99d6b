"""Fingerprints of real music: what is found of a clip after all that is done to copies, and what is not found."""

from pathlib import Path

import numpy as np
import pytest
from audio_files import CLIPS, MUSIC, decoded, noise, tone, write_audio
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.pipeline.fingerprint.landmarks import FRAMES_PER_SECOND, STEP, WINDOW, landmarks, thin_out
from mert_foundry.pipeline.fingerprint.search import Known, Match, index_stretches, search

RATE = 24_000


def flat(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All landmarks of a recording."""
    hashes, frames = zip(*landmarks([audio]))
    return np.concatenate(hashes), np.concatenate(frames)


def found(known: Known, audio: np.ndarray) -> Match | None:
    return search(known, landmarks([audio]))


@pytest.fixture(scope="module")
def music() -> dict[str, np.ndarray]:
    return {name: decoded(MUSIC / name)[: 10 * RATE] for name in CLIPS[::2]}


@pytest.fixture(scope="module")
def known(music: dict[str, np.ndarray]) -> Known:
    """The middle 4 seconds of each clip."""
    return index_stretches((name, landmarks([middle(audio)])) for name, audio in music.items())


def middle(audio: np.ndarray) -> np.ndarray:
    start = len(audio) // 2 - 2 * RATE
    return audio[start : start + 4 * RATE]


def test_each_clip_is_found_in_its_own_track_where_it_is(known: Known, music: dict[str, np.ndarray]):
    for name, audio in music.items():
        match = found(known, audio)
        assert match is not None and match.name == name
        assert match.start == pytest.approx(len(audio) / 2 / RATE - 2, abs=0.05)


def test_no_clip_is_found_in_another_track(known: Known, music: dict[str, np.ndarray]):
    for number, (name, audio) in enumerate(music.items()):
        others = known.owners != number
        rest = Known(known.hashes[others], known.owners[others], known.frames[others], known.names)
        assert found(rest, audio) is None, name
    assert found(known, (32768 * noise(10)).astype(np.int16)) is None
    assert found(known, np.zeros(10 * RATE, np.int16)) is None
    assert found(known, np.zeros(0, np.int16)) is None


@pytest.mark.parametrize("extension", ["mp3", "ogg", "opus", "m4a"])
def test_a_copy_encoded_anew_cut_and_scaled_is_found(
    known: Known, music: dict[str, np.ndarray], tmp_path: Path, extension: str
):
    for name in list(music)[:: 3 if extension == "mp3" else 5]:
        copy = music[name][777:-5_000].astype(np.float32) / 32768 * 0.2
        path = write_audio(tmp_path / f"copy.{extension}", np.concatenate([noise(1.7), copy]), RATE)
        match = found(known, decoded(path))
        assert match is not None and match.name == name
        assert match.start == pytest.approx(1.7 + len(music[name]) / 2 / RATE - 2 - 777 / RATE, abs=0.12)


def test_a_copy_at_another_rate_is_found(known: Known, music: dict[str, np.ndarray], tmp_path: Path):
    name = list(music)[3]
    path = write_audio(tmp_path / "copy.wav", (music[name][::2] / 32768).astype(np.float32), RATE // 2)
    assert found(known, decoded(path)).name == name


@pytest.mark.parametrize("part", [slice(0, 2 * RATE), slice(2 * RATE, 4 * RATE), slice(RATE, 3 * RATE)])
def test_a_part_of_a_clip_is_found_by_its_share_of_what_both_have(
    known: Known, music: dict[str, np.ndarray], part: slice
):
    for name in list(music)[::3]:
        match = found(known, middle(music[name])[part])
        assert match is not None and match.name == name and match.share > 0.25
        assert match.start == pytest.approx(-part.start / RATE, abs=0.05)


def test_a_transposed_copy_is_another_recording(known: Known, music: dict[str, np.ndarray], tmp_path: Path):
    path = write_audio(
        tmp_path / "copy.wav", (music[list(music)[3]] / 32768).astype(np.float32), 25_500
    )  # a semitone up
    match = found(known, decoded(path))
    assert match is None


def test_landmarks_lie_at_the_peaks_of_a_melody():
    """Three notes, one every half second: a hash says the pitch of the first, the step to the next, and the time
    between.
    """
    pitches = [440.0, 880.0, 1320.0]
    notes = [np.pad(tone(pitch, 0.125) * np.hanning(RATE // 8), (0, RATE * 3 // 8)) for pitch in pitches]
    hashes, frames = flat((np.concatenate(notes) * 32767).astype(np.int16))
    spacing = RATE / WINDOW
    heard = {
        (
            round(((hash_ >> 13) + 26) * spacing),
            round((((hash_ >> 6) & 127) - 63) * spacing),
            (hash_ & 63) / FRAMES_PER_SECOND,
        )
        for hash_ in hashes.tolist()
    }
    for first, second in zip(pitches, pitches[1:]):
        assert any(
            abs(pitch - first) < spacing and abs(rise - (second - first)) < 2 * spacing and abs(seconds - 0.5) < 0.03
            for pitch, rise, seconds in heard
        ), (first, second)
    onsets = np.unique(frames) / FRAMES_PER_SECOND
    assert np.min(np.abs(onsets - 0)) < 0.1 and np.min(np.abs(onsets - 0.5)) < 0.1


def test_silence_has_no_landmarks_and_a_steady_tone_few():
    assert len(flat(np.zeros(5 * RATE, np.int16))[0]) == 0
    assert len(flat(np.zeros(100, np.int16))[0]) == 0
    hashes, _ = flat((tone(440, 5) * 32767).astype(np.int16))
    assert len(hashes) < 5 * 75 / 4  # music has about 75 a second


@pytest.mark.slow
@settings(max_examples=6)
@given(cuts=st.lists(st.integers(0, 30 * RATE), max_size=12))
def test_how_audio_is_cut_into_blocks_changes_nothing(music_once: np.ndarray, cuts: list[int]):
    whole = flat(music_once)
    parts = list(landmarks(np.split(music_once, sorted(cuts))))
    for column in (0, 1):
        assert np.array_equal(np.concatenate([part[column] for part in parts]), whole[column])
    assert np.all(np.diff(whole[1]) >= 0)


@pytest.fixture(scope="module")
def music_once(music: dict[str, np.ndarray]) -> np.ndarray:
    """Half a minute of music: two chunks."""
    return np.concatenate(list(music.values()))[: 30 * RATE]


def test_a_shift_by_whole_frames_moves_all_landmarks(music_once: np.ndarray):
    early, late = flat(music_once[: 10 * RATE]), flat(music_once[5 * STEP : 10 * RATE])
    begins = np.flatnonzero(early[1] >= 80)
    inside = np.flatnonzero(late[1] >= 75)
    assert np.array_equal(early[0][begins], late[0][inside])
    assert np.array_equal(early[1][begins] - 5, late[1][inside])


def test_the_order_of_stretches_changes_no_match(music: dict[str, np.ndarray]):
    named = [(name, middle(audio)) for name, audio in list(music.items())[:3]]
    forward = index_stretches((name, landmarks([audio])) for name, audio in named)
    backward = index_stretches((name, landmarks([audio])) for name, audio in reversed(named))
    for name, _ in named:
        assert found(forward, music[name]) == found(backward, music[name]) is not None


def test_a_long_stretch_is_thinned_out_and_still_found_by_a_part(music_once: np.ndarray):
    whole = flat(music_once)
    thinned = thin_out(whole, len(whole[0]) // 5)
    assert 0.1 < len(thinned[0]) / len(whole[0]) < 0.3 and thin_out(whole, len(whole[0])) is whole
    match = found(index_stretches([("long", [thinned])]), music_once[12 * RATE + 99 : 24 * RATE])
    assert match is not None and match.share > 0.2
    assert match.start == pytest.approx(-12, abs=0.1)


def test_nothing_known_is_found_nowhere(music_once: np.ndarray):
    assert found(index_stretches([]), music_once) is None
    assert found(index_stretches([("silence", landmarks([np.zeros(RATE, np.int16)]))]), music_once) is None

"""Beats from activations, at known tempi, by mir_eval."""

import mir_eval
import numpy as np
import pytest

from mert_foundry.model.probing.beat_decoding import decode_beats, tempo_of

FRAME_RATE, SECONDS = 75.0, 10.0


def activation(random: np.random.Generator, bpm: float, jitter: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Beats, seconds, and a probability of a beat in each frame: bumps of 12 ms around them in uniform noise."""
    period = 60 / bpm
    beats = np.arange(random.uniform(0, period), SECONDS, period)
    beats = np.sort(beats + random.normal(0, jitter, len(beats)))
    beats = beats[(beats >= 0) & (beats < SECONDS)]
    middles = (np.arange(int(SECONDS * FRAME_RATE)) + 0.5) / FRAME_RATE
    bumps = np.exp(-0.5 * ((middles[:, None] - beats) / 0.012) ** 2).max(axis=1)
    return beats, np.clip(0.6 * bumps + noise * random.random(len(middles)), 0, 1)


@pytest.mark.parametrize(
    ("jitter", "noise", "f_70", "f_20", "tempi"),
    [(0.0, 0.02, 1.0, 0.99, 1.0), (0.005, 0.2, 0.99, 0.98, 1.0), (0.01, 0.5, 0.98, 0.9, 0.95)],
)
def test_beats_are_found_from_60_to_200_bpm(jitter: float, noise: float, f_70: float, f_20: float, tempi: float):
    random = np.random.default_rng(0)
    bpms = np.linspace(60, 200, 41)
    excerpts = [activation(random, bpm, jitter, noise) for bpm in bpms]
    found = decode_beats([probability for _, probability in excerpts], FRAME_RATE)
    scores = [
        [mir_eval.beat.f_measure(beats, estimate, window) for (beats, _), estimate in zip(excerpts, found)]
        for window in (0.07, 0.02)
    ]
    hits = [
        mir_eval.tempo.detection(np.array([bpm, 0.0]), 1.0, np.array([tempo_of(estimate), 0.0]), 0.04)[1]
        for bpm, estimate in zip(bpms, found)
    ]
    assert np.mean(scores[0]) >= f_70
    assert np.mean(scores[1]) >= f_20
    assert np.mean(hits) >= tempi


def test_a_drifting_tempo_is_followed():
    beats = np.cumsum(60 / np.linspace(90, 130, 40)) - 0.3
    middles = (np.arange(int(beats[-1] * FRAME_RATE) + 20) + 0.5) / FRAME_RATE
    probability = np.exp(-0.5 * ((middles[:, None] - beats) / 0.012) ** 2).max(axis=1)
    (found,) = decode_beats([probability], FRAME_RATE)
    assert mir_eval.beat.f_measure(beats, found, 0.02) > 0.98


def test_missing_beats_are_bridged():
    random = np.random.default_rng(1)
    beats, probability = activation(random, 100, 0.0, 0.05)
    probability[300:450] = 0.05  # two seconds, three beats
    (found,) = decode_beats([probability], FRAME_RATE)
    assert mir_eval.beat.f_measure(beats, found) == 1


def test_an_unsure_head_is_believed_where_it_is_surer_than_elsewhere():
    beats, probability = activation(np.random.default_rng(2), 140, 0.0, 0.0)
    (found,) = decode_beats([0.02 + 0.1 * probability], FRAME_RATE)
    assert mir_eval.beat.f_measure(beats, found) > 0.97


def test_excerpts_decode_side_by_side_as_alone():
    random = np.random.default_rng(3)
    excerpts = [activation(random, bpm, 0.01, 0.3)[1][:length] for bpm, length in ((70, 750), (120, 500), (90, 750))]
    together = decode_beats(excerpts, FRAME_RATE)
    for excerpt, found in zip(excerpts, together):
        np.testing.assert_array_equal(decode_beats([excerpt], FRAME_RATE)[0], found)


def test_noise_and_silence_give_a_regular_pulse_within_the_range():
    random = np.random.default_rng(4)
    for excerpt in (np.zeros(600), random.random(600), np.ones(600)):
        (found,) = decode_beats([excerpt], FRAME_RATE)
        assert 50 < tempo_of(found) < 230
    assert tempo_of(np.array([1.0])) == 0


def test_frames_of_seconds_hold_no_beats():
    assert [len(beats) for beats in decode_beats([np.full(4, 0.9), np.full(3, 0.1)], frame_rate=1 / 3)] == [0, 0]

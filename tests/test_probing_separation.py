"""Separation: spectrograms there and back, and stems that features tell apart."""

import numpy as np
import pytest
import torch
from probing_tasks import labelled_set

from mert_foundry.model.probing.features import FrameFeatures
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.separation import (
    HOP,
    SeparationProtocol,
    Stems,
    probe_separation,
    sdr,
    spectrogram,
    waveform,
)

FRAMES = 60


@pytest.mark.parametrize("samples", [FRAMES * HOP, FRAMES * HOP - 100])
def test_audio_comes_back_from_its_spectrogram(samples: int):
    audio = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    back = waveform(spectrogram(audio, FRAMES), samples)
    assert spectrogram(audio, FRAMES).shape == (2, FRAMES, 1025)
    torch.testing.assert_close(back, audio, atol=1e-4, rtol=1e-4)


def test_a_click_lies_in_the_frame_that_is_centred_on_it():
    audio = torch.zeros(FRAMES * HOP)
    audio[20 * HOP] = 1
    assert int(spectrogram(audio, FRAMES).abs().sum(dim=1).argmax()) == 20


def test_sdr_is_the_ratio_of_energies_and_nothing_for_silence():
    stem = torch.ones(1, 1000)
    assert float(sdr(stem * 0.9, stem)) == pytest.approx(20, abs=1e-3)
    assert torch.isnan(sdr(stem, torch.zeros(1, 1000))).all()


def rows(count: int, informed: bool) -> tuple[FrameFeatures, Stems]:
    """A low and a high noise that are on and off in turn; the features say which is on, or nothing."""
    random = np.random.default_rng(0)
    values, mixtures, stems = [], [], []
    low = torch.fft.rfftfreq(FRAMES * HOP, 1 / 24_000) < 6000
    for _ in range(count):
        on = np.repeat(random.integers(0, 2, (2, FRAMES // 10)), 10, axis=1)
        noise = torch.from_numpy(random.normal(0, 0.1, (2, FRAMES * HOP)))
        # The two overlap in frequency from 3 kHz on for the second one.
        bands = torch.fft.irfft(torch.fft.rfft(noise) * torch.stack([low, torch.ones_like(low)]))
        sounds = (bands.numpy() * np.repeat(on, HOP, axis=1)).astype(np.float32)
        stems.append(sounds)
        mixtures.append(sounds.sum(axis=0))
        seen = on.T if informed else np.zeros((FRAMES, 2))
        values.append(np.repeat(seen[:, None], 2, axis=1) + 0.1 * random.normal(size=(FRAMES, 2, 2)))
    labels = [{"low": f"{i}l.wav", "all": f"{i}a.wav"} for i in range(count)]
    labelled = labelled_set("separation", ["sdr"], ("low", "all"), labels)
    lengths = np.full(count, FRAMES)
    features = FrameFeatures(labelled, np.concatenate(values).astype(np.float32), lengths, 75.0)
    return features, Stems(mixtures, stems)


@pytest.mark.slow
def test_stems_are_told_apart_where_the_features_tell_them_apart():
    protocol = ProbeProtocol(rates=(1e-2,), seeds=1, epochs=4, patience=3, draws=50)
    settings = SeparationProtocol(hidden=16, layers=1, batch_size=4, crop_frames=40, crops_per_row=4)
    informed = probe_separation(*rows(10, informed=True), protocol, settings)
    blind = probe_separation(*rows(10, informed=False), protocol, settings)
    score = informed.score("sdr")
    assert score.value > blind.score("sdr").value + 1
    assert score.value > max(score.chance, score.constant) + 1
    assert score.low <= score.value <= score.high
    by_stem = [informed.score("sdr", of=stem) for stem in ("low", "all")]
    assert score.value == pytest.approx(np.mean([stem.value for stem in by_stem]))
    assert informed.chosen == ("weighted_sum",) and score.tracks == 2


def test_audio_that_does_not_fit_is_refused():
    features, audio = rows(5, informed=True)
    protocol, settings = ProbeProtocol(), SeparationProtocol()
    with pytest.raises(ValueError, match="5 clips, 4 mixtures, 5 stems"):
        probe_separation(features, Stems(audio.mixture[:4], audio.stems), protocol, settings)
    with pytest.raises(ValueError, match="clip 0 has stems"):
        probe_separation(features, Stems(audio.mixture, [stems[:1] for stems in audio.stems]), protocol, settings)
    slow = FrameFeatures(features.labelled, features.values, features.lengths, 25.0)
    with pytest.raises(ValueError, match="features at 25.0 Hz, not the 75 Hz"):
        probe_separation(slow, audio, protocol, settings)
    with pytest.raises(ValueError, match="encoder_layer 2, but the features have 2 layers"):
        probe_separation(features, audio, protocol, SeparationProtocol(encoder_layer=2))

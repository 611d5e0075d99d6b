"""What encoders are compared with, against the libraries that publish the same: torchaudio, nnAudio, encodec."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audio_files import noise, tone

from mert_foundry.jobs.extraction.models import model_fingerprint, open_model
from mert_foundry.model.encoder import EncoderConfig, MertEncoder

HOP, RATE = 320, 24_000
CPU = torch.device("cpu")
TINY = {
    "frontend": {"channels": 8},
    "transformer": {
        "layers": 2,
        "width": 16,
        "heads": 2,
        "feed_forward": 32,
        "position_kernel": 8,
        "position_groups": 4,
    },
}


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"encoder": TINY, "trainer": {"log_every": 5}}))
    return tmp_path / "tiny.yaml"


def music(seconds: float = 1.0, seed: int = 0) -> torch.Tensor:
    samples = 0.4 * tone(330, seconds) + 0.2 * tone(1234, seconds) + 0.02 * noise(seconds, seed=seed)
    flat = np.asarray(samples, np.float32).reshape(-1)
    return torch.from_numpy(flat[: len(flat) // HOP * HOP])


def features(name: str, audio: torch.Tensor) -> torch.Tensor:
    return open_model(name, CPU).encode(audio[None])[0, :, 0]


def test_log_mel_is_torchaudios():
    from torchaudio.transforms import MelSpectrogram

    spectrum = MelSpectrogram(RATE, n_fft=2048, hop_length=HOP, n_mels=128, f_min=30.0, pad_mode="constant")
    audio = music()
    expected = 10 * torch.log10(spectrum(audio).clamp_min(1e-10)).T[: len(audio) // HOP]
    found = features("log_mel", audio)
    assert found.shape == (75, 128)
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_mfcc_is_the_cosine_transform_of_the_log_mel_spectrum():
    from torchaudio.transforms import MelSpectrogram

    spectrum = MelSpectrogram(RATE, n_fft=2048, hop_length=HOP, n_mels=128, pad_mode="constant")
    audio = music()
    decibels = 10 * torch.log10(spectrum(audio).clamp_min(1e-10)).T[: len(audio) // HOP].double().numpy()
    bands = np.arange(128)
    transform = [np.cos(math.pi * k * (2 * bands + 1) / 256) * math.sqrt((1 if k == 0 else 2) / 128) for k in range(20)]
    np.testing.assert_allclose(features("mfcc", audio), decibels @ np.array(transform).T, atol=1e-2)


def test_cqt_is_nnaudios_in_decibels():
    nnaudio = pytest.importorskip("nnAudio.features.cqt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        published = nnaudio.CQT1992v2(
            sr=RATE, hop_length=HOP, fmin=32.7, n_bins=336, bins_per_octave=48, pad_mode="constant", verbose=False
        )
    audio = music()
    magnitudes = published(audio[None])[0].T[: len(audio) // HOP]
    found = features("cqt", audio)
    loud = magnitudes > 0.01 * magnitudes.max()
    assert found.shape == (75, 336) and loud.any()
    np.testing.assert_allclose(found[loud], 20 * torch.log10(magnitudes[loud]), atol=1e-2)
    assert features("cqt", torch.zeros(HOP * 4)).unique().item() == pytest.approx(-100)


def test_chroma_marks_the_pitch_class_of_a_tone_in_any_octave():
    for octave in (220, 440, 880, 1760):
        audio = torch.from_numpy(np.asarray(tone(octave, 1.0), np.float32).reshape(-1)[: 75 * HOP])
        loudest = features("chroma", audio)[20:50].mean(dim=0).argmax().item()
        assert round(loudest / 22) % 12 == 9  # A, from C on


def test_codec_latents_are_those_of_the_package():
    from mert_foundry.pipeline.teachers.codec.weights import load_codec

    audio = music(7.0)
    codec = load_codec("foundry-small")
    with torch.no_grad():
        expected = codec.encoder(audio[None, None])[0].T
    found = features("codec:foundry-small", audio)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.abs().max())


def test_musicnn_is_the_published_network():
    from safetensors.torch import load_file

    from mert_foundry.model.baselines.musicnn import MusicnnBaseline

    reference = load_file(Path(__file__).parent / "data" / "musicnn" / "reference.safetensors")
    network = MusicnnBaseline(CPU).network
    patches = reference["patches"].float()
    for found, name in (
        (network.features(patches).mean(dim=1), "mean_pool"),
        (network(patches), "penultimate"),
    ):
        expected = reference[name]
        assert found.shape == expected.shape
        # Its weights are in float16 here, and in float32 there.
        np.testing.assert_allclose(found, expected, atol=5e-3 * expected.abs().max(), rtol=0)


def test_musicnn_hears_the_log_mel_patches_of_its_extractor():
    """Three seconds are a patch; what is left is a shorter one; its mel filters are those of Slaney, each of area 1."""
    from mert_foundry.model.baselines.musicnn import MusicnnBaseline

    model = MusicnnBaseline(CPU)
    audio = torch.from_numpy(np.asarray(noise(7.0, 16_000, seed=3), np.float32).reshape(-1))
    frames = model.encode(audio[None])[0, :, 0]
    assert frames.shape == (3, 200) == (model.geometry.num_frames(len(audio)), model.width)
    power = (
        torch.stft(audio, 512, 256, window=torch.hann_window(512), pad_mode="reflect", return_complex=True).abs() ** 2
    )
    mel = slaney_filters() @ power.numpy()
    patches = torch.from_numpy(np.log10(10_000 * mel.T + 1)).float()[: 2 * 187].reshape(2, 187, 96)
    with torch.no_grad():
        np.testing.assert_allclose(frames[:2], model.network(patches), atol=1e-3)
    assert model.geometry.num_frames(8_000) == 1 and model.geometry.num_frames(7_999) == 0


def slaney_filters() -> np.ndarray:
    """The filters of `librosa.filters.mel` written out: 96 triangles from 0 to 8 kHz, linear below 1
    kHz, `[96, 257]`.
    """
    top = 15 + 27 * math.log(8) / math.log(6.4)
    mels = np.linspace(0, top, 98)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * math.log(6.4) / 27))
    frequencies = np.arange(257) * 16_000 / 512
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def test_a_random_encoder_is_the_untrained_one_of_its_seed(tiny_config):
    model = open_model(f"random:{tiny_config}@3", CPU)
    torch.manual_seed(3)
    encoder = MertEncoder(EncoderConfig(**TINY)).eval()
    audio = music()[None]
    with torch.no_grad():
        expected = torch.stack(encoder(audio).hidden_states, dim=2)
    torch.testing.assert_close(model.encode(audio), expected)
    again, other = (open_model(f"random:{tiny_config}@{seed}", CPU) for seed in (3, 4))
    assert model_fingerprint(model) == model_fingerprint(again) != model_fingerprint(other)
    assert model.describe()["seed"] == 3 and model.describe()["baseline"] == "random"


def test_opening_one_leaves_the_random_numbers_of_others_alone(tiny_config):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    open_model(f"random:{tiny_config}@3", CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["log_mel", "cqt", "chroma", "mfcc", "codec:foundry-small"])
def test_a_row_does_not_depend_on_the_others_and_has_the_frames_that_are_planned(name):
    model = open_model(name, CPU)
    lengths = [40 * HOP, 75 * HOP]
    audio = torch.zeros(2, max(lengths))
    for seed, (row, length) in enumerate(zip(audio, lengths)):
        row[:length] = music(1.0, seed)[:length]
    together = model.encode(audio, lengths)
    assert together.shape == (2, 75, 1, model.width) and model.layers == (0,)
    for row, length, found in zip(audio, lengths, together):
        alone = model.encode(row[None, :length])[0]
        assert len(alone) == model.geometry.num_frames(length) == length // HOP
        torch.testing.assert_close(found[: len(alone)], alone)


def test_each_model_has_a_fingerprint_of_its_own(tiny_config):
    names = ["log_mel", "cqt", "chroma", "mfcc", "musicnn", "codec:foundry-small", f"random:{tiny_config}@0"]
    assert len({model_fingerprint(open_model(name, CPU)) for name in names}) == len(names)


def test_the_weights_of_a_codec_are_fingerprinted_as_they_are_stored():
    first, second = (open_model("codec:foundry-small", CPU) for _ in range(2))
    second.encode(music()[None])
    assert model_fingerprint(first) == model_fingerprint(second)
    assert all(name.startswith("encoder.") for name in first.weights) and first.weights


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("logmel", ["model logmel", "log_mel, cqt, chroma, mfcc", "codec:foundry-small", "random:CONFIG.yaml@SEED"]),
        ("codec:nothing", ["codec weights 'nothing'", "foundry-small"]),
        ("random:configs/tiny.yaml", ["random:configs/tiny.yaml", "random:CONFIG.yaml@SEED"]),
        ("random:configs/tiny.yaml@x", ["random:CONFIG.yaml@SEED"]),
        ("random:nowhere.yaml@1", ["nowhere.yaml: No such file"]),
    ],
)
def test_another_name_is_refused_with_those_there_are(name, words):
    with pytest.raises(ValueError) as caught:
        open_model(name, CPU)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_layer_that_a_baseline_has_not_is_refused():
    with pytest.raises(ValueError, match=r"layers \[1\]: each one of 0 to 0 once is what log_mel has"):
        open_model("log_mel", CPU, layers=[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [("[1, 2]", "a mapping"), ("encoder: {transformer: {layers: -1}}", "encoder.transformer.layers"), ("a: [", "")],
)
def test_a_config_that_makes_no_encoder_is_named(tmp_path, content, words):
    (tmp_path / "wrong.yaml").write_text(content)
    with pytest.raises(ValueError) as caught:
        open_model(f"random:{tmp_path / 'wrong.yaml'}@0", CPU)
    assert str(tmp_path / "wrong.yaml") in str(caught.value) and words in str(caught.value)

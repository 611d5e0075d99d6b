import sys

import pytest
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor, nn
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.frontend.choice import build_frontend
from mert_foundry.model.frontend.convolution import ConvFrontend, FrontendConfig
from mert_foundry.model.frontend.convolution_cqt import ConvCqtFrontendConfig, CqtConfig
from mert_foundry.model.frontend.log_mel import LogMelFrontend, LogMelFrontendConfig

RATE = 24_000
# High bins only: their kernels are short, so the transform is quick.
CQT = {"lowest_frequency": 1000.0, "bins": 24, "bins_per_octave": 12}
FRONTENDS = {
    "group_norm": {"channels": 4},
    "layer_norm": {"channels": 4, "norm": "layer", "bias": True},
    "cqt": {"kind": "convolution_cqt", "convolution": {"channels": 4}, "cqt": CQT},
    "cqt_layer_norm": {"kind": "convolution_cqt", "convolution": {"channels": 4, "norm": "layer"}, "cqt": CQT},
    "log_mel": {"kind": "log_mel", "bands": 8, "window": 512},
}


def encoder_config(frontend: dict, **changes: object) -> EncoderConfig:
    sizes = {"layers": 2, "width": 16, "heads": 2, "feed_forward": 32, "position_kernel": 8, "position_groups": 4}
    return EncoderConfig(frontend=frontend, transformer={**sizes, **changes})


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_frontend(encoder_config(FRONTENDS[name]).frontend)


def sine(frequency: float, samples: int, amplitude: float = 1.0) -> torch.Tensor:
    return (
        amplitude
        * torch.sin(2 * torch.pi * frequency * torch.arange(samples, dtype=torch.float64) / RATE).float()[None]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FRONTENDS)
@given(num_samples=st.integers(0, 6_000))
def test_num_frames_tells_what_forward_returns(name, num_samples):
    frontend = build(name)
    frames = frontend.num_frames(num_samples)
    if frames == 0:
        with pytest.raises(ValueError, match=f"{num_samples} samples is too short"):
            frontend(torch.zeros(1, num_samples))
    else:
        features = frontend(torch.randn(2, num_samples))
        assert features.shape == (2, frames, frontend.config.width)
        assert features.isfinite().all()


@given(
    layers=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=4),
    num_samples=st.integers(0, 400),
)
def test_num_frames_holds_for_any_kernels_and_strides(layers, num_samples):
    kernels, strides = zip(*layers)
    frontend = ConvFrontend(FrontendConfig(channels=1, kernels=kernels, strides=strides))
    frames = frontend.num_frames(num_samples)
    if frames:
        assert frontend(torch.zeros(2, num_samples)).shape == (2, frames, 1)
    else:
        with pytest.raises(ValueError, match="too short"):
            frontend(torch.zeros(1, num_samples))


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")  # windows far too short for two bands
@given(step=st.integers(1, 60), margin=st.integers(0, 40), spectra=st.integers(1, 5), num_samples=st.integers(0, 2_000))
def test_num_frames_of_log_mel_holds_for_any_sizes(step, margin, spectra, num_samples):
    window = max(step + 2 * margin, 2 + step % 2)
    config = LogMelFrontendConfig(kind="log_mel", step=step, window=window, spectra_per_frame=spectra, bands=2)
    frames = LogMelFrontend(config).num_frames(num_samples)
    assert frames == num_samples // (step * spectra)
    if frames:
        assert LogMelFrontend(config)(torch.zeros(1, num_samples)).shape == (1, frames, 2 * spectra)


def test_published_crops_give_the_published_frames():
    frontend = ConvFrontend(FrontendConfig(channels=1))
    assert [frontend.num_frames(samples) for samples in (120_000, 122_880)] == [374, 383]


def test_log_mel_is_25_hz_and_loses_no_frame():
    config = LogMelFrontendConfig(kind="log_mel")
    assert RATE / config.hop == 25
    assert LogMelFrontend(config).num_frames(30 * RATE) == 750
    assert config.width == 512


@pytest.mark.parametrize("name", ["layer_norm", "cqt_layer_norm", "log_mel"])
def test_hop_is_the_distance_of_frames(name):
    """Audio that begins one hop later gives the same frames one place on."""
    frontend = build(name)
    hop = frontend.config.hop
    audio = sine(1500, 20 * hop) * torch.linspace(0, 1, 20 * hop)
    earlier, later = frontend(audio), frontend(audio[:, hop:])
    assert torch.allclose(earlier[:, 5:14], later[:, 4:13], atol=1e-4)
    assert not torch.allclose(earlier[:, 5:14], later[:, 5:14], atol=1e-2)


@pytest.mark.parametrize("name", FRONTENDS)
def test_padding_changes_nothing_where_the_front_end_says_so(name):
    torch.manual_seed(0)
    encoder = MertEncoder(encoder_config(FRONTENDS[name])).eval()
    num_samples = 9_700
    audio = torch.randn(1, num_samples) / 3
    padded = torch.cat([audio, torch.zeros(1, 4_000)], dim=1)
    alone = encoder(audio)
    frames = alone.last.shape[1]
    beside = encoder(padded, valid=torch.arange(encoder.num_frames(padded.shape[1]))[None] < frames)
    same = torch.allclose(alone.last, beside.last[:, :frames], atol=1e-5)
    assert same == encoder.padding_invariant
    assert encoder.padding_invariant == (name not in ("group_norm", "cqt"))


@pytest.mark.parametrize("norm, bias", [("layer", True), ("layer", False), ("group", True), ("group", False)])
def test_convolutions_equal_huberts(norm, bias):
    torch.manual_seed(0)
    ours = ConvFrontend(FrontendConfig(channels=6, norm=norm, bias=bias))
    for parameter in ours.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    theirs = HubertFeatureEncoder(
        HubertConfig(
            conv_dim=[6] * 7,
            conv_kernel=list(ours.config.kernels),
            conv_stride=list(ours.config.strides),
            conv_bias=bias,
            feat_extract_norm=norm,
        )  # fmt: skip
    ).eval()
    weights = {
        name.replace("layers.", "conv_layers.", 1).replace("norm", "layer_norm"): w
        for name, w in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    audio = torch.randn(2, 4_321)
    assert torch.allclose(ours(audio), theirs(audio).transpose(1, 2), atol=1e-5)


@given(
    layers=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=4),
    norm=st.sampled_from(["group", "layer"]),
    bias=st.booleans(),
    spare=st.integers(0, 40),
    rows=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_convolutions_and_their_gradients_equal_torchs(layers, norm, bias, spare, rows, seed):
    """Any kernels and strides, a kernel shorter than its stride too."""
    torch.manual_seed(seed)
    kernels, strides = zip(*layers)
    frontend = ConvFrontend(FrontendConfig(channels=3, kernels=kernels, strides=strides, norm=norm, bias=bias))
    needed = 3
    for kernel, stride in reversed(layers):
        needed = (needed - 1) * stride + kernel
    audio = torch.randn(rows, needed + spare, dtype=torch.float64)
    frontend.double()
    found = frontend(audio)
    expected = naive_convolutions(frontend, audio)
    assert torch.allclose(found, expected, atol=1e-9)
    weights = list(frontend.parameters())
    upstream = torch.randn_like(found)
    gradients = (torch.autograd.grad(features, weights, upstream) for features in (found, expected))
    for ours, theirs in zip(*gradients):
        assert torch.allclose(ours, theirs * frontend.config.gradient_multiplier, atol=1e-8, rtol=1e-6)


def naive_convolutions(frontend: ConvFrontend, audio: Tensor) -> Tensor:
    signal = audio[:, None]
    for layer in frontend.layers:
        signal = layer.conv(signal)
        if isinstance(layer.norm, nn.LayerNorm):
            signal = layer.norm(signal.transpose(1, 2)).transpose(1, 2)
        else:
            signal = layer.norm(signal)
        signal = nn.functional.gelu(signal)
    return signal.transpose(1, 2)


@pytest.mark.parametrize("offset", [0.0, 0.9])
def test_the_norm_keeps_its_precision_for_narrow_sounds(offset):
    """A high-pass filter leaves next to nothing of a low tone, and the norm brings it up again."""
    frontend = ConvFrontend(FrontendConfig(channels=2, kernels=(10,), strides=(5,)))
    with torch.no_grad():
        frontend.layers[0].conv.weight.copy_(torch.tensor([1.0, -1.0] * 5).expand(2, 1, 10))
    audio = 0.1 * sine(30, RATE) + 0.001 * torch.randn(1, RATE) + offset
    expected = naive_convolutions(frontend.double(), audio.double())
    assert torch.allclose(frontend.float()(audio).double(), expected, atol=2e-3)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_checkpointed_convolutions_give_the_same_gradients(norm):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        frontend = ConvFrontend(FrontendConfig(channels=4, norm=norm, activation_checkpointing=checkpointing))
        features = frontend(torch.randn(2, 4_000))
        features.square().sum().backward()
        gradients.append([features, *(parameter.grad for parameter in frontend.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*gradients))


def test_log_mel_equals_torchaudio():
    config = LogMelFrontendConfig(kind="log_mel", window=1024, step=256, bands=40, spectra_per_frame=2)
    audio = torch.randn(2, 20 * 512 + 100) / 3
    mel = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=1024, hop_length=256, n_mels=40, center=False, normalized=False, power=2.0, mel_scale="htk"
    )
    power = mel(nn.functional.pad(audio, (384, 384))[:, : 20 * 512 + 768]) * 4 / torch.hann_window(1024).sum() ** 2
    expected = (power.clamp(min=1e-8).log10() + 4) / 4
    features = LogMelFrontend(config)(audio)
    assert features.shape == (2, 20, 80)
    assert torch.allclose(features[:, :, :40], expected[:, :, ::2].transpose(1, 2), atol=1e-4)
    assert torch.allclose(features[:, :, 40:], expected[:, :, 1::2].transpose(1, 2), atol=1e-4)


def test_log_mel_of_silence_and_of_full_scale():
    frontend = LogMelFrontend(LogMelFrontendConfig(kind="log_mel"))
    assert (frontend(torch.zeros(1, RATE)) == -1).all()
    loud = frontend(sine(1000, RATE))[:, 5:20].amax()
    quiet = frontend(sine(1000, RATE, amplitude=0.01))[:, 5:20].amax()
    assert loud.item() == pytest.approx(1.0, abs=0.1)
    assert (loud - quiet).item() == pytest.approx(40 / 40, abs=0.01)  # 40 dB is 4 in log10 of power, 1 after the scale


def test_log_mel_frames_hold_the_samples_of_their_hop():
    """A click in the middle of frame 7 is loudest there, in its second or third spectrum."""
    frontend = LogMelFrontend(LogMelFrontendConfig(kind="log_mel"))
    audio = torch.zeros(1, 20 * 960)
    audio[0, 7 * 960 + 480] = 1.0
    energy = frontend(audio).unflatten(2, (4, 128)).mean(dim=3)[0]
    assert energy.flatten().argmax().item() in (7 * 4 + 1, 7 * 4 + 2)


def test_cqt_bins_stand_where_their_notes_are():
    frontend = build("cqt")
    for bin in (0, 7, 20):
        audio = sine(1000 * 2 ** (bin / 12), 40 * 320 + 80, amplitude=0.5)
        magnitudes = frontend(audio)[0, 10:30, 4:]
        assert (magnitudes.argmax(dim=1) == bin).all()


def test_cqt_frames_are_centred_on_multiples_of_the_hop():
    audio = torch.zeros(1, 40 * 320 + 80)
    audio[0, 17 * 320] = 1.0
    assert (build("cqt")(audio)[0, :, 4:].argmax(dim=0) == 17).all()


def test_cqt_stands_beside_the_convolutions_features():
    frontend = build("cqt")
    audio = torch.randn(2, 4_000)
    assert torch.equal(frontend(audio)[:, :, :4], frontend.convolution(audio))
    assert not any("cqt" in name for name in frontend.state_dict())


def test_a_missing_nnaudio_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "nnAudio.features.cqt", None)
    with pytest.raises(ImportError, match=r"^front-end convolution_cqt needs nnAudio: pip install 'nnAudio>=0.3.4'$"):
        build("cqt")
    build("group_norm")


@pytest.mark.parametrize("name", FRONTENDS)
def test_the_encoder_trains_over_every_front_end(name):
    torch.manual_seed(0)
    encoder = MertEncoder(encoder_config(FRONTENDS[name]))
    output = encoder(torch.randn(2, 9_700))
    assert encoder.hop == encoder.config.frontend.hop
    assert output.last.shape == (2, encoder.num_frames(9_700), 16)
    output.last.square().sum().backward()
    unused = [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
    assert unused == ["mask_embedding"]  # nothing was masked


@pytest.mark.parametrize("name", FRONTENDS)
def test_every_front_end_survives_the_meta_device(name):
    source = MertEncoder(encoder_config(FRONTENDS[name])).eval()
    with torch.device("meta"):
        loaded = MertEncoder(source.config)
    loaded.load_state_dict(source.state_dict(), assign=True)
    loaded.eval()
    audio = torch.randn(1, 5_000)
    with torch.inference_mode():
        assert torch.equal(loaded(audio).last, source(audio).last)
    loaded(audio).last.sum().backward()  # what inference mode made first must serve training too


@pytest.mark.parametrize("name", FRONTENDS)
def test_features_keep_their_precision_under_autocast(name):
    frontend = build(name).eval()
    audio = sine(1500, 9_600, amplitude=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = frontend(audio)
    tolerance = 1e-6 if name == "log_mel" else 0.05
    assert torch.allclose(rounded.float(), frontend(audio), rtol=tolerance, atol=tolerance)


def test_a_config_without_kind_is_the_convolution():
    assert EncoderConfig(frontend={"channels": 8}) == EncoderConfig(frontend={"kind": "convolution", "channels": 8})
    assert isinstance(EncoderConfig().frontend, FrontendConfig)


@pytest.mark.parametrize("name", FRONTENDS)
def test_a_config_survives_its_own_dump(name):
    config = encoder_config(FRONTENDS[name])
    assert TypeAdapter(EncoderConfig).validate_python(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "config, values, message",
    [
        (EncoderConfig, {"frontend": {"kind": "wavelet"}}, "'convolution', 'convolution_cqt', 'log_mel'"),
        (EncoderConfig, {"frontend": {"kind": "log_mel", "kernels": [3]}}, "frontend.log_mel.kernels"),
        (LogMelFrontendConfig, {"kind": "log_mel", "window": 100}, "window 100 must be step 240"),
        (CqtConfig, {"lowest_frequency": 1000.0}, "highest bin at .* half of sample_rate is 12000 Hz"),
        (ConvCqtFrontendConfig, {"kind": "convolution_cqt", "convolution": {"kernels": [3]}}, "kernels has 1 layers"),
    ],
)
def test_what_cannot_be_is_refused(config: type[BaseModel], values, message):
    with pytest.raises(ValidationError, match=message):
        config(**values)

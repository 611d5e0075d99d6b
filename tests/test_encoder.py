import pytest
import torch
from tiny_model import tiny_encoder
from torch import nn
from transformers import HubertConfig, HubertModel

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.frontend.convolution import FrontendConfig, scale_gradient
from mert_foundry.model.frontend.log_mel import LogMelFrontendConfig
from mert_foundry.model.interop.export import hubert_config, hubert_name
from mert_foundry.model.interop.hubert_config import unsupported_by_hubert
from mert_foundry.model.transformer.config import TransformerConfig

MERT_330M = EncoderConfig(transformer=TransformerConfig(layers=24, width=1024, heads=16, feed_forward=4096, norm="pre"))


@pytest.mark.parametrize("config, expected", [(EncoderConfig(), 94_371_712), (MERT_330M, 315_428_992)])
def test_parameters_of_published_sizes_equal_huberts(config, expected):
    with torch.device("meta"):
        ours = {hubert_name(name): weight.shape for name, weight in MertEncoder(config).state_dict().items()}
        hubert = HubertModel(HubertConfig(**hubert_config(config)))
    theirs = {name: weight.shape for name, weight in hubert.state_dict().items()}
    assert ours == theirs
    assert sum(shape.numel() for shape in ours.values()) == expected


def test_a_model_from_the_meta_device_initialises_whole():
    with torch.device("meta"):
        encoder = MertEncoder(tiny_encoder())
    encoder.to_empty(device="cpu")
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.fill_(torch.nan)
    encoder.initialise()
    assert encoder(torch.randn(1, 4_000)).last.isfinite().all()
    assert all(weight.isfinite().all() for weight in encoder.parameters())


def test_positional_convolution_starts_at_its_stated_deviation():
    encoder = MertEncoder(EncoderConfig(transformer=TransformerConfig(layers=1, width=256, heads=4, feed_forward=8)))
    assert encoder.transformer.position.conv.weight.std().item() == pytest.approx((4 / (128 * 256)) ** 0.5, rel=0.02)


def test_scale_gradient_is_an_identity_with_scaled_gradient():
    values = torch.randn(3, requires_grad=True)
    scaled = scale_gradient(values, 0.1)
    scaled.sum().backward()
    assert torch.equal(scaled, values) and torch.allclose(values.grad, torch.full((3,), 0.1))


def test_frontend_learns_at_its_own_rate():
    norms = []
    for multiplier in (1.0, 0.25):
        torch.manual_seed(0)
        frontend = FrontendConfig(channels=8, gradient_multiplier=multiplier)
        encoder = MertEncoder(tiny_encoder().model_copy(update={"frontend": frontend})).eval()
        encoder(torch.sin(torch.arange(4_000.0))[None]).last.square().sum().backward()
        norms.append(encoder.frontend.layers[0].conv.weight.grad.norm())
    assert norms[1] / norms[0] == pytest.approx(0.25, rel=1e-4)


def test_masked_frames_hide_their_content():
    torch.manual_seed(0)
    encoder = MertEncoder(tiny_encoder()).eval()
    audio = torch.randn(1, 20 * 320 + 80)
    mask = torch.ones(1, 20, dtype=torch.bool)
    other = encoder(torch.randn_like(audio), mask=mask)
    assert torch.equal(encoder(audio, mask=mask).last, other.last)
    assert not torch.allclose(encoder(audio).last, other.last)


def test_memory_and_attention_maps_pass_through():
    torch.manual_seed(0)
    config = tiny_encoder()
    changes = {"memory_width": 5, "overrides": {"1": {"reads_memory": True}}}
    transformer = TransformerConfig(**{**config.transformer.model_dump(), **changes})
    encoder = MertEncoder(config.model_copy(update={"transformer": transformer})).eval()
    torch.nn.init.ones_(encoder.transformer.layers[1].memory.gate)
    audio, memory = torch.randn(2, 4_000), torch.randn(2, 3, 5)
    output = encoder(audio, memory=memory, return_attention=True)
    assert [attention.shape for attention in output.attention] == [(2, 2, 12, 12)] * 2
    assert not torch.allclose(output.last, encoder(audio).last)
    half = torch.tensor([[True, True, False]] * 2)
    expected = encoder(audio, memory=memory[:, :2]).last
    assert torch.allclose(encoder(audio, memory=memory, memory_valid=half).last, expected, atol=1e-6)


def test_mask_of_another_length_is_refused():
    encoder = MertEncoder(tiny_encoder())
    with pytest.raises(ValueError, match=r"mask has shape \[1, 9\].*\[1, 10\]"):
        encoder(torch.zeros(1, 3_300), mask=torch.zeros(1, 9, dtype=torch.bool))


@pytest.mark.parametrize("field, value", [("heads", 5), ("position_groups", 7)])
def test_sizes_that_do_not_divide_are_refused(field, value):
    with pytest.raises(ValueError, match=f"width 768 is not a multiple of {field} {value}"):
        TransformerConfig(**{field: value})


def test_without_input_norm_frames_keep_their_level():
    torch.manual_seed(0)
    audio = torch.randn(1, 9_600).clamp(-1, 1) * 0.5
    quieter = audio / 4
    levels = {}
    for norm in ("layer", "none"):
        config = tiny_encoder().model_copy(
            update={"frontend": LogMelFrontendConfig(kind="log_mel", bands=8, window=512), "input_norm": norm}
        )
        encoder = MertEncoder(config).eval()
        names = {name for name, _ in encoder.projection.named_parameters()}
        assert ("norm.weight" in names) == (norm == "layer")
        with torch.no_grad():
            projected = [encoder.projection(encoder(wave).frontend_features) for wave in (audio, quieter)]
            levels[norm] = (projected[0] - projected[1]).abs().mean() / projected[0].abs().mean()
            if norm == "none":
                features = encoder(audio).frontend_features
                linear = encoder.projection.linear
                expected = nn.functional.linear(features, linear.weight, linear.bias)
                assert torch.allclose(projected[0], expected)
    # A gain shifts every log-mel band alike, and a layer norm takes a shift of all features out.
    assert levels["layer"] < 0.01 < 0.1 < levels["none"]


def test_hubert_has_no_encoder_without_input_norm():
    config = EncoderConfig(input_norm="none")
    assert unsupported_by_hubert(config) == ["input_norm is none, a HubertModel would have layer"]

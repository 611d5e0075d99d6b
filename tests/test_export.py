import json

import pytest
import torch
import transformers
from export_agreement import assert_transformers_agrees, hidden_states_of
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_model import HEADS, tiny_encoder, tiny_model

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.interop.export import export_model
from mert_foundry.model.interop.hubert_config import encoder_from_hubert, hubert_config, unsupported_by_hubert
from mert_foundry.model.interop.load import load_encoder, read_model
from mert_foundry.model.interop.stored_model import StoredModel, select

CARD = {"Data": "2 hours of tones", "Training": {"steps": 3}}
LAYOUTS = {
    "95M": {},
    "330M": {"transformer": {"norm": "pre"}},
    "Hubert large": {"transformer": {"norm": "pre"}, "frontend": {"norm": "layer", "bias": True}},
    "ReLU": {"transformer": {"activation": "relu"}},
}
OWN = {
    "deepnorm": {"transformer": {"norm": "deepnorm"}},
    "sub-LN, RMS, SwiGLU": {"transformer": {"norm": "sub", "norm_kind": "rms", "activation": "swiglu"}},
    "RoPE": {"transformer": {"position": "rope"}},
    "window in one layer": {"transformer": {"overrides": {"1": {"attention": {"window": 2}}}}},
    "temperature and gate": {"transformer": {"attention": {"learnable_temperature": True, "gate": True}}},
    "convolution": {"transformer": {"convolution_kernel": 7}},
    "log-mel": {"frontend": {"kind": "log_mel", "bands": 8}},
}


def encoder_config(changes: dict) -> EncoderConfig:
    values = tiny_encoder().model_dump()
    frontend = changes.get("frontend", {})
    values["frontend"] = frontend if "kind" in frontend else values["frontend"] | frontend
    values["transformer"] |= changes.get("transformer", {})
    return EncoderConfig(**values)


def stored(config: EncoderConfig, heads: bool = True, sample_rate: int = 24_000) -> StoredModel:
    """Weights far from the initial ones, so that no norm, bias or gain can be mixed up unseen."""
    torch.manual_seed(5)
    weights = {
        name: weight + 0.3 * torch.randn_like(weight) for name, weight in MertEncoder(config).state_dict().items()
    }
    if not heads:
        return StoredModel(config, weights, sample_rate)
    head_weights = select(tiny_model().state_dict(), "heads.")
    return StoredModel(config, weights, sample_rate, HEADS, head_weights, {"codes": "a" * 64})


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_transformers_opens_the_export_with_equal_hidden_states(tmp_path, changes):
    model = stored(encoder_config(changes))
    assert export_model(tmp_path / "out", model, CARD) == []
    encoder, _ = load_encoder(tmp_path / "out")
    assert_transformers_agrees(tmp_path / "out", hidden_states_of(encoder))


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_masked_and_padded_frames_equal_huberts(tmp_path, changes):
    export_model(tmp_path / "out", stored(encoder_config(changes)), CARD)
    encoder, _ = load_encoder(tmp_path / "out")
    hubert = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    audio = torch.randn(2, 6_480)
    lengths = torch.tensor([6_480, 4_000])
    attention_mask = torch.arange(6_480)[None] < lengths[:, None]
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 3:8] = True
    valid = torch.arange(20)[None] < torch.tensor([20, encoder.num_frames(4_000)])[:, None]
    with torch.no_grad():
        theirs = hubert(audio, attention_mask=attention_mask.long(), mask_time_indices=mask).last_hidden_state
        ours = encoder(audio, mask=mask, valid=valid).last
    assert (ours - theirs)[valid].abs().max() < 1e-4


def test_folder_says_rate_heads_and_card(tmp_path):
    model = stored(tiny_encoder(), sample_rate=22_050)
    out = tmp_path / "out"
    export_model(out, model, CARD)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(out)
    assert isinstance(extractor, transformers.Wav2Vec2FeatureExtractor)
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (22_050, False, False)
    with safe_open(out / "heads.safetensors", "pt") as heads:
        assert [spec["name"] for spec in json.loads(heads.metadata()["heads"])] == ["codes", "cqt"]
        assert torch.equal(heads.get_tensor("codes.embedding"), model.head_weights["codes.embedding"])
    card = (out / "README.md").read_text()
    assert "2 hours of tones" in card and "steps: 3" in card and "AutoModel.from_pretrained" in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_weights_survive_transformers_bit_for_bit(tmp_path, changes):
    config = encoder_config(changes)
    export_model(tmp_path / "out", stored(config), CARD)
    hubert = transformers.AutoModel.from_pretrained(tmp_path / "out")
    again, file = hubert.state_dict(), load_file(tmp_path / "out" / "model.safetensors")
    assert set(file) == set(again) and all(torch.equal(file[name], weight) for name, weight in again.items())


@pytest.mark.parametrize("changes", [*LAYOUTS.values(), *OWN.values()], ids=[*LAYOUTS, *OWN])
def test_an_export_exported_again_has_the_same_bytes(tmp_path, changes):
    model = stored(encoder_config(changes))
    unsupported = export_model(tmp_path / "first", model, CARD)
    read = read_model(tmp_path / "first")
    assert read.weights.keys() == model.weights.keys()
    assert all(torch.equal(read.weights[name], weight) for name, weight in model.weights.items())
    assert (read.sample_rate, read.heads, read.fingerprints) == (24_000, HEADS, {"codes": "a" * 64})
    assert export_model(tmp_path / "second", read, CARD) == unsupported
    for name in ("model.safetensors", "heads.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("changes", OWN.values(), ids=OWN)
def test_what_hubert_lacks_is_named_and_written_as_our_own_class(tmp_path, changes):
    model = stored(encoder_config(changes))
    unsupported = export_model(tmp_path / "out", model, CARD)
    named = {line.split(" is ")[0].split(".")[-1] for line in unsupported}
    wanted = {"overrides": {"window"}, "attention": {"learnable_temperature", "gate"}}
    for part, options in changes.items():
        for option in options if "kind" not in options else {"kind"}:
            assert wanted.get(option, {option}) <= named, (part, option, unsupported)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(line in card for line in unsupported) and 'load_encoder("THIS_FOLDER")' in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mert_foundry"

    encoder, sample_rate = load_encoder(tmp_path / "out")
    assert sample_rate == 24_000 and not encoder.training
    direct = MertEncoder(model.encoder).eval()
    direct.load_state_dict(model.weights)
    audio = torch.randn(2, 9_999)
    with torch.no_grad():
        pairs = zip(encoder(audio).hidden_states, direct(audio).hidden_states, strict=True)
        assert all(torch.equal(mine, other) for mine, other in pairs)


def test_training_settings_and_identities_are_no_obstacle():
    changes = {"norm": "pre", "dropout": 0.3, "activation_checkpointing": True, "attention": {"relaxation": 32.0}}
    changes["overrides"] = {"0": {"trainable": False, "learning_rate_multiplier": 0.5, "layer_drop": 0.2}}
    config = encoder_config({"transformer": changes, "frontend": {"gradient_multiplier": 0.3}})
    assert unsupported_by_hubert(config) == []
    again = encoder_from_hubert(hubert_config(config))
    assert again.transformer.norm == "pre" and again.transformer.dropout == 0.3


def test_every_option_hubert_cannot_express_is_an_obstacle_without_being_listed():
    """A config with a field of its own stands for whatever is added to the encoder later."""

    class Grown(EncoderConfig):
        whitened: bool = True

    assert unsupported_by_hubert(tiny_encoder()) == []
    assert unsupported_by_hubert(Grown(**tiny_encoder().model_dump())) == [
        "whitened is True, a HubertModel has no such option"
    ]


def test_without_heads_no_file_of_heads(tmp_path):
    export_model(tmp_path / "out", stored(tiny_encoder(), heads=False), CARD)
    assert not (tmp_path / "out" / "heads.safetensors").exists()
    assert read_model(tmp_path / "out").heads == ()


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(ValueError, match="out exists and is not empty"):
        export_model(tmp_path / "out", stored(tiny_encoder()), CARD)
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_a_folder_that_is_no_model_is_refused_by_the_loader(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="config.json: model_type is 'bert', imported are hubert, mert_model"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "mert_foundry", "sample_rate": 24000, "encoder": {"depth": 3}}'
    )
    with pytest.raises(ValueError, match="config.json: .*depth"):
        load_encoder(tmp_path)

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from tiny_model import HEADS, tiny_encoder, tiny_model

from model.encoder import MertEncoder
from model.export import export_hubert

CARD = {"Data": "2 hours of tones", "Training": {"steps": 3}}


def randomised(norm: str):
    """Weights far from the initial ones, so that no norm, bias or gain can be mixed up unseen."""
    model = tiny_model(norm=norm).eval()
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_transformers_opens_the_export_with_equal_hidden_states(tmp_path, norm):
    model = randomised(norm)
    out = export_hubert(tmp_path / "out", model.state_dict(), model.encoder.config, HEADS, 24_000, CARD)
    hubert, loading = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert isinstance(hubert, transformers.HubertModel)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    hubert.eval()
    for num_samples in (400, 1_111, 4_567, 9_999):
        audio = torch.randn(2, num_samples)
        with torch.no_grad():
            ours = model.encoder(audio)
            theirs = hubert(audio, output_hidden_states=True)
        assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
        for mine, other in zip([*ours.hidden_states, ours.last], [*theirs.hidden_states, theirs.last_hidden_state]):
            assert (mine - other).abs().max() < 1e-4


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_masked_and_padded_frames_equal_huberts(tmp_path, norm):
    model = randomised(norm)
    out = export_hubert(tmp_path / "out", model.state_dict(), model.encoder.config, HEADS, 24_000, CARD)
    hubert = transformers.AutoModel.from_pretrained(out).eval()
    audio = torch.randn(2, 6_480)
    lengths = torch.tensor([6_480, 4_000])
    attention_mask = torch.arange(6_480)[None] < lengths[:, None]
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 3:8] = True
    valid = torch.arange(20)[None] < torch.tensor([20, model.encoder.num_frames(4_000)])[:, None]
    with torch.no_grad():
        theirs = hubert(audio, attention_mask=attention_mask.long(), mask_time_indices=mask).last_hidden_state
        ours = model.encoder(audio, mask=mask, valid=valid).last
    assert (ours - theirs)[valid].abs().max() < 1e-4


def test_folder_says_rate_heads_and_card(tmp_path):
    model = randomised("post")
    out = export_hubert(tmp_path / "out", model.state_dict(), model.encoder.config, HEADS, 22_050, CARD)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(out)
    assert isinstance(extractor, transformers.Wav2Vec2FeatureExtractor)
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (22_050, False, False)
    with safe_open(out / "heads.safetensors", "pt") as heads:
        assert [spec["name"] for spec in json.loads(heads.metadata()["heads"])] == ["codes", "cqt"]
        assert torch.equal(heads.get_tensor("codes.embedding"), model.heads["codes"].embedding)
    card = (out / "README.md").read_text()
    assert "2 hours of tones" in card and "steps: 3" in card and "AutoModel.from_pretrained" in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_survive_bit_for_bit(tmp_path):
    model = randomised("pre")
    out = export_hubert(tmp_path / "out", model.state_dict(), model.encoder.config, HEADS, 24_000, CARD)
    again = dict(transformers.AutoModel.from_pretrained(out).state_dict())
    with safe_open(out / "model.safetensors", "pt") as stored:
        assert set(stored.keys()) == set(again)
        assert all(torch.equal(stored.get_tensor(name), weight) for name, weight in again.items())
    ours = MertEncoder(tiny_encoder()).parameters()
    assert sum(weight.numel() for weight in again.values()) == sum(weight.numel() for weight in ours)


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    model = randomised("post")
    with pytest.raises(ValueError, match="out exists and is not empty"):
        export_hubert(tmp_path / "out", model.state_dict(), model.encoder.config, HEADS, 24_000, CARD)
    assert (tmp_path / "out" / "mine").read_text() == "precious"

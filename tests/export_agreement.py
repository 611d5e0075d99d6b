"""Whether transformers, of whatever major version, opens a folder by itself and computes what is expected."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from mert_foundry.model.encoder import MertEncoder

SAMPLES = (400, 1_111, 4_567, 9_999)
HiddenStates = Callable[[torch.Tensor], tuple[list[torch.Tensor], torch.Tensor]]


def hidden_states_of(encoder: MertEncoder) -> HiddenStates:
    """A function from audio to all hidden states and the output."""

    def compute(audio: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        output = encoder.eval()(audio)
        return list(output.hidden_states), output.last

    return compute


def assert_transformers_agrees(folder: Path, ours: HiddenStates, samples: tuple[int, ...] = SAMPLES) -> None:
    """No remote code, nothing missing, and every hidden state equal to 1e-4, or to 2e-5 of its size, for audio of odd
    lengths.
    """
    config = json.loads((folder / "config.json").read_text())
    assert not list(folder.glob("*.py")) and "auto_map" not in config
    hubert, loading = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    assert type(hubert).__module__.startswith("transformers.models.hubert.")
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    hubert.eval()
    for count in samples:
        audio = torch.randn(2, count, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            (states, last), theirs = ours(audio), hubert(audio, output_hidden_states=True)
        if config["do_stable_layer_norm"] and transformers.__version__.startswith("4."):
            states[-1] = last  # 4.x puts the normed output in the place of the last hidden state
        for mine, other in zip([*states, last], [*theirs.hidden_states, theirs.last_hidden_state], strict=True):
            assert mine.abs().max() > 0.1
            assert (mine - other).abs().max() < max(1e-4, 2e-5 * mine.abs().max())

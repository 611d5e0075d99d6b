"""Hidden states of any stored encoder, ready to be kept: chosen layers, a stated precision, batches of one length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.features.windows import FrameGeometry, measure_frames
from mert_foundry.model.interop.architecture import architecture_differences
from mert_foundry.model.interop.load import build_encoder, read_model

Precision = Literal["fp32", "tf32", "bf16"]
NORMALISATION_EPSILON = 1e-7  # of transformers' Wav2Vec2FeatureExtractor


class FeatureEncoder:
    """An encoder in eval mode that gives the hidden states of chosen layers.

    Layer 0 is the input of the first transformer layer, layer i the output of layer i, as in
    `transformers.HubertModel`'s `hidden_states`.

    Args:
        folder: any folder that model/interop/load.py opens.
        device: where it runs.
        precision: fp32; tf32: fp32 with matrix products of 10-bit mantissas (CUDA); bf16: autocast.
        layers: which hidden states; None: all.

    architecture: what of its config is not MERT 95M's, by dotted key. weights: float32, on the CPU, by name; the
    same for a checkpoint and its exports.

    Raises:
        ValueError: no such layer, or the folder holds no encoder.
    """

    def __init__(
        self, folder: Path, device: torch.device, precision: Precision = "fp32", layers: Sequence[int] | None = None
    ):
        stored = read_model(folder)
        self.architecture = {
            key: ours for key, (ours, _) in architecture_differences(stored.encoder, EncoderConfig()).items()
        }
        self.weights = {name: tensor.float() for name, tensor in stored.weights.items()}
        self.normalised = stored.normalised
        self.sample_rate = stored.sample_rate
        encoder = build_encoder(stored)
        self.num_layers = len(encoder.transformer.layers)
        self.layers = tuple(range(self.num_layers + 1)) if layers is None else tuple(layers)
        unknown = [layer for layer in self.layers if not 0 <= layer <= self.num_layers]
        if unknown or not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"layers {list(self.layers)}: each one of 0 to {self.num_layers} once is what {folder} has"
            )
        # What lies above the last layer that is asked for would be computed for nothing.
        encoder.transformer.layers = encoder.transformer.layers[: max(self.layers)]
        self.encoder = encoder.to(device).float().eval()
        self.device = device
        self.precision = precision
        self.geometry: FrameGeometry = measure_frames(encoder.num_frames, encoder.hop)
        self.width: int = encoder.config.transformer.width

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio [B, T] float32 in [-1, 1), rows of the same true length -> hidden states [B, F, layers, D] float32.

        A row's states do not depend on the other rows (to rounding): there is no padding, and a front-end's group
        norm takes its statistics row by row.
        """
        audio = audio.to(self.device)
        if self.normalised:
            deviation = torch.sqrt(audio.var(dim=1, keepdim=True, unbiased=False) + NORMALISATION_EPSILON)
            audio = (audio - audio.mean(dim=1, keepdim=True)) / deviation
        exact = self.precision == "fp32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            states = self.encoder(audio).hidden_states
        return torch.stack([states[layer].float() for layer in self.layers], dim=2)

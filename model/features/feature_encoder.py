"""Hidden states of any encoder for a feature store: chosen layers, a stated precision, rows of several lengths
together.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.features.feature_model import Precision, check_layers
from mert_foundry.model.features.padded_frontend import padded_features
from mert_foundry.model.features.windows import FrameGeometry, measure_frames
from mert_foundry.model.interop.architecture import architecture_differences
from mert_foundry.model.interop.load import build_encoder
from mert_foundry.model.interop.stored_model import StoredModel

PADDED_TO_FRAMES = 25
NORMALISATION_EPSILON = 1e-7  # of transformers' Wav2Vec2FeatureExtractor


class FeatureEncoder:
    """An encoder in eval mode that gives the hidden states of chosen layers; a `FeatureModel`.

    Layer 0 is the input of the first transformer layer, layer i the output of layer i, as in
    `transformers.HubertModel`'s `hidden_states`.

    Args:
        stored: the encoder with its weights.
        name: what it is called in messages.
        device: where it runs.
        precision: fp32; tf32: fp32 with matrix products of 10-bit mantissas (CUDA); bf16: autocast.
        layers: which hidden states; None: all.

    tokenizer: of an encoder over tokens, the fingerprint of the tokenizer that they are of, empty where it is not
    known; None: it reads audio. architecture: settings that differ from MERT 95M's, by dotted key. weights: float32, on
    the CPU, by name; the same for a checkpoint and its exports.

    Raises:
        ValueError: no such layer.
    """

    def __init__(
        self,
        stored: StoredModel,
        name: str,
        device: torch.device,
        precision: Precision = "fp32",
        layers: Sequence[int] | None = None,
    ):
        self.architecture = unlike_mert_95m(stored)
        self.weights: Mapping[str, Tensor] = {name: tensor.float() for name, tensor in stored.weights.items()}
        self.normalised = stored.normalised
        reads = stored.encoder.frontend.input_name
        self.tokenizer = None if reads == "audio" else stored.fingerprints.get(reads, "")
        self.sample_rate = stored.sample_rate
        self.settings: Mapping[str, object] = identity(self.architecture, self.sample_rate, self.normalised)
        encoder = build_encoder(stored)
        self.num_layers = len(encoder.transformer.layers)
        self.layers = check_layers(layers, self.num_layers, name)
        # Layers above the last chosen one need not be computed.
        encoder.transformer.layers = nn.ModuleList(list(encoder.transformer.layers)[: max(self.layers)])
        self.encoder = encoder.to(device).float().eval()
        self.device = device
        self.precision = precision
        # Tokens are frames, each of which shards count as one hop of samples.
        self.geometry = FrameGeometry(encoder.hop, encoder.hop)
        if self.tokenizer is None:
            self.geometry = measure_frames(encoder.num_frames, encoder.hop)
        self.width: int = encoder.config.transformer.width

    def describe(self) -> dict[str, object]:
        """See FeatureModel."""
        return {"unlike_mert_95m": self.architecture, "normalised_audio": self.normalised}

    @torch.inference_mode()
    def encode(self, audio: Tensor, num_samples: Sequence[int] | None = None) -> Tensor:
        """See FeatureModel; of an encoder over tokens, `audio` is tokens [B, T], int64. A row does not depend on the
        lengths of the others: no frame attends to padding, and model/features/padded_frontend.py keeps front-ends from
        seeing it.
        """
        if (self.tokenizer is None) != audio.is_floating_point():
            raise ValueError(f"the encoder reads {self.encoder.input_name}, it was given {audio.dtype}")
        lengths = [audio.shape[1]] * len(audio) if num_samples is None else list(num_samples)
        audio = audio.to(self.device)
        if self.normalised:
            audio = normalise(audio, lengths)
        exact = self.precision == "fp32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if len(set(lengths)) == 1:
                states = self.encoder(self._inputs(audio[:, : lengths[0]])).hidden_states
            else:
                states = self._padded(audio, lengths)
        return torch.stack([states[layer].float() for layer in self.layers], dim=2)

    def _padded(self, audio: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
        """Hidden states of rows of several lengths, padded to one of few lengths, since oneDNN compiles for each
        length.
        """
        step = (1 if self.tokenizer is not None else self.geometry.hop) * PADDED_TO_FRAMES
        audio = nn.functional.pad(audio, (0, -audio.shape[1] % step))
        hidden = self.encoder.projection(padded_features(self.encoder, self._inputs(audio), lengths))
        frames = torch.tensor([self.encoder.num_frames(length) for length in lengths], device=self.device)
        valid = torch.arange(hidden.shape[1], device=self.device) < frames[:, None]
        states: tuple[Tensor, ...] = self.encoder.transformer(hidden, valid).hidden_states
        return states

    def _inputs(self, rows: Tensor) -> Tensor:
        """Audio as it is; tokens as the batches of a stream have them, [B, 1, T]."""
        return rows if self.tokenizer is None else rows[:, None]


def unlike_mert_95m(stored: StoredModel) -> dict[str, object]:
    """Settings of a stored encoder that differ from MERT 95M's, by dotted key."""
    return {key: ours for key, (ours, _) in architecture_differences(stored.encoder, EncoderConfig()).items()}


def identity(architecture: Mapping[str, object], sample_rate: int, normalised: bool) -> dict[str, object]:
    """What beside the weights makes an encoder's states what they are.

    `learnable_temperature` is hashed under the name that it had first, so that a model keeps its fingerprint.
    """
    named = {
        key.replace("attention.learnable_temperature", "attention.temperature"): value
        for key, value in architecture.items()
    }
    return {"architecture": named, "sample_rate": sample_rate, "normalised": normalised}


def normalise(audio: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each row's first samples to mean 0 and variance 1, as transformers' Wav2Vec2FeatureExtractor;
    zeros after them.
    """
    result = torch.zeros_like(audio)
    for row, length in enumerate(lengths):
        own = audio[row, :length]
        std = torch.sqrt(own.var(unbiased=False) + NORMALISATION_EPSILON)
        result[row, :length] = (own - own.mean()) / std
    return result

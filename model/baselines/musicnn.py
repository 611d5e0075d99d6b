"""musicnn: a tagger of music with convolutions shaped by musical ideas (Pons and Serra 2019, arXiv 1909.06654).

The network of https://github.com/jordipons/musicnn, trained on MagnaTagATune (MTT_musicnn), in torch. Its weights lie
beside this in float16 with their licence (ISC); tests/data/musicnn/convert.py made them of the published TensorFlow
checkpoint.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import MelSpectrogram

from mert_foundry.model.features.feature_model import check_layers
from mert_foundry.model.features.windows import FrameGeometry

WEIGHTS = Path(__file__).parent / "shipped" / "musicnn.safetensors"
SAMPLE_RATE, WINDOW, HOP, BANDS = 16_000, 512, 256, 96
PATCH = 187  # spectra: 3 s
SHORTEST = 8_000  # samples: the remainder of a track after whole patches is a shorter patch, if it is at least as long
WIDTH = 200
TEMPORAL = ("conv2d_2", "conv2d_3", "conv2d_4")  # 128, 64 and 32 spectra long


class MusicnnBaseline:
    """The 200 values before musicnn's output layer, one frame for every 3 s; a `FeatureModel` with layer 0.

    Audio goes through patches of 187 log-mel spectra, one after the other, as in the published extractor. The last
    frame of a track may be of a shorter patch, of at least half a second.

    Raises:
        ValueError: another layer is asked for.
    """

    sample_rate = SAMPLE_RATE
    geometry = FrameGeometry(hop=PATCH * HOP, receptive_field=SHORTEST)
    num_layers = 0
    width = WIDTH

    def __init__(self, device: torch.device, layers: Sequence[int] | None = None):
        self.layers = check_layers(layers, self.num_layers, "musicnn")
        self.weights: Mapping[str, Tensor] = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
        self.settings: Mapping[str, object] = {
            "feature": "musicnn penultimate",
            "sample_rate": SAMPLE_RATE,
            "patch": PATCH,
            "shortest": SHORTEST,
        }
        self.network = MusicnnNetwork(self.weights).to(device)
        # As librosa 0.7 computes it, which musicnn was published with.
        self.spectrum = MelSpectrogram(
            SAMPLE_RATE, WINDOW, hop_length=HOP, n_mels=BANDS, norm="slaney", mel_scale="slaney", pad_mode="reflect"
        ).to(device)
        self.device = device

    def describe(self) -> dict[str, object]:
        """See FeatureModel."""
        return {"baseline": "musicnn", "baseline_settings": dict(self.settings)}

    @torch.inference_mode()
    def encode(self, audio: Tensor, num_samples: Sequence[int] | None = None) -> Tensor:
        """See FeatureModel."""
        lengths = [audio.shape[1]] * len(audio) if num_samples is None else list(num_samples)
        rows = [self._frames(row[:length].to(self.device)) for row, length in zip(audio, lengths)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, :, None]

    def _frames(self, samples: Tensor) -> Tensor:
        """Samples [T] -> [frames, 200]."""
        spectra = torch.log10(10_000 * self.spectrum(samples).T + 1)
        frames = self.geometry.num_frames(len(samples))
        patches = spectra.split(PATCH)[:frames]
        whole = [patch for patch in patches if len(patch) == PATCH]
        found = [self.network(torch.stack(whole))] if whole else []
        return torch.cat(found + [self.network(patch[None]) for patch in patches[len(whole) :]])


class MusicnnNetwork(nn.Module):
    """Log-mel patches [B, T, 96] -> the values before the output layer [B, 200]. Names of weights are TensorFlow's."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def forward(self, patches: Tensor) -> Tensor:
        features = self.features(patches)
        # Largest and mean value of each feature side by side, feature by feature.
        pooled = torch.stack([features.amax(dim=1), features.mean(dim=1)], dim=2).flatten(1)
        hidden = functional.linear(self._norm(pooled, 9), self.get("dense_weight"), self.get("dense_bias"))
        return self._norm(functional.relu(hidden), 10)

    def features(self, patches: Tensor) -> Tensor:
        """[B, T, 96] -> [B, T, 753]: 561 of the front-end, 64 of each of three convolutions after it."""
        spectra = patches[:, None]
        spectra = spectra * self.get("batch_normalization_scale") + self.get("batch_normalization_shift")
        timbral = [self._front(name, spectra, number) for number, name in enumerate(("conv2d", "conv2d_1"), 1)]
        temporal = [self._front(name, spectra, number) for number, name in enumerate(TEMPORAL, 3)]
        front = torch.cat(timbral + temporal, dim=2)
        first = self._middle("conv2d_5", front, 6)
        second = self._middle("conv2d_6", first, 7) + first
        third = self._middle("conv2d_7", second, 8) + second
        return torch.cat([front, first, second, third], dim=2)

    def _front(self, name: str, spectra: Tensor, norm: int) -> Tensor:
        """Convolution over [B, 1, T, 96] as long as before, and the largest value over frequency: [B, T, filters]."""
        convolved = self._convolve(name, spectra)
        return self._norm(functional.relu(convolved).movedim(1, 3), norm).amax(dim=2)

    def _middle(self, name: str, features: Tensor, norm: int) -> Tensor:
        """Convolution over all features of [B, T, n] and 7 spectra: [B, T, 64]."""
        return self._norm(functional.relu(self._convolve(name, features[:, None]))[..., 0].movedim(1, 2), norm)

    def _convolve(self, name: str, signal: Tensor) -> Tensor:
        weight = self.get(f"{name}_weight")
        kernel = weight.shape[2]
        # An even kernel has one zero less before than after, as TensorFlow's "same".
        padded = functional.pad(signal, (0, 0, (kernel - 1) // 2, kernel // 2))
        return functional.conv2d(padded, weight, self.get(f"{name}_bias"))

    def _norm(self, values: Tensor, number: int) -> Tensor:
        name = f"batch_normalization_{number}"
        return values * self.get(f"{name}_scale") + self.get(f"{name}_shift")

    def get(self, name: str) -> Tensor:
        """A weight."""
        return self.get_buffer(name)

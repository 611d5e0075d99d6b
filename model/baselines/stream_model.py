"""What the baselines without layers share: 75 frames a second of audio at 24 kHz, one layer, row by row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mert_foundry.model.features.feature_model import check_layers
from mert_foundry.model.features.windows import FrameGeometry
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE


class StreamModel(ABC):
    """A `FeatureModel` with one layer, of a function from a row's samples to frames of 320 samples each.

    Args:
        name: what it is called in `model=`.
        settings, weights: as FeatureModel has them.
        width: features of a frame.
        layers: None, or [0].

    Raises:
        ValueError: another layer is asked for.
    """

    sample_rate = SAMPLE_RATE
    geometry = FrameGeometry(hop=HOP, receptive_field=HOP)
    num_layers = 0

    def __init__(
        self,
        name: str,
        settings: Mapping[str, object],
        width: int,
        layers: Sequence[int] | None,
        weights: Mapping[str, Tensor] | None = None,
    ):
        self.name = name
        self.layers = check_layers(layers, self.num_layers, name)
        self.settings = settings
        self.weights: Mapping[str, Tensor] = weights or {}
        self.width = width

    def describe(self) -> dict[str, object]:
        """See FeatureModel."""
        return {"baseline": self.name, "baseline_settings": dict(self.settings)}

    @torch.inference_mode()
    def encode(self, audio: Tensor, num_samples: Sequence[int] | None = None) -> Tensor:
        """See FeatureModel; samples after the last whole hop of a row count for nothing."""
        lengths = [audio.shape[1]] * len(audio) if num_samples is None else list(num_samples)
        rows = [self.frames(row[: length // HOP * HOP]) for row, length in zip(audio, lengths)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, :, None]

    @abstractmethod
    def frames(self, samples: Tensor) -> Tensor:
        """Samples [T] float32, T a positive multiple of 320 -> features [T / 320, width] float32."""

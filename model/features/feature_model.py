"""Models that give features: a trained encoder, or a baseline that encoders are compared with."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from torch import Tensor

from mert_foundry.model.features.windows import FrameGeometry

Precision = Literal["fp32", "tf32", "bf16"]


class FeatureModel(Protocol):
    """Audio to layers of frames.

    sample_rate: Hz of the audio it takes. geometry: where its frames lie.
    num_layers: number of its last layer. layers: those that `encode` gives. width: features of a layer.
    settings, weights: everything that its features depend on, for a fingerprint; settings as JSON has them, weights on
        the CPU, by name.
    """

    sample_rate: int
    geometry: FrameGeometry
    num_layers: int
    layers: tuple[int, ...]
    width: int
    settings: Mapping[str, object]
    weights: Mapping[str, Tensor]

    def describe(self) -> dict[str, object]:
        """What a feature store says of the model beside its fingerprint, layers and width, as JSON has it."""
        ...

    def encode(self, audio: Tensor, num_samples: Sequence[int] | None = None) -> Tensor:
        """Audio [B, T] float32 in [-1, 1) -> features [B, F, layers, D] float32.

        Args:
            num_samples: samples of each row; after them it holds zeros. None: all rows have T.

        The first `geometry.num_frames(num_samples[i])` frames of row i are its own, and do not depend on the other rows
        or on T (up to rounding); frames after them are padding.
        """
        ...


def check_layers(layers: Sequence[int] | None, num_layers: int, name: str) -> tuple[int, ...]:
    """The chosen layers; None chooses all.

    Raises ValueError for a layer that the model does not have, or that is listed twice.
    """
    chosen = tuple(range(num_layers + 1)) if layers is None else tuple(layers)
    unknown = [layer for layer in chosen if not 0 <= layer <= num_layers]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"layers {list(chosen)}: each one of 0 to {num_layers} once is what {name} has")
    return chosen

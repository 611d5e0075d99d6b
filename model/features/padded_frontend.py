"""A front-end over rows of several lengths: the features of each as if it were alone, to rounding.

A convolution sees only the samples of its frame, so padding after a row changes none of its frames. Group norm takes
statistics over the row, so it is applied to each row alone. Other front-ends say by `padding_invariant` whether padding
changes a frame; if it does, rows of one length go through together.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mert_foundry.model.encoder import MertEncoder
from mert_foundry.model.frontend.convolution import ConvFrontend


def padded_features(encoder: MertEncoder, audio: Tensor, num_samples: Sequence[int]) -> Tensor:
    """Output of the encoder's front-end, [B, T] -> [B, F, C]; the first frames of a row, as many as its samples make,
    are its own.

    Args:
        num_samples: samples of each row, with zeros after them.
    """
    frontend = encoder.frontend
    if encoder.padding_invariant:
        features: Tensor = frontend(audio)
        return features
    if isinstance(frontend, ConvFrontend):
        return frontend(audio, num_samples)
    return _by_length(frontend, audio, num_samples)


def _by_length(frontend: nn.Module, audio: Tensor, num_samples: Sequence[int]) -> Tensor:
    """Rows of exactly one length go through it together."""
    features: dict[int, Tensor] = {}
    for length in sorted(set(num_samples)):
        rows = [row for row, own in enumerate(num_samples) if own == length]
        features |= dict(zip(rows, frontend(audio[rows, :length])))
    return nn.utils.rnn.pad_sequence([features[row] for row in range(len(num_samples))], batch_first=True)

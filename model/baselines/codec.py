"""Latents of an EnCodec codec, which MERT's acoustic teacher quantises, as a baseline."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mert_foundry.model.baselines.stream_model import StreamModel
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.teachers.codec.encoder import EncodecEncoder
from mert_foundry.pipeline.teachers.codec.weights import load_codec


class CodecBaseline(StreamModel):
    """The continuous output of a codec's encoder, before it is quantised, 75 frames a second.

    Args:
        weights: as `load_codec` takes them: `official`, `foundry-small`, an official file or a folder of mert codec.

    Raises:
        ValueError: as `load_codec`, or the codec has another rate or hop.
    """

    def __init__(self, weights: str, device: torch.device, layers: Sequence[int] | None = None):
        codec = load_codec(weights)
        if (codec.sample_rate, codec.encoder.hop_length) != (SAMPLE_RATE, HOP):
            raise ValueError(
                f"codec {weights}: {codec.sample_rate} Hz and hop {codec.encoder.hop_length}, {SAMPLE_RATE} and {HOP}"
                " are needed"
            )
        # A copy as they are stored, since the next line folds the weight norm in place.
        stored = {
            name: tensor.detach().clone() for name, tensor in codec.state_dict().items() if name.startswith("encoder.")
        }
        self.encoder = EncodecEncoder(codec.encoder, device)
        settings: dict[str, object] = {"feature": "codec latents", "sample_rate": SAMPLE_RATE, "hop": HOP}
        super().__init__(f"codec:{weights}", settings, codec.encoder.dimension, layers, stored)

    def frames(self, samples: Tensor) -> Tensor:
        """See StreamModel."""
        pieces = [
            latents[slot, : len(piece.samples) // HOP]
            for latents, chunk in self.encoder.latents([[samples.cpu().numpy()]])
            for slot, piece in chunk.items()
        ]
        return torch.cat(pieces)

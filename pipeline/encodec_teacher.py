"""Acoustic teacher: residual codes of an EnCodec-architecture codec (arXiv 2306.00107, section 3.2).

A track goes through the encoder in chunks with carried state: the causal convolutions get the samples they
reach back to, the LSTM its hidden state. So the network needs the memory of one chunk, whatever the length of
the track, and the codes are those of the whole track.
"""

import warnings
from typing import Literal

import numpy as np
import torch
from encodec.modules import SConv1d
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pipeline.codec import load_codec
from pipeline.frames import HOP, SAMPLE_RATE
from pipeline.teacher import TargetSpec, fingerprint

CHUNK_FRAMES = 1500


class EncodecTeacherConfig(BaseModel):
    """An RVQ codec as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["encodec"] = Field(description="An EnCodec-architecture codec")
    name: str = Field(default="codes", description="Name of the target")
    weights: str = Field(description="'official', a shipped codec's name, an official file or a codec folder")
    codebooks: int = Field(default=8, gt=0, description="Residual codebooks to keep (8 at 75 Hz: 6 kbps)")


class EncodecTeacher:
    """Codes uint16 `[codebooks, frames]`, 75 frames a second.

    Raises:
        ValueError: the codec's rate, hop or number of codebooks does not fit.
    """

    def __init__(self, config: EncodecTeacherConfig, device: torch.device):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # encodec 0.1.1 uses the older weight norm
            codec = load_codec(config.weights)
        if (codec.sample_rate, codec.encoder.hop_length) != (SAMPLE_RATE, HOP):
            raise ValueError(
                f"codec {config.weights}: {codec.sample_rate} Hz and hop {codec.encoder.hop_length},"
                f" shards hold {SAMPLE_RATE} Hz and hop {HOP}"
            )
        if config.codebooks > codec.quantizer.n_q:
            raise ValueError(f"codec {config.weights}: {codec.quantizer.n_q} codebooks, {config.codebooks} asked for")
        self.device = device
        self.codebooks = config.codebooks
        self.quantizer = codec.quantizer.vq.to(device)
        self.encoder = codec.encoder.to(device)
        layers = list(self.encoder.model)
        recurrent = next(index for index, layer in enumerate(layers) if hasattr(layer, "lstm"))
        self.convolutions = nn.Sequential(*layers[:recurrent])
        self.recurrent = layers[recurrent]
        self.head = nn.Sequential(*layers[recurrent + 1 :])
        # In whole frames, so that every chunk meets the same stride phases.
        self.context_frames = -(-samples_reached_back(self.convolutions) // HOP)
        self.head_context = samples_reached_back(self.head)
        self.spec = _specification(config, codec)

    @torch.inference_mode()
    def label(self, audio: np.ndarray) -> np.ndarray:
        """Codes of a whole track, see `pipeline.teacher.Teacher`."""
        frames = len(audio) // HOP
        codes = np.empty((self.codebooks, frames), np.uint16)
        state = None
        tail = None
        for start in range(0, frames, CHUNK_FRAMES):
            stop = min(start + CHUNK_FRAMES, frames)
            features = self._convolve(audio, start, stop)
            features, state = self._recur(features, state)
            if tail is not None:
                features = torch.cat([tail, features], dim=2)
            latent = self.head(features)[..., 0 if tail is None else self.head_context :]
            tail = features[..., -self.head_context :]
            codes[:, start:stop] = self.quantizer.encode(latent, n_q=self.codebooks)[:, 0].cpu().numpy()
        return codes

    def _convolve(self, audio: np.ndarray, start: int, stop: int) -> Tensor:
        context = min(start, self.context_frames)
        samples = torch.from_numpy(audio[(start - context) * HOP : stop * HOP]).to(self.device)
        return self.convolutions(samples[None, None])[..., context:]

    def _recur(self, features: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sequence = features.permute(2, 0, 1)
        output, state = self.recurrent.lstm(sequence, state)
        if self.recurrent.skip:
            output = output + sequence
        return output.permute(1, 2, 0), state


def samples_reached_back(layers: nn.Module) -> int:
    """How many input samples before a frame's own the causal convolutions of `layers` can see, at most.

    Each convolution reaches (kernel - 1) * dilation - (stride - 1) of its own inputs back; residual
    branches are summed as if they stood in line, which can only overestimate.
    """
    reach, jump = 0, 1
    for module in layers.modules():
        if isinstance(module, SConv1d):
            convolution = module.conv.conv
            stride = convolution.stride[0]
            reach += ((convolution.kernel_size[0] - 1) * convolution.dilation[0] - (stride - 1)) * jump
            jump *= stride
    return reach


def _specification(config: EncodecTeacherConfig, codec) -> TargetSpec:
    settings = {"kind": config.kind, "codebooks": config.codebooks, "sample_rate": SAMPLE_RATE, "hop": HOP}
    weights = {
        name: tensor.cpu().numpy()
        for name, tensor in codec.state_dict().items()
        if name.startswith("encoder.") or name.endswith("_codebook.embed")
    }
    return TargetSpec(
        name=config.name, kind="discrete", dtype="uint16", frame_rate=SAMPLE_RATE // HOP,
        size=config.codebooks, codebook_size=codec.quantizer.bins,
        fingerprint=fingerprint(settings, weights),
        teacher=settings | {"weights": config.weights.rstrip("/").rsplit("/", 1)[-1]},
    )

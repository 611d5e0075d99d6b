"""Acoustic teacher: residual codes of an EnCodec-architecture codec (arXiv 2306.00107, section 3.2)."""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from encodec import EncodecModel
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import fingerprint
from mert_foundry.pipeline.teachers.codec.encoder import Backend, EncodecEncoder, Precision
from mert_foundry.pipeline.teachers.codec.quantizer import ResidualQuantizer
from mert_foundry.pipeline.teachers.codec.track_batching import in_order
from mert_foundry.pipeline.teachers.codec.weights import load_codec, read_codec


class EncodecTeacherConfig(BaseModel):
    """An RVQ codec as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["encodec"] = Field(description="An EnCodec-architecture codec")
    name: str = Field(default="codes", description="Name of the target")
    weights: str = Field(description="'official', a shipped codec's name, an official file or a codec folder")
    codebooks: int = Field(default=8, gt=0, description="Residual codebooks to keep (8 at 75 Hz: 6 kbps)")
    precision: Precision = Field(
        default="fp32",
        description="Arithmetic of the convolutions; tf32 (on a GPU) and bf16 are faster and change codes, so there"
        " is no auto",
    )
    backend: Backend = Field(
        default="torch", description="What runs the convolutions; 'openvino' (an extra) is faster on a CPU"
    )


class EncodecTeacher:
    """Codes uint16 `[codebooks, frames]`, 75 frames per second.

    Two backends may decide a near tie differently, so `backend` says which one runs; the fingerprint is that of
    the weights and of what changes codes on purpose.

    Raises:
        ValueError: the codec's rate, hop or number of codebooks does not fit, or the backend cannot run.
    """

    def __init__(self, config: EncodecTeacherConfig, device: torch.device):
        self.spec = self.describe(config)
        codec = load_codec(config.weights)
        self.encoder = EncodecEncoder(codec.encoder, device, config.precision, config.backend)
        self.quantizer = ResidualQuantizer(codebooks_of(codec)[: config.codebooks].to(device))
        self.backend = {config.name: self.encoder.backend}

    @staticmethod
    def describe(config: EncodecTeacherConfig) -> TargetSpec:
        """See `pipeline.teachers.teacher.Teacher`. Raises ValueError as the constructor does, but for the backend."""
        stored = read_codec(config.weights)
        if stored.sizes.hop != HOP:
            raise ValueError(
                f"codec {config.weights}: hop {stored.sizes.hop}, shards hold {SAMPLE_RATE} Hz and hop {HOP}"
            )
        if config.codebooks > stored.sizes.codebooks:
            raise ValueError(
                f"codec {config.weights}: {stored.sizes.codebooks} codebooks, {config.codebooks} asked for"
            )
        settings: dict[str, str | int] = {
            "kind": config.kind,
            "codebooks": config.codebooks,
            "sample_rate": SAMPLE_RATE,
            "hop": HOP,
        }
        if config.precision != "fp32":
            # The LSTM had the precision too, in shards without this entry.
            settings |= {"precision": config.precision, "lstm_precision": "fp32"}
        return TargetSpec(
            name=config.name,
            kind="discrete",
            dtype="uint16",
            frame_rate=SAMPLE_RATE // HOP,
            size=config.codebooks,
            codebook_size=stored.sizes.codebook_size,
            # Of the weights as they are stored, before weight norm is folded into them.
            fingerprint=fingerprint(settings, {name: tensor.numpy() for name, tensor in stored.weights.items()}),
            teacher=settings | {"weights": config.weights.rstrip("/").rsplit("/", 1)[-1]},
        )

    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a whole track, see `pipeline.teachers.teacher.Teacher`."""
        return next(self.label_tracks([blocks]))

    def label_tracks(self, tracks: Iterable[Iterable[np.ndarray]]) -> Iterator[Iterator[np.ndarray]]:
        """Codes of each track in order, labelled side by side, see `pipeline.teachers.teacher.label_tracks`."""
        return in_order(self._codes(tracks))

    def _codes(self, tracks: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[int, np.ndarray, bool]]:
        for latents, pieces in self.encoder.latents(tracks):
            codes = self.quantizer.encode(latents).cpu().numpy().astype(np.uint16)
            for slot, piece in pieces.items():
                yield piece.track, codes[:, slot, : len(piece.samples) // HOP], piece.last


def codebooks_of(codec: EncodecModel) -> torch.Tensor:
    """All codebooks of a codec, fp32 `[levels, entries, dimension]`."""
    return torch.stack([layer.codebook for layer in codec.quantizer.vq.layers])

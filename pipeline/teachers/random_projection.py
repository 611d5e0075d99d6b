"""Random-projection quantiser over log-mel: a teacher that needs no fitting (BEST-RQ, arXiv 2202.01855, section 3.1;
for music MusicFM, arXiv 2311.03318).

Every frame of 128-band log-mel is projected to 16 dimensions by a matrix drawn once; its code is the entry of a drawn
codebook in the nearest direction. Both are functions of the seed. BEST-RQ warns that an input that is not of mean 0
and standard deviation 1 leaves few codes in use. MusicFM takes one mean and one standard deviation of its corpus for
all bands. That leaves the fall of music's spectrum towards high bands in every frame (perplexity about 140 of 8192 on
game music), and falls apart for a corpus of another level (below 20 at -20 dB). Here the fall, a constant, is taken
out, and each frame is brought to mean 0 and standard deviation 1 over its bands: codes do not depend on the level
(perplexity about 1400 on the same pieces), and no corpus is needed. MusicFM stacks four frames of 10 ms for its rate of
25 Hz; a target frame here is one hop of the log-mel, so there is nothing to stack.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import fingerprint
from mert_foundry.pipeline.teachers.spectra.power_spectra import LogMel

BANDS = 128
PROJECTED = 16
FALL = 0.26  # dB a band: least squares over the mean spectrum of 27 pieces of game music, 30 s each


class RandomProjectionTeacherConfig(BaseModel):
    """A random-projection quantiser as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["random_projection"] = Field(description="A random-projection quantiser over log-mel")
    name: str = Field(default="random_projection", description="Name of the target")
    seed: int = Field(default=0, ge=0, description="Seed of the projections and codebooks")
    codebooks: int = Field(default=1, gt=0, description="Codebooks, each with a projection of its own")
    codebook_size: int = Field(default=8192, gt=1, le=65536, description="Entries per codebook")


class RandomProjectionTeacher:
    """Codes uint16 `[codebooks, frames]`, 75 frames per second; frame i is centred on sample 320 i."""

    def __init__(self, config: RandomProjectionTeacherConfig, device: torch.device):
        drawn = draw(config.seed, config.codebooks, config.codebook_size)
        self.feature = LogMel(BANDS, device)
        self.fall = FALL * torch.arange(BANDS, device=device)
        self.projections = torch.from_numpy(drawn["projections"]).to(device)
        self.entries = nn.functional.normalize(torch.from_numpy(drawn["entries"]).to(device), dim=2)
        self.spec = _specification(config, drawn)

    @staticmethod
    def describe(config: RandomProjectionTeacherConfig) -> TargetSpec:
        """See `pipeline.teachers.teacher.Teacher`."""
        return _specification(config, draw(config.seed, config.codebooks, config.codebook_size))

    @torch.inference_mode()
    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a whole track, see `pipeline.teachers.teacher.Teacher`."""
        for decibels in self.feature.stream(blocks):
            frames = nn.functional.layer_norm(decibels + self.fall, (BANDS,))
            # The largest cosine is the least distance of unit vectors; the length of the projection does not matter.
            codes = [
                (frames @ projection @ entries.T).argmax(dim=1)
                for projection, entries in zip(self.projections, self.entries)
            ]
            yield torch.stack(codes).cpu().numpy().astype(np.uint16)


def _specification(config: RandomProjectionTeacherConfig, drawn: dict[str, np.ndarray]) -> TargetSpec:
    settings = {"projected": PROJECTED, "fall": FALL} | config.model_dump(exclude={"name"}) | LogMel.describe(BANDS)
    return TargetSpec(
        name=config.name,
        kind="discrete",
        dtype="uint16",
        frame_rate=FRAME_RATE,
        size=config.codebooks,
        codebook_size=config.codebook_size,
        fingerprint=fingerprint(settings, drawn),
        teacher=settings,
    )


def draw(seed: int, codebooks: int, codebook_size: int) -> dict[str, np.ndarray]:
    """Standard normal float32 `projections [K, 128, 16]` and `entries [K, codebook_size, 16]`.

    By NumPy's PCG64, codebook k from the stream (seed, k), so a codebook does not depend on how many there are. BEST-RQ
    draws the projection with Xavier's standard deviation, which the normalisation that follows would take out again.
    """
    streams = [np.random.Generator(np.random.PCG64([seed, codebook])) for codebook in range(codebooks)]
    return {
        "projections": np.stack([stream.standard_normal((BANDS, PROJECTED)) for stream in streams]).astype(np.float32),
        "entries": np.stack([stream.standard_normal((codebook_size, PROJECTED)) for stream in streams]).astype(
            np.float32
        ),
    }

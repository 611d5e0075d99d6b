"""Musical teacher: constant-Q transform magnitude at MERT's settings (arXiv 2306.00107, section 3.2).

The labels are those of nnAudio's `CQT`, which made MERT's, computed by `spectra/multirate_cqt.py`.

Storage, over an hour of music from five collections, error relative to the target's variance: 7e-8 in float16; in uint8
1.8e-4 (the 48 loudest bins 1.9e-4, the 48 quietest 2.3e-4, the worst bin of any collection 8e-4; the worst of 61
segments of 30 s 1.6e-3), at half the bytes, 25.2 instead of 50.4 KB per second. What a model leaves unexplained of a
masked frame is far more than that, so uint8 is the default. A square-root curve of the same reach has 1.2e-3, and 7e-2
in its worst bin.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.shards.companding import Companding
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import fingerprint
from mert_foundry.pipeline.teachers.spectra.multirate_cqt import MultirateCqt, largest_magnitude, place_windows

# Of mu from 255 to 1e6: below 3,000 the quiet bins suffer (worst bin 4e-3 and more), above 30,000 the loud ones.
COMPANDING_MU = 10_000
CHUNK_FRAMES = {"cpu": 750, "cuda": 12_000}  # what stays in a cache, and what keeps a GPU busy


class CqtTeacherConfig(BaseModel):
    """A constant-Q transform as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cqt"] = Field(description="A constant-Q transform")
    name: str = Field(default="cqt", description="Name of the target")
    lowest_frequency: float = Field(default=32.7, gt=0, description="Centre of the first bin, Hz")
    bins: int = Field(default=336, gt=0, description="Bins")
    bins_per_octave: int = Field(default=48, gt=0, description="Bins per octave")
    storage: Literal["float16", "uint8"] = Field(
        default="uint8", description="float16, or uint8 on a companding curve: half the bytes, levels 3.6 % apart"
    )


class CqtTeacher:
    """Magnitudes `[frames, bins]`, 75 frames per second, float16 or companded; frame i is centred on sample 320 i.

    Raises:
        ValueError: the highest bin lies above half the sample rate.
    """

    def __init__(self, config: CqtTeacherConfig, device: torch.device):
        self.chunk_frames = CHUNK_FRAMES[device.type]
        self.transform = MultirateCqt(
            SAMPLE_RATE, HOP, config.lowest_frequency, config.bins, config.bins_per_octave
        ).to(device)
        self.spec = self.describe(config)

    @staticmethod
    def describe(config: CqtTeacherConfig) -> TargetSpec:
        """See `pipeline.teachers.teacher.Teacher`."""
        companding = None
        if config.storage == "uint8":
            _, lengths = place_windows(SAMPLE_RATE, config.lowest_frequency, config.bins, config.bins_per_octave)
            # Above what any audio within [-1, 1] reaches, so that no value is ever clipped.
            companding = Companding(peak=math.floor(largest_magnitude(lengths)) + 1, mu=COMPANDING_MU)
        settings = config.model_dump(exclude={"name"}) | {
            "sample_rate": SAMPLE_RATE,
            "hop": HOP,
            "window": "hann",
            "padding": "constant",
            "transform": "multirate 1",
            "companding": companding and companding.model_dump(),
        }
        return TargetSpec(
            name=config.name,
            kind="continuous",
            dtype=config.storage,
            frame_rate=SAMPLE_RATE // HOP,
            size=config.bins,
            companding=companding,
            fingerprint=fingerprint(settings),
            teacher=settings,
        )

    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Magnitudes of a whole track, see `pipeline.teachers.teacher.Teacher`."""
        yield from map(self.store, self.transform.stream(blocks, self.chunk_frames))

    def store(self, magnitudes: Tensor) -> np.ndarray:
        """fp32 magnitudes as the shard holds them, `[frames, bins]`."""
        companding = self.spec.companding
        return (companding.compress(magnitudes) if companding else magnitudes.half()).cpu().numpy()

"""Musical teacher: constant-Q transform magnitude at MERT's settings (arXiv 2306.00107, section 3.2).

The arithmetic is nnAudio's `CQT` (Cheuk et al. 2020, https://github.com/KinWaiCheuk/nnAudio); the track is
padded once and goes through it in chunks, so the transform needs the memory of one chunk.
"""

from typing import Literal

import numpy as np
import torch
from nnAudio.features.cqt import CQT
from pydantic import BaseModel, ConfigDict, Field

from pipeline.frames import HOP, SAMPLE_RATE
from pipeline.teacher import TargetSpec, fingerprint

CHUNK_FRAMES = 750


class CqtTeacherConfig(BaseModel):
    """A constant-Q transform as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cqt"] = Field(description="A constant-Q transform")
    name: str = Field(default="cqt", description="Name of the target")
    lowest_frequency: float = Field(default=32.7, gt=0, description="Centre of the first bin, Hz")
    bins: int = Field(default=336, gt=0, description="Bins")
    bins_per_octave: int = Field(default=48, gt=0, description="Bins an octave")


class CqtTeacher:
    """Magnitudes float16 `[frames, bins]`, 75 frames a second; frame i is centred on sample 320 i.

    Raises:
        ValueError: the highest bin lies above half the sample rate.
    """

    def __init__(self, config: CqtTeacherConfig, device: torch.device):
        highest = config.lowest_frequency * 2 ** ((config.bins - 1) / config.bins_per_octave)
        if highest >= SAMPLE_RATE / 2:
            raise ValueError(f"cqt: highest bin at {highest:.0f} Hz, half the sample rate is {SAMPLE_RATE // 2} Hz")
        self.device = device
        self.transform = CQT(
            sr=SAMPLE_RATE, hop_length=HOP, fmin=config.lowest_frequency, n_bins=config.bins,
            bins_per_octave=config.bins_per_octave, filter_scale=1, norm=1, window="hann", center=False,
            trainable=False, output_format="Magnitude", verbose=False,
        ).to(device)
        self.half_window = self.transform.kernel_width // 2
        settings = config.model_dump(exclude={"name"}) | {
            "sample_rate": SAMPLE_RATE, "hop": HOP, "filter_scale": 1, "norm": 1, "window": "hann", "padding": "constant",
        }
        self.spec = TargetSpec(
            name=config.name, kind="continuous", dtype="float16", frame_rate=SAMPLE_RATE // HOP, size=config.bins,
            fingerprint=fingerprint(settings), teacher=settings,
        )

    @torch.inference_mode()
    def label(self, audio: np.ndarray) -> np.ndarray:
        """Magnitudes of a whole track, see `pipeline.teacher.Teacher`."""
        frames = len(audio) // HOP
        padded = np.pad(audio, self.half_window)
        magnitudes = np.empty((frames, self.spec.size), np.float16)
        for start in range(0, frames, CHUNK_FRAMES):
            stop = min(start + CHUNK_FRAMES, frames)
            window = padded[start * HOP : (stop - 1) * HOP + 2 * self.half_window]
            output = self.transform(torch.from_numpy(window).to(self.device)[None])
            magnitudes[start:stop] = output[0].T.cpu().numpy()
        return magnitudes

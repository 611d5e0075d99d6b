"""Log-mel of three frames side by side, 40 ms, as a stream: the one before, the frame itself, the one after."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mert_foundry.pipeline.teachers.spectra.power_spectra import LogMel, Settings

STACKED = 3


class StackedLogMel:
    """Audio to log-mel `[frames, 3 * bands]` in decibels, 75 frames per second; at the ends of a track its first and
    last frame stand in.

    Args:
        bands: mel bands from 30 Hz to half the sample rate.
    """

    def __init__(self, bands: int, device: torch.device):
        self.log_mel = LogMel(bands, device)
        self.size = STACKED * bands
        self.settings = self.describe(bands)

    @staticmethod
    def describe(bands: int) -> Settings:
        """How the feature is computed, for fingerprints and cards."""
        return LogMel.describe(bands) | {
            "feature": "stacked_logmel",
            "stacked": STACKED,
            "size": STACKED * bands,
            "bands": bands,
        }

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Blocks as `pipeline.teachers.teacher.Teacher.label` takes them; yields float32 `[f, 3 * bands]`, the middle
        one of row i centred on sample 320 i.
        """
        held = None  # the last two frames so far, of which the second still waits for its right neighbour
        for frames in self.log_mel.stream(blocks):
            held = torch.cat([frames[:1] if held is None else held, frames])
            if len(held) > 2:
                yield torch.cat([held[:-2], held[1:-1], held[2:]], dim=1)
                held = held[-2:]
        if held is not None:
            yield torch.cat([held[-2:-1], held[-1:], held[-1:]], dim=1)

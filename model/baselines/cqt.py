"""The constant-Q transform of MERT's musical teacher as a baseline."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mert_foundry.model.baselines.stream_model import StreamModel
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.teachers.spectra.multirate_cqt import MultirateCqt

LOWEST_FREQUENCY, BINS, BINS_PER_OCTAVE = 32.7, 336, 48  # Hz, of MERT's teacher (arXiv 2306.00107, section 3.2)
LEAST_MAGNITUDE = 1e-5  # -100 dB
CHUNK_FRAMES = 750


class CqtBaseline(StreamModel):
    """Decibels of the 336 magnitudes of the CQT teacher, none below -100."""

    def __init__(self, device: torch.device, layers: Sequence[int] | None = None):
        self.transform = MultirateCqt(SAMPLE_RATE, HOP, LOWEST_FREQUENCY, BINS, BINS_PER_OCTAVE).to(device)
        settings: dict[str, object] = {
            "feature": "cqt",
            "size": BINS,
            "sample_rate": SAMPLE_RATE,
            "hop": HOP,
            "lowest_frequency": LOWEST_FREQUENCY,
            "bins_per_octave": BINS_PER_OCTAVE,
            "least_magnitude": LEAST_MAGNITUDE,
            "transform": "multirate 1",
        }
        super().__init__("cqt", settings, BINS, layers)

    def frames(self, samples: Tensor) -> Tensor:
        magnitudes = torch.cat(list(self.transform.stream([samples.cpu().numpy()], CHUNK_FRAMES)))
        return 20 * torch.log10(magnitudes.clamp_min(LEAST_MAGNITUDE))

"""Mel-frequency cepstral coefficients: the classic description of timbre."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchaudio.transforms import MFCC

from mert_foundry.model.baselines.stream_model import StreamModel
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE

COEFFICIENTS, BANDS, WINDOW_LENGTH = 20, 128, 2048


class MfccBaseline(StreamModel):
    """The first 20 coefficients of torchaudio's MFCC of 128 mel bands; silence counts before and after the audio."""

    def __init__(self, device: torch.device, layers: Sequence[int] | None = None):
        spectrum = {"n_fft": WINDOW_LENGTH, "hop_length": HOP, "n_mels": BANDS, "pad_mode": "constant"}
        self.transform = MFCC(SAMPLE_RATE, COEFFICIENTS, melkwargs=spectrum).to(device)
        # torchaudio's default limits values relative to the loudest one of its input, so a frame would depend on its
        # window.
        self.transform.amplitude_to_DB.top_db = None
        self.device = device
        settings: dict[str, object] = {
            "feature": "mfcc",
            "size": COEFFICIENTS,
            "sample_rate": SAMPLE_RATE,
            "bands": BANDS,
            "hop": HOP,
            "window_length": WINDOW_LENGTH,
        }
        super().__init__("mfcc", settings, COEFFICIENTS, layers)

    def frames(self, samples: Tensor) -> Tensor:
        # Frame i is centred on sample 320 i; the frame after the last hop is dropped, as in every spectrum here.
        coefficients: Tensor = self.transform(samples.to(self.device))
        return coefficients.T[: len(samples) // HOP]

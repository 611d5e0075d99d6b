"""How good a codec is: distances between audio and what comes back from its codes."""

import numpy as np
import torch
from encodec.model import EncodecModel
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.frames import SAMPLE_RATE

EVALUATION_SECONDS = 10
# Added to mel magnitudes before the logarithm, so that near-silent bands do not rule the error.
MEL_FLOOR = 1e-2
MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples


class MelError(nn.Module):
    """Mean over scales of |S - S'| + root mean square of S - S', S the log mel spectrum (windows of 64 to 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(
            MelSpectrogram(
                SAMPLE_RATE, n_fft=window, hop_length=window // 4, n_mels=min(64, window // 8), power=1, normalized=True
            )
            for window in MEL_WINDOWS
        )

    def forward(self, audio: Tensor, decoded: Tensor) -> Tensor:
        """Both `[B, 1, T]`; returns a scalar."""
        errors = []
        for spectrum in self.spectra:
            difference = _log(spectrum(audio)) - _log(spectrum(decoded))
            errors.append(difference.abs().mean() + difference.pow(2).mean().sqrt())
        return torch.stack(errors).mean()


@torch.no_grad()
def evaluate_codec(model: EncodecModel, tracks: list[np.ndarray]) -> dict:
    """Reconstruction and codebook use on held-out int16 tracks `[T]`, in pieces of 10 seconds.

    Returns `si_sdr` (dB, mean over pieces with sound), `log_mel_distance` (mean |difference| of natural-log mel
    spectra, window 1024), and per level `usage` (entries seen) and `perplexity` of the codes.

    Raises ValueError when no track has such a piece with sound.
    """
    was_training = model.training
    model.eval()
    length = EVALUATION_SECONDS * SAMPLE_RATE
    spectrum = MelSpectrogram(SAMPLE_RATE, n_fft=1024, hop_length=256, n_mels=64, power=1, normalized=True)
    counts = torch.zeros(model.quantizer.n_q, model.quantizer.bins)
    ratios, distances = [], []
    for track in tracks:
        for start in range(0, len(track) - length + 1, length):
            audio = torch.from_numpy(to_float(track[start : start + length]))[None, None]
            codes = model.quantizer.encode(model.encoder(audio), model.frame_rate)
            decoded = model.decoder(model.quantizer.decode(codes))[..., :length]
            for level in range(len(codes)):
                counts[level] += torch.bincount(codes[level].reshape(-1), minlength=model.quantizer.bins)
            if audio.abs().max() > 1e-3:
                ratios.append(si_sdr(audio, decoded).item())
                distances.append((_log(spectrum(audio)) - _log(spectrum(decoded))).abs().mean().item())
    model.train(was_training)
    if not ratios:
        raise ValueError(f"none of {len(tracks)} held-out tracks has {EVALUATION_SECONDS} s with sound to evaluate on")
    probabilities = counts / counts.sum(1, keepdim=True)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1)
    return {
        "seconds": EVALUATION_SECONDS * len(ratios),
        "si_sdr": round(float(np.mean(ratios)), 3),
        "log_mel_distance": round(float(np.mean(distances)), 4),
        "usage": (counts > 0).sum(1).tolist(),
        "perplexity": [round(value, 1) for value in entropy.exp().tolist()],
    }


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508)."""
    reference = reference - reference.mean()
    estimate = estimate - estimate.mean()
    target = (estimate * reference).sum() / reference.pow(2).sum() * reference
    return 10 * torch.log10(target.pow(2).sum() / (estimate - target).pow(2).sum().clamp_min(1e-12))


def _log(spectrum: Tensor) -> Tensor:
    return (spectrum + MEL_FLOOR).log()

"""Short-time power spectra of a track as a stream: one frame every hop, in the memory of one chunk."""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mert_foundry.pipeline.audio.blocks import fixed_blocks
from mert_foundry.pipeline.frames import HOP

CHUNK_FRAMES = 750


def power_spectra(blocks: Iterable[np.ndarray], window_length: int, device: torch.device) -> Iterator[Tensor]:
    """Squared magnitudes of the Fourier transform under a Hann window, silence before and after the track.

    Args:
        blocks: as `pipeline.teacher.Teacher.label` takes them.
        window_length: samples, even, at least twice the hop (320).

    Yields:
        float32 `[f, window_length // 2 + 1]` for consecutive frames; frame i is centred on sample 320 i. Where the
        chunks lie depends on the track alone, so the values do not depend on where the blocks are cut.
    """
    window = torch.hann_window(window_length, device=device)
    before = np.zeros(window_length // 2, np.float32)
    after = np.zeros(window_length // 2 - HOP, np.float32)
    held = np.zeros(0, np.float32)
    for block in fixed_blocks(chain([before], blocks, [after]), CHUNK_FRAMES * HOP):
        held = np.concatenate([held, block])
        frames = (len(held) - window_length) // HOP + 1
        if frames > 0:
            audio = torch.from_numpy(held).to(device)
            spectrum = torch.stft(audio, window_length, HOP, window=window, center=False, return_complex=True)
            yield spectrum.abs().square().T
            held = held[frames * HOP :]

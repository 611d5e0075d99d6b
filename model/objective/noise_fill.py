"""Masked stretches of the wave replaced by noise, as MuQ masks its input (arXiv 2501.01108).

Frame i of a hop of h samples owns samples [i h, (i + 1) h). A front-end whose window is longer than its hop therefore
sees some noise in the frames beside a span too, and some music at the edges within one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mert_foundry.model.objective.seeding import derive_seed

NOISE_DEVIATION = 0.1  # MuQ's, of full scale


def fill_with_noise(audio: Tensor, noised: Tensor, hop: int, seed: int, step: int, keys: Sequence[str]) -> Tensor:
    """Audio [B, T] with the samples of frames in `noised` [B, F] bool, on the CPU, drawn from N(0, 0.1^2); the rest as
    it was.

    Each row's noise is a pure function of (seed, step, key) and its mask, drawn on the CPU: so it does not depend on
    the device, on the number of ranks, or on how a batch is split.
    """
    frames = noised.numpy()
    drawn = np.zeros((*frames.shape, hop), np.float32)
    for row, key in enumerate(keys):
        generator = np.random.default_rng(derive_seed(seed, step, "mask_noise", key))
        noise = generator.standard_normal((frames[row].sum(), hop), dtype=np.float32)
        drawn[row, frames[row]] = noise * np.float32(NOISE_DEVIATION)
    filled = audio.clone()
    covered = min(frames.shape[1] * hop, audio.shape[1])
    stretch = torch.from_numpy(drawn).flatten(1)[:, :covered].to(audio.device, audio.dtype)
    samples = noised.repeat_interleave(hop, dim=1)[:, :covered].to(audio.device)
    filled[:, :covered] = torch.where(samples, stretch, audio[:, :covered])
    return filled

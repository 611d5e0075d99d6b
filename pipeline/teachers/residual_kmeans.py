"""Features to residual codes: principal components of standardised features, then codebooks one after another."""

import numpy as np
import torch
from torch import Tensor

from mert_foundry.pipeline.teachers.codec.quantizer import ResidualQuantizer


class ResidualKmeans:
    """Codes of features, by weights that `mert fit` wrote.

    Args:
        weights: float32 `mean` and `deviation` `[size]`, `projection` `[size, dimensions]`, `codebooks`
            `[levels, entries, dimensions]`.
    """

    def __init__(self, weights: dict[str, np.ndarray], device: torch.device):
        on_device = {name: torch.from_numpy(array).to(device) for name, array in weights.items()}
        self.mean = on_device["mean"]
        self.projection = on_device["projection"] / on_device["deviation"][:, None]
        self.quantizer = ResidualQuantizer(on_device["codebooks"])

    @torch.inference_mode()
    def encode(self, features: Tensor) -> Tensor:
        """Features `[frames, size]` to codes, int64 `[levels, frames]`."""
        return self.quantizer.encode((features - self.mean) @ self.projection)


def weight_shapes(size: int, dimensions: int, levels: int, entries: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights, by name."""
    return {
        "mean": (size,),
        "deviation": (size,),
        "projection": (size, dimensions),
        "codebooks": (levels, entries, dimensions),
    }

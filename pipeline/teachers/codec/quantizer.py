"""Residual vector quantisation (Zeghidour et al. 2021, arXiv 2107.03312): one matrix product a codebook."""

import torch
from torch import Tensor


class ResidualQuantizer:
    """Codes of latents, the nearest entry of one codebook after another.

    Args:
        codebooks: fp32 `[levels, entries, dimension]`.
    """

    def __init__(self, codebooks: Tensor):
        self.codebooks = codebooks.contiguous()
        # |x - e|^2 is least where x.e - |e|^2 / 2 is greatest.
        self.transposed = codebooks.transpose(1, 2).contiguous()
        self.half_norms = -codebooks.pow(2).sum(dim=2) / 2

    @torch.inference_mode()
    def encode(self, latents: Tensor) -> Tensor:
        """int64 `[levels, ..., frames]` of latents `[..., frames, dimension]`."""
        residual = latents.flatten(0, -2).contiguous()
        codes = []
        for entries, transposed, half_norms in zip(self.codebooks, self.transposed, self.half_norms, strict=True):
            nearest = torch.addmm(half_norms, residual, transposed).argmax(dim=1)
            residual = residual - entries[nearest]
            codes.append(nearest)
        return torch.stack(codes).unflatten(1, latents.shape[:-1])

"""How frames know their position: a convolution over them, or a rotation of queries and keys. Neither has buffers."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

ROTARY_BASE = 10_000.0  # the slowest pair of features turns once in 2 pi x this many frames, nearly


class PositionalConvolution(nn.Module):
    """Adds a grouped convolution over frames, weight-normed per kernel tap (arXiv 2006.11477): [B, F, D] -> [B, F, D]."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, hidden: Tensor) -> Tensor:
        # An even kernel padded by half on both sides gives one frame too many: the last is trimmed.
        position = self.conv(hidden.transpose(1, 2))[:, :, : hidden.shape[1]]
        return hidden + nn.functional.gelu(position).transpose(1, 2)


def rotate(heads: Tensor) -> Tensor:
    """RoPE (arXiv 2104.09864) on queries or keys [B, H, F, d], d even: same shape and dtype.

    Frame f turns the pair of features (i, i + d/2) by f * 10000^(-2i/d), so the product of a query and a key
    depends on their distance only. The angles are computed again at each call, in fp32: there is nothing to load,
    so no load path and no meta device can break them, and F has no limit.
    """
    half = heads.shape[3] // 2
    frames = torch.arange(heads.shape[2], device=heads.device, dtype=torch.float32)
    speeds = ROTARY_BASE ** (-torch.arange(half, device=heads.device, dtype=torch.float32) / half)
    angles = frames[:, None] * speeds
    cosine, sine = angles.cos(), angles.sin()
    first, second = heads.float().split(half, dim=3)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=3).to(heads.dtype)

"""How frames know their position: a convolution over them, or a rotation of queries and keys. Neither has buffers."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mert_foundry.model.autocast import without_autocast

CPU_KERNELS = 2  # kernels that the transform of a piece is long, on a CPU
ROTARY_BASE = 10_000.0  # the slowest pair of features turns once in 2 pi x this many frames, nearly


class PositionalConvolution(nn.Module):
    """Adds a grouped convolution over frames, weight-normed per kernel tap (arXiv 2006.11477): [B, F,
    D] -> [B, F, D].
    """

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, hidden: Tensor) -> Tensor:
        frames = hidden.transpose(1, 2)
        if hidden.is_cuda or not torch.is_grad_enabled():
            position = correlate_by_fft(frames, self.conv.weight, self.conv.bias)
        else:
            # An even kernel padded by half on both sides gives one frame too many: the last is trimmed.
            position = self.conv(frames)[:, :, : hidden.shape[1]]
        return hidden + nn.functional.gelu(position).transpose(1, 2)


def correlate_by_fft(signal: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `conv1d(signal, weight, bias, padding=K // 2, groups=D / C)` gives for its first F frames, computed in fp32,
    or with products in tf32 where these are allowed; in the dtype of `signal`.

    In bf16 cuDNN has no fast kernel for so long a kernel in groups: for 64 crops of 5 s at 95M, forward and backward
    take 25 ms of a step of 149 on an H100, this 3 (docs/measurements.md).

    Position f of a correlation is sum over k of weight[k] signal[f + k - K // 2]. With K // 2 zeros before the signal,
    the product of its spectrum and the conjugate of the kernel's gives these sums at f, circular with the length of the
    transform: F + K - 1 are enough for no sum to reach round the end. On a CPU a long signal is cut: the spectra of D *
    C kernels of its length would take longer than the signal's. Each piece holds the K - 1 samples that it shares with
    the next.

    Shape:
        signal [B, D, F], weight [D, C, K], bias [D] -> [B, D, F], D a multiple of C
    """
    width, channels, kernel = weight.shape
    frames = signal.shape[2]
    length = 1 << (frames + kernel - 2).bit_length()  # the least power of two that is no less than F + K - 1
    if not signal.is_cuda:
        length = min(length, 1 << (CPU_KERNELS * kernel - 1).bit_length())
    step = length - kernel + 1
    pieces = -(-frames // step)
    with without_autocast(signal.device):
        padded = nn.functional.pad(signal.float(), (kernel // 2, pieces * step + kernel - 1 - kernel // 2 - frames))
        spectrum = torch.fft.rfft(padded.unfold(2, length, step)).unflatten(1, (-1, channels))
        kernels = torch.fft.rfft(weight.float(), n=length).conj().unflatten(0, (width // channels, -1))
        product = torch.einsum("bgcnf,gdcf->bgdnf", spectrum, kernels).flatten(1, 2)
        summed = torch.fft.irfft(product, n=length)[..., :step].flatten(2)[:, :, :frames]
    return (summed if bias is None else summed + bias[:, None]).to(signal.dtype)


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

"""Constant-Q transform with the sample rate halved octave by octave: nnAudio's `CQT1992v2` at a fraction of its work.

nnAudio (Cheuk et al. 2020, https://github.com/KinWaiCheuk/nnAudio) multiplies the audio at its full rate with the
window of every bin, most of which are thousands of samples long. Here each bin is computed at a rate that fits it
(Schoerkhuber and Klapuri, "Constant-Q transform toolbox for music processing", 2010), so all windows are about
equally short, and the bins of one rate are matrix products of the framed signal. Unlike that toolbox, and unlike
nnAudio's `CQT2010v2`, every bin keeps the window that CQT1992v2 gives it at the full rate: only what lies far
outside a bin's band, and the rounding, differ.

The window of a bin of f Hz, l = ceil(Q * sample_rate / f) samples with Q = 1 / (2^(1 / bins_per_octave) - 1), at
offset t from the centre of its frame, in samples of the full rate (periodic Hann, L1 norm 1, times sqrt(l)):

    2 / sqrt(l) * (1/2 - 1/2 * cos(2 pi * (t + ceil(l / 2)) / l)) * exp(-2 pi i * f * t / sample_rate)

The audio counts as zero before its start and after its end.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mert_foundry.pipeline.audio.blocks import recut

# Half-band filter: 95 taps under a Kaiser window of 118 dB, flat up to 0.209 of the rate it halves.
HALF_FILTER = 47
KAISER_BETA = 12.0
PASS_BAND = 0.418  # of the halved rate
# A bin stays at a rate whose pass band reaches this many side lobes of its Hann window beyond it. They fall with
# the cube of their number, so what the filter takes from a bin there is below 1e-6 of a tone's own magnitude.
SIDE_LOBES = 75
FILTERED_TOGETHER = 48  # output samples of one row of the filter's matrix product
BINS_TOGETHER = 16  # neighbours whose windows are padded to the longest of them


class MultirateCqt(nn.Module):
    """Constant-Q magnitudes of audio with silence, or the neighbouring audio, of `context` samples on both sides.

    Args:
        sample_rate: Hz.
        hop: samples from frame to frame; the rate is halved at most as often as 2 divides it.
        lowest_frequency: centre of bin 0, Hz; bin k lies k / bins_per_octave octaves above.

    Raises:
        ValueError: an argument is not positive, or the highest bin is not below half the sample rate.
    """

    def __init__(self, sample_rate: int, hop: int, lowest_frequency: float, bins: int, bins_per_octave: int):
        super().__init__()
        if hop <= 0:
            raise ValueError(f"cqt: hop is {hop}, it must be above 0")
        frequencies, self.lengths = place_windows(sample_rate, lowest_frequency, bins, bins_per_octave)
        quality = _quality(bins_per_octave)
        self.hop = hop
        halvings = _halvings(frequencies / sample_rate, quality, most=(hop & -hop).bit_length() - 1)
        self.halve = _HalveRate()
        rates = [
            _Windows(frequencies[halvings == number] / sample_rate, self.lengths[halvings == number], 2**number)
            for number in range(int(halvings.max()) + 1)
        ]
        self.rates = nn.ModuleList(rates)
        self.context = 0
        for windows in reversed(rates):
            self.context = max(windows.half_window, 2 * self.context + HALF_FILTER + 1)

    @torch.inference_mode()
    def forward(self, audio: Tensor) -> Tensor:
        """Magnitudes, float32.

        Shape:
            audio `[context + frames * hop + context]` -> `[frames, bins]`; frame i is centred on sample
            `context + i * hop`.
        """
        frames = (len(audio) - 2 * self.context) // self.hop
        signal, start, magnitudes = audio, self.context, []  # start: the sample that frame 0 is centred on
        for number, windows in enumerate(self.rates):
            if number:
                signal = self.halve(signal[start % 2 :])
                start = start // 2 - (HALF_FILTER + 1) // 2
            magnitudes.append(windows(signal, start, self.hop >> number, frames))
        return torch.cat(magnitudes[::-1], dim=1)

    def stream(self, blocks: Iterable[np.ndarray], frames: int) -> Iterator[Tensor]:
        """Magnitudes of a whole track in chunks of `frames` frames, the last one shorter.

        Holds one chunk and its context, whatever the length of the track. The values do not depend on the sizes
        of the blocks, bit for bit.

        Shape:
            blocks: float32 `[n]`, any n -> `[frames, bins]`, together samples // hop frames.
        """
        silence = np.zeros(self.context, np.float32)
        device = self.halve.matrix.device
        overlap = np.zeros(0, np.float32)
        lengths = chain([2 * self.context + frames * self.hop], repeat(frames * self.hop))
        for piece in recut(chain([silence], blocks, [silence]), lengths):
            window = np.concatenate([overlap, piece])
            overlap = window[-2 * self.context :]
            if len(window) >= 2 * self.context + self.hop:
                yield self(torch.from_numpy(window).to(device))


def place_windows(sample_rate: int, lowest_frequency: float, bins: int, bins_per_octave: int) -> tuple[Tensor, Tensor]:
    """Centre frequencies (Hz, float64) and window lengths (samples, int64) of the bins, `[bins]` each.

    Raises:
        ValueError: an argument is not positive, or the highest bin is not below half the sample rate.
    """
    arguments = {
        "sample_rate": sample_rate,
        "lowest_frequency": lowest_frequency,
        "bins": bins,
        "bins_per_octave": bins_per_octave,
    }
    for name, value in arguments.items():
        if value <= 0:
            raise ValueError(f"cqt: {name} is {value}, it must be above 0")
    frequencies = lowest_frequency * 2 ** (torch.arange(bins, dtype=torch.float64) / bins_per_octave)
    if frequencies[-1] >= sample_rate / 2:
        raise ValueError(
            f"cqt: highest bin at {frequencies[-1]:.0f} Hz, half the sample rate is {sample_rate / 2:.0f} Hz"
        )
    return frequencies, torch.ceil(_quality(bins_per_octave) * sample_rate / frequencies).long()


def largest_magnitude(lengths: Tensor) -> float:
    """What no magnitude of audio within [-1, 1] exceeds: the largest L1 norm of windows of these lengths."""
    return math.sqrt(int(lengths[0]))


def _quality(bins_per_octave: int) -> float:
    return 1 / (2 ** (1 / bins_per_octave) - 1)


class _HalveRate(nn.Module):
    """Low-pass at a quarter of the rate and keep every other sample.

    Of a half-band filter's taps at even offsets only the centre one, 1/2, is not zero: the odd samples are filtered,
    as rows of a matrix product, and the even ones only halved.
    """

    matrix: Tensor

    def __init__(self):
        super().__init__()
        offsets = torch.arange(-HALF_FILTER, HALF_FILTER + 1, 2, dtype=torch.float64)
        kaiser = torch.signal.windows.kaiser(2 * HALF_FILTER + 1, beta=KAISER_BETA, dtype=torch.float64)[::2]
        taps = torch.sin(math.pi * offsets / 2) / (math.pi * offsets) * kaiser
        taps *= 0.5 / taps.sum()  # so that a constant stays what it is
        matrix = torch.zeros(FILTERED_TOGETHER + len(taps) - 1, FILTERED_TOGETHER)
        for column in range(FILTERED_TOGETHER):
            matrix[column : column + len(taps), column] = taps
        self.taps = len(taps)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, signal: Tensor) -> Tensor:
        """`[n]` -> `[n // 2 - HALF_FILTER]`; output 0 is centred on sample HALF_FILTER + 1, an even one."""
        even, odd = signal[: len(signal) // 2 * 2].view(-1, 2).unbind(dim=1)
        count = len(odd) - self.taps + 1
        missing = -count % FILTERED_TOGETHER
        rows = functional.pad(odd, (0, missing)).unfold(0, len(self.matrix), FILTERED_TOGETHER)
        filtered = (rows @ self.matrix).flatten()[:count]
        first = (HALF_FILTER + 1) // 2
        return filtered + even[first : first + count] / 2


class _Windows(nn.Module):
    """The windows of the bins of one rate: the full rate divided by `step`; there may be none.

    Args:
        frequencies: cycles per full-rate sample, `[bins]`.
        lengths: full-rate samples, `[bins]`, falling.
    """

    def __init__(self, frequencies: Tensor, lengths: Tensor, step: int):
        super().__init__()
        self.half_window = _half_window(lengths, step)
        groups = zip(frequencies.split(BINS_TOGETHER), lengths.split(BINS_TOGETHER), strict=True)
        self.kernels = nn.ParameterList(
            nn.Parameter(_kernel(*group, step), requires_grad=False) for group in groups if len(group[0])
        )

    def forward(self, signal: Tensor, start: int, hop: int, frames: int) -> Tensor:
        """`[n]` -> magnitudes `[frames, bins]`; frame i is centred on sample `start + i * hop`."""
        magnitudes = [signal.new_empty(frames, 0)]
        framed = signal[start - self.half_window :].unfold(0, 2 * self.half_window + 1, hop)[:frames].contiguous()
        for kernel in self.kernels:
            margin = self.half_window - len(kernel) // 2
            real, imaginary = (framed[:, margin : margin + len(kernel)] @ kernel).chunk(2, dim=1)
            magnitudes.append((real.square() + imaginary.square()).sqrt())
        return torch.cat(magnitudes, dim=1)


def _halvings(frequencies: Tensor, quality: float, most: int) -> Tensor:
    """How often the rate is halved for bins of these frequencies, in cycles per full-rate sample."""
    lowest_rates = frequencies * (1 + SIDE_LOBES / quality) / PASS_BAND  # of the full rate
    return torch.floor(-torch.log2(lowest_rates)).clamp(0, most).long()


def _half_window(lengths: Tensor, step: int) -> int:
    """Samples of the divided rate on either side of the centre that windows of these full-rate lengths cover."""
    return math.ceil(int(lengths.max()) / 2 / step) if len(lengths) else 0


def _kernel(frequencies: Tensor, lengths: Tensor, step: int) -> Tensor:
    """Real and imaginary parts of the windows, side by side: float32 `[2 * half + 1, 2 * bins]`, made in float64."""
    half = _half_window(lengths, step)
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)[:, None] * step
    position = offsets + (lengths + 1) // 2
    inside = (position >= 0) & (position < lengths)
    window = torch.where(inside, 0.5 - 0.5 * torch.cos(2 * math.pi * position / lengths), 0) * 2 * step / lengths.sqrt()
    phase = 2 * math.pi * frequencies * offsets
    return torch.cat([window * phase.cos(), -window * phase.sin()], dim=1).float()

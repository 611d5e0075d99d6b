"""Blocks of audio at any rate to 16 bits, mono, at 24 kHz: the same bits on a CPU and on a GPU.

The filters are torchaudio's default windowed-sinc ones (J. O. Smith, https://ccrma.stanford.edu/~jos/resample/), which
EnCodec's own `convert_audio` applies. They are mostly zeros (24 of 171 taps at 44.1 kHz matter), so the outputs are
computed in bands, each a matrix product over the inputs that it needs.

The products are exact: with samples a multiple of 2^-23 and at most 4.0, and taps a multiple of 2^-26, every sum is a
multiple of 2^-49 that float64 holds. So neither the order of summation, nor the library, nor the cutting into blocks
changes anything. Rounding samples of up to 1.0 and taps in this way changes the result by less than 1e-6. (Samples
above 4.0, as of a float file that holds integers, are resampled to the rounding error of float64.)
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from mert_foundry.pipeline.audio.blocks import fixed_blocks, to_int16
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE, nearest_rate, resampled_length, whole_frames

BLOCK_SECONDS = 5
SAMPLE_STEPS = 2.0**23  # in 1.0: the resolution of 24-bit files
# In 1.0. With samples up to 4.0, and taps whose magnitudes sum to less than 4, a sum stays within the 53 bits of
# float64.
TAP_STEPS = 2.0**26
BAND = 24  # outputs of one matrix product, about


class Resampler:
    """What `torchaudio.transforms.Resample` gives for float32 samples, to 1e-6 of full scale, in exact arithmetic.

    Args:
        source_rate, target_rate: Hz, different.
    """

    def __init__(self, source_rate: int, target_rate: int, device: torch.device):
        self.rates = source_rate, target_rate
        self.device = device
        # A stream of its own: in the default one a block would wait for all work of the teachers.
        self.queue = torch.cuda.Stream(device) if device.type == "cuda" else None
        # As in `convert_audio`: `torchaudio.functional.resample` makes other filters, at odd rates by up to 2e-4.
        published = Resample(source_rate, target_rate)
        taps = (published.kernel[:, 0] * TAP_STEPS).round()
        phases, period = len(taps), taps.shape[1] - 2 * published.width
        self.left_context = published.width  # samples before that of output 0
        # A row of outputs, and the samples from row to row.
        repeats = -(-BAND // phases)
        self.row, self.stride = repeats * phases, repeats * period
        self.receptive_field = (
            self.stride - period + taps.shape[1]
        )  # samples of a row, from `left_context` before its first
        self.bands = list(self._bands(taps, period))

    def __call__(self, samples: Tensor) -> Tensor:
        """All whole rows of outputs that samples have.

        Shape:
            float32 `[receptive_field + (rows - 1) * stride]`, or up to stride - 1 more, on the device -> float64 `[rows
            * row]`.
        """
        steps = (samples * SAMPLE_STEPS).round_().double()
        rows = (len(steps) - self.receptive_field) // self.stride + 1
        outputs = torch.cat([self._products(steps[first:], weights, rows) for first, weights in self.bands])
        return outputs.T.flatten() / (SAMPLE_STEPS * TAP_STEPS)

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """A whole signal from mono float32 blocks `[n]`, any n: ceil(target_rate * N / source_rate) float64 samples."""
        length = -(-BLOCK_SECONDS * self.rates[0] // self.stride) * self.stride
        window, fed, given = np.zeros(self.left_context, np.float32), 0, 0
        for block in fixed_blocks(blocks, length):
            fed += len(block)
            window = np.concatenate([window, block])
            if len(window) >= self.receptive_field:
                outputs = self._outputs(window)
                window = window[len(outputs) // self.row * self.stride :]
                given += len(outputs)
                yield outputs
        if fed:
            window = np.concatenate([window, np.zeros(self.receptive_field, np.float32)])
            yield self._outputs(window)[: resampled_length(fed, *self.rates) - given]

    def _outputs(self, window: np.ndarray) -> np.ndarray:
        with torch.cuda.stream(self.queue):
            return self(torch.from_numpy(window).to(self.device)).cpu().numpy()

    def _bands(self, taps: Tensor, period: int) -> Iterator[tuple[int, Tensor]]:
        """For each band of a row's outputs the first sample it needs, and float64 weights `[outputs, samples]`."""
        wide = torch.zeros(self.row, self.receptive_field)
        for repeat, rows in enumerate(wide.split(len(taps))):
            rows[:, repeat * period :][:, : taps.shape[1]] = taps
        for band in wide.tensor_split(max(1, self.row // BAND)):
            needed = band.any(dim=0).nonzero()
            first, last = int(needed[0]), int(needed[-1])
            yield first, band[:, first : last + 1].double().to(self.device)

    def _products(self, steps: Tensor, weights: Tensor, rows: int) -> Tensor:
        """`[outputs, rows]`; in parts, where the samples of neighbouring rows would overlap: BLAS would copy them."""
        return sum(
            part @ steps[number * self.stride :].unfold(0, part.shape[1], self.stride)[:rows].T
            for number, part in enumerate(weights.split(self.stride, dim=1))
        )


_making = Lock()
_made = lru_cache(maxsize=32)(Resampler)


def _resampler(source_rate: int, target_rate: int, device: torch.device) -> Resampler:
    """One for all tracks of a rate, shared by threads: at odd rates its filters take seconds and much memory."""
    with _making:
        return _made(source_rate, target_rate, device)


def to_mono(block: np.ndarray) -> np.ndarray:
    """Average the channels of `[C, n]`, float32; returns `[n]`. This is what `convert_audio` does for a mono model."""
    # Channel by channel: NumPy's mean over so short an axis is many times slower.
    return sum(block[1:], start=block[0]) / np.float32(len(block))


def resample_to_int16(
    blocks: Iterable[np.ndarray], source_rate: int, target_rate: int = SAMPLE_RATE, device: str = "cpu"
) -> Iterator[np.ndarray]:
    """Decoded float32 blocks `[C, n]` of a track, of any sizes, to int16 blocks `[n]`, mono. See `mono_to_int16`."""
    return mono_to_int16(map(to_mono, blocks), source_rate, target_rate, device)


def mono_to_int16(
    mono: Iterable[np.ndarray], source_rate: int, target_rate: int = SAMPLE_RATE, device: str = "cpu"
) -> Iterator[np.ndarray]:
    """The mono mix of a track, float32 blocks `[n]` of any sizes, to int16 blocks `[n]` at the target rate.

    Rounded to 16 bits because that is what the shard stores: teachers label the very samples that
    training will see.
    """
    rate = nearest_rate(source_rate, target_rate)
    if rate != target_rate:
        mono = _resampler(rate, target_rate, torch.device(device)).stream(mono)
    return map(to_int16, mono)


def decoded_track(blocks: Iterable[np.ndarray], source_rate: int) -> np.ndarray:
    """Decoded blocks `[C, n]` of a whole track to int16 `[T]` in memory, 24 kHz mono, T a multiple of the hop (320)."""
    audio = np.concatenate([np.zeros(0, np.int16), *resample_to_int16(blocks, source_rate)])
    return audio[: whole_frames(len(audio)) * HOP]

"""The EnCodec encoder over a stream of audio: weight norm folded, windows that stay in cache, state carried.

The network is that of the `encodec` package (Défossez et al. 2022, arXiv 2210.13438): causal convolutions that
pad by reflection, LSTM layers with a skip connection, one last convolution. Reflection matters only at the start
of a track. So the first few frames go through the package's own modules, and all that follows goes, without any
padding, through windows of one length, each with the samples before it that its convolutions reach back to. The
LSTM hands on its hidden state, the last convolution its last inputs. Memory is that of one chunk a lane, every array has
one shape whatever the lengths of the tracks, and the latents are those of the whole track. On a GPU several tracks
share a batch, see `LANES`.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from encodec.modules import SConv1d, SEANetEncoder
from encodec.modules.seanet import SEANetResnetBlock
from torch import Tensor, nn

from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.teachers.codec.track_batching import Piece, pieces_by_lane

Precision = Literal["fp32", "tf32", "bf16"]
Backend = Literal["torch", "openvino"]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

# Frames (1/75 s) that go through the LSTM in one call, which packs its weights once a call.
CHUNK_FRAMES = 300
# Of these a window of the convolutions. Measured on a CPU: one second of activations still fits the cache.
WINDOW_FRAMES = {"cpu": 75, "cuda": CHUNK_FRAMES}
# Tracks side by side. Measured on a CPU: four make the LSTM 2.2 times faster, one alone among four makes it 1.8 times
# slower. Not measured yet: a GPU should take about as long for many as for one, since the LSTM's steps are small and
# must follow each other.
LANES = {"cpu": 1, "cuda": 16}


class EncodecEncoder:
    """Latents of whole tracks, from blocks of audio.

    Args:
        encoder: the package's encoder with its weights; its weight norm is folded in place.
        precision: of the convolutions and the LSTM; the last convolution, and those of the first frames, stay in fp32.
            tf32 is fp32 with products of 10-bit mantissas, which a GPU alone computes.
        backend: what runs the convolutions; all the rest runs in torch.

    Raises:
        ValueError: the backend is not installed, or cannot do what is asked for.
    """

    def __init__(
        self, encoder: SEANetEncoder, device: torch.device, precision: Precision = "fp32", backend: Backend = "torch"
    ):
        if backend == "openvino" and (device.type != "cpu" or precision == "tf32"):
            raise ValueError(
                f"backend openvino runs on the CPU in fp32 or bf16, the device is {device} and the precision {precision}:"
                " choose backend torch"
            )
        self.device, self.precision = device, precision
        fold_weight_norm(encoder.to(device))
        layers = list(encoder.model)
        recurrent = next(index for index, layer in enumerate(layers) if hasattr(layer, "lstm"))
        self.padded_convolutions = nn.Sequential(*layers[:recurrent])
        self.dtype = DTYPES[precision]
        self.lstm, self.skip = layers[recurrent].lstm.to(self.dtype), layers[recurrent].skip
        self.padded_head = nn.Sequential(*layers[recurrent + 1 :])
        self.head = without_padding(self.padded_head)
        self.context = samples_reached_back(self.padded_convolutions)
        self.head_context = samples_reached_back(self.padded_head)
        # After so many frames nothing sees the start of the track any more.
        self.start_frames = max(self.context // HOP, self.head_context) + 1
        self.lanes, self.window_frames = LANES[device.type], WINDOW_FRAMES[device.type]
        self._convolve, self.backend = self._backend(precision, backend)

    @torch.inference_mode()
    def latents(self, tracks: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[Tensor, dict[int, Piece]]]:
        """Latents of tracks, chunk by chunk, each track's in order.

        As many tracks as there are lanes advance together. Every batch has the same shape whatever the lanes hold, so
        the latents of a track do not depend on the tracks beside it.

        Args:
            tracks: of each, float32 blocks `[n]`, 24 kHz mono, together a whole number of frames of 320 samples,
                at least one.

        Yields:
            fp32 `[lanes, rows, dimension]`, and by lane the piece that its first rows belong to, a row a frame; other
            lanes hold nothing. The start of a track comes alone, in a batch of one.

        Raises:
            ValueError: the precision is tf32, and the device no GPU.
        """
        # Not when it is made: a teacher is also made on a CPU for its specification alone.
        if self.precision == "tf32" and self.device.type != "cuda":
            raise ValueError(f"precision tf32 needs a GPU (device cuda), the device is {self.device}")
        lanes = pieces_by_lane(tracks, self.lanes, self.start_frames * HOP, CHUNK_FRAMES * HOP)
        # Of each lane the samples before its chunk, then the chunk. Where a track has ended the rest is anything.
        samples = np.zeros((self.lanes, self.context + CHUNK_FRAMES * HOP), np.float32)
        tail = torch.zeros(self.lanes, self.lstm.hidden_size, self.head_context, device=self.device)
        shape = (self.lstm.num_layers, self.lanes, self.lstm.hidden_size)
        state = tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        while True:
            chunk: dict[int, Piece] = {}
            for lane, pieces in enumerate(lanes):
                for piece in pieces:
                    if not piece.first:
                        samples[lane, self.context :][: len(piece.samples)] = piece.samples
                        chunk[lane] = piece
                        break
                    features, started = self._recur(self.padded_convolutions(self._tensor(piece.samples[None])), None)
                    yield self.padded_head(features).transpose(1, 2), {0: piece}
                    if not piece.last:
                        samples[lane, : self.context] = piece.samples[-self.context :]
                        tail[lane] = features[0, :, -self.head_context :]
                        for whole, of_lane in zip(state, started, strict=True):
                            whole[:, lane] = of_lane[:, 0]
            if not chunk:
                return
            longest = max(len(piece.samples) for piece in chunk.values())
            features, state = self._recur(self._windows(samples, longest), state)
            features = torch.cat([tail, features], dim=2)
            yield self.head(features).transpose(1, 2), chunk
            samples[:, : self.context] = samples[:, -self.context :]
            tail = features[..., -self.head_context :]

    def _windows(self, samples: np.ndarray, longest: int) -> Tensor:
        """Features `[lanes, channels, CHUNK_FRAMES]` of chunks and the context before them, computed as far as `longest`."""
        step = self.window_frames * HOP
        windows = [
            self._convolve(self._tensor(samples[:, start : start + self.context + step]))
            for start in range(0, longest, step)
        ]
        features = torch.cat(windows, dim=2)
        return nn.functional.pad(features, (0, CHUNK_FRAMES - features.shape[-1]))

    def _recur(self, features: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sequence = features.permute(2, 0, 1).contiguous()
        with tf32_allowed(self.precision):
            output, state = self.lstm(sequence.to(self.dtype), state)
        if self.skip:
            output = output + sequence
        return output.float().permute(1, 2, 0), state

    def _tensor(self, samples: np.ndarray) -> Tensor:
        """`[lanes, n]` -> `[lanes, 1, n]` on the device"""
        return torch.from_numpy(samples)[:, None].to(self.device)

    def _backend(self, precision: Precision, backend: Backend) -> tuple[Callable[[Tensor], Tensor], str]:
        """What maps samples `[lanes, 1, n]` to features, and what it is, for the record."""
        network = without_padding(self.padded_convolutions)
        if backend == "torch":
            return TorchConvolutions(network, precision), f"torch {torch.__version__} {precision}"
        try:
            from mert_foundry.pipeline.teachers.codec.openvino_backend import VERSION, OpenvinoConvolutions
        except ModuleNotFoundError as error:
            raise ValueError(
                f"backend openvino: {error}; pip install 'mert-foundry[openvino]' or choose torch"
            ) from error
        window_samples = self.context + self.window_frames * HOP
        return OpenvinoConvolutions(network, self.lanes, window_samples, precision), f"openvino {VERSION} {precision}"


class TorchConvolutions:
    """The convolutions in torch: samples fp32 `[lanes, 1, n]` to features fp32 `[lanes, channels, frames]`."""

    def __init__(self, network: nn.Sequential, precision: Precision):
        self.dtype, self.precision = DTYPES[precision], precision
        self.network = copy.deepcopy(network).to(self.dtype)  # the padded layers, which share the weights, stay in fp32

    def __call__(self, samples: Tensor) -> Tensor:
        with tf32_allowed(self.precision):
            return self.network(samples.to(self.dtype)).float()


@contextmanager
def tf32_allowed(precision: Precision) -> Iterator[None]:
    """Within it cuDNN may round fp32 inputs to 10-bit mantissas if the precision is tf32, else not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Residual(nn.Module):
    """A residual block without padding: `branch` sees `reach` inputs before each of its outputs."""

    def __init__(self, shortcut: nn.Module, branch: nn.Sequential, reach: int):
        super().__init__()
        self.shortcut, self.branch, self.reach = shortcut, branch, reach

    def forward(self, inputs: Tensor) -> Tensor:
        return self.shortcut(inputs)[..., self.reach :] + self.branch(inputs)


def without_padding(layers: nn.Module) -> nn.Module:
    """The same layers on the same weights, of convolutions that do not pad."""
    if isinstance(layers, SConv1d):
        return layers.conv.conv
    if isinstance(layers, SEANetResnetBlock):
        return Residual(
            without_padding(layers.shortcut), without_padding(layers.block), samples_reached_back(layers.block)
        )
    if isinstance(layers, nn.Sequential):
        return nn.Sequential(*map(without_padding, layers))
    return layers


def samples_reached_back(layers: nn.Module) -> int:
    """How many input samples before a frame's own the causal convolutions of `layers` can see.

    Each convolution reaches (kernel - 1) * dilation - (stride - 1) of its own inputs back. The shortcut of a
    residual block has kernel 1 and reaches nothing, so the blocks' convolutions count as if they stood in line.
    """
    reach, jump = 0, 1
    for module in layers.modules():
        if isinstance(module, SConv1d):
            convolution = module.conv.conv
            stride = convolution.stride[0]
            reach += ((convolution.kernel_size[0] - 1) * convolution.dilation[0] - (stride - 1)) * jump
            jump *= stride
    return reach


def fold_weight_norm(encoder: nn.Module) -> None:
    """Replace each normalised weight by its value, which the package would compute anew in every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # encodec 0.1.1 uses the older weight norm
        for module in encoder.modules():
            if isinstance(module, nn.Conv1d) and hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)

"""The EnCodec encoder over a stream of audio: weight norm folded, windows that stay in cache, state carried.

The network is that of the `encodec` package (Défossez et al. 2022, arXiv 2210.13438): causal convolutions that
pad by reflection, LSTM layers with a skip connection, one last convolution. Reflection matters only at the start
of a track. So the first few frames go through the package's own modules, and all that follows goes, without any
padding, through windows of one length, each with the samples before it that its convolutions reach back to. The
LSTM hands on its hidden state, the last convolution its last inputs. Memory is that of one chunk, every array has
one shape whatever the length of the track, and the latents are those of the whole track.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Literal

import numpy as np
import torch
from encodec.modules import SConv1d, SEANetEncoder
from encodec.modules.seanet import SEANetResnetBlock
from torch import Tensor, nn

from pipeline.audio_blocks import recut
from pipeline.frames import HOP

Precision = Literal["fp32", "bf16"]
Backend = Literal["torch", "openvino"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Frames (1/75 s) a window of the convolutions, and of a chunk of windows for the LSTM. Measured: on a CPU one
# second of activations still fits the cache, and the LSTM packs its weights once a call.
CPU_WINDOW, CPU_CHUNK = 75, 300
CUDA_WINDOW = CUDA_CHUNK = 1500


class EncodecEncoder:
    """Latents of whole tracks, from blocks of audio.

    Args:
        encoder: the package's encoder with its weights; its weight norm is folded in place.
        precision: of the convolutions and the LSTM; the last convolution, and those of the first frames, stay in fp32.
        backend: what runs the convolutions; all the rest runs in torch.

    Raises:
        ValueError: the backend is not installed, or cannot do what is asked for.
    """

    def __init__(
        self, encoder: SEANetEncoder, device: torch.device, precision: Precision = "fp32", backend: Backend = "torch"
    ):
        if backend == "openvino" and device.type != "cpu":
            raise ValueError(f"backend openvino runs on the CPU, the device is {device}: choose backend torch")
        self.device = device
        fold_weight_norm(encoder.to(device))
        layers = list(encoder.model)
        recurrent = next(index for index, layer in enumerate(layers) if hasattr(layer, "lstm"))
        self.padded_convolutions = nn.Sequential(*layers[:recurrent])
        self.lstm, self.skip = layers[recurrent].lstm.to(DTYPES[precision]), layers[recurrent].skip
        self.padded_head = nn.Sequential(*layers[recurrent + 1 :])
        self.head = without_padding(self.padded_head)
        self.context = samples_reached_back(self.padded_convolutions)
        self.head_context = samples_reached_back(self.padded_head)
        # After so many frames nothing sees the start of the track any more.
        self.start_frames = max(self.context // HOP, self.head_context) + 1
        on_cpu = device.type == "cpu"
        self.window_frames, self.chunk_frames = (CPU_WINDOW, CPU_CHUNK) if on_cpu else (CUDA_WINDOW, CUDA_CHUNK)
        self._convolve, self.backend = self._backend(precision, backend)

    @torch.inference_mode()
    def latents(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, int]]:
        """Latents of a track, chunk by chunk, each with how many of its first rows belong to the track.

        Args:
            blocks: float32 `[n]`, 24 kHz mono, together a whole number of frames of 320 samples.

        Yields:
            fp32 `[rows, dimension]`, of one shape for all but a track's first chunk.
        """
        pieces = recut(blocks, chain([self.start_frames * HOP], repeat(self.chunk_frames * HOP)))
        start = next(pieces)
        features, state = self._recur(self.padded_convolutions(self._tensor(start)), None)
        yield self.padded_head(features)[0].T, features.shape[-1]
        before, tail = start[-self.context :], features[..., -self.head_context :]
        for piece in pieces:
            features, state = self._recur(self._windows(before, piece), state)
            features = torch.cat([tail, features], dim=2)
            yield self.head(features)[0].T, len(piece) // HOP
            before, tail = piece[-self.context :], features[..., -self.head_context :]

    def _windows(self, before: np.ndarray, piece: np.ndarray) -> Tensor:
        """Features `[1, channels, chunk_frames]` of a piece that may be shorter than a chunk, then zero after it."""
        samples = np.zeros(self.context + self.chunk_frames * HOP, np.float32)
        samples[: self.context + len(piece)] = np.concatenate([before, piece])
        step = self.window_frames * HOP
        windows = [
            self._convolve(self._tensor(samples[start : start + self.context + step]))
            for start in range(0, len(piece), step)
        ]
        features = torch.cat(windows, dim=2)
        return nn.functional.pad(features, (0, self.chunk_frames - features.shape[-1]))

    def _recur(self, features: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sequence = features.permute(2, 0, 1).contiguous()
        output, state = self.lstm(sequence.to(self.lstm.weight_ih_l0.dtype), state)
        if self.skip:
            output = output + sequence
        return output.float().permute(1, 2, 0), state

    def _tensor(self, samples: np.ndarray) -> Tensor:
        return torch.from_numpy(samples)[None, None].to(self.device)

    def _backend(self, precision: Precision, backend: Backend) -> tuple[Callable[[Tensor], Tensor], str]:
        """What maps samples `[1, 1, n]` to features, and what it is, for the record."""
        network = without_padding(self.padded_convolutions)
        if backend == "torch":
            return TorchConvolutions(network, precision), f"torch {torch.__version__} {precision}"
        try:
            from pipeline.openvino_convolutions import VERSION, OpenvinoConvolutions
        except ModuleNotFoundError as error:
            raise ValueError(f"backend openvino: {error}; pip install 'mert-foundry[openvino]' or choose torch") from error
        window_samples = self.context + self.window_frames * HOP
        return OpenvinoConvolutions(network, window_samples, precision), f"openvino {VERSION} {precision}"


class TorchConvolutions:
    """The convolutions in torch: samples fp32 `[1, 1, n]` to features fp32 `[1, channels, frames]`."""

    def __init__(self, network: nn.Sequential, precision: Precision):
        self.dtype = DTYPES[precision]
        self.network = copy.deepcopy(network).to(self.dtype)  # the padded layers, which share the weights, stay in fp32

    def __call__(self, samples: Tensor) -> Tensor:
        return self.network(samples.to(self.dtype)).float()


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
        return Residual(without_padding(layers.shortcut), without_padding(layers.block), samples_reached_back(layers.block))
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

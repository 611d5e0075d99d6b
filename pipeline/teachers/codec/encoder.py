"""The EnCodec encoder over a stream of audio: weight norm folded, windows that stay in cache, state carried.

The network is that of the `encodec` package (Défossez et al. 2022, arXiv 2210.13438): causal convolutions that
pad by reflection, LSTM layers with a skip connection, one last convolution. Reflection matters only at the start
of a track. So the first few frames go through the package's own modules, and all that follows goes, without any
padding, through windows of one length, each with the samples before it that its convolutions reach back to. The
LSTM hands on its hidden state, the last convolution its last inputs. Memory is that of one chunk a slot, every array
has one shape whatever the lengths of the tracks, and the latents are those of the whole track. On a GPU several tracks
share a batch, see `BATCH_SLOTS`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from encodec.modules import SLSTM, SEANetEncoder
from torch import Tensor, nn

from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.teachers.codec.track_batching import Piece, pieces_by_slot
from mert_foundry.pipeline.teachers.codec.unpadded_layers import fold_weight_norm, left_context, without_padding

Precision = Literal["fp32", "tf32", "bf16"]
Backend = Literal["torch", "openvino"]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

# Frames (1/75 s) that go through the LSTM in one call, which packs its weights once a call.
CHUNK_FRAMES = 300
# Of these a window of the convolutions. Measured on a CPU: one second of activations still fits the cache.
WINDOW_FRAMES = {"cpu": 75, "cuda": CHUNK_FRAMES}
# Tracks side by side. On a CPU four make the LSTM 2.2 times faster, but one alone among four makes it 1.8 times slower.
# On a GPU 64 are 1.2 times as fast as 16, with 3.7 times the memory, and few shards have 64 tracks
# (docs/measurements.md).
BATCH_SLOTS = {"cpu": 1, "cuda": 16}


class EncodecEncoder:
    """Latents of whole tracks, from blocks of audio.

    Args:
        encoder: the package's encoder with its weights; its weight norm is folded in place.
        precision: of the convolutions; the LSTM, the last convolution, and those of the first frames, stay in fp32.
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
                f"backend openvino runs on the CPU in fp32 or bf16, the device is {device} and the precision"
                f" {precision}: choose backend torch"
            )
        self.device, self.precision = device, precision
        fold_weight_norm(encoder.to(device))
        layers: list[nn.Module] = list(encoder.model)
        recurrent = next(index for index, layer in enumerate(layers) if isinstance(layer, SLSTM))
        self.padded_convolutions = nn.Sequential(*layers[:recurrent])
        block = layers[recurrent]
        assert isinstance(block, SLSTM)
        self.lstm, self.skip = block.lstm, block.skip
        self.padded_head = nn.Sequential(*layers[recurrent + 1 :])
        self.head = without_padding(self.padded_head)
        self.left_context = left_context(self.padded_convolutions)
        self.head_left_context = left_context(self.padded_head)
        # After so many frames nothing sees the start of the track any more.
        self.start_frames = max(self.left_context // HOP, self.head_left_context) + 1
        self.slots, self.window_frames = BATCH_SLOTS[device.type], WINDOW_FRAMES[device.type]
        self._convolve, self.backend = self._backend(precision, backend)

    @torch.inference_mode()
    def latents(self, tracks: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[Tensor, dict[int, Piece]]]:
        """Latents of tracks, chunk by chunk, each track's in order.

        As many tracks as there are slots advance together. Every batch has the same shape whatever the slots hold, so
        the latents of a track do not depend on the tracks beside it.

        Args:
            tracks: of each, float32 blocks `[n]`, 24 kHz mono, together a whole number of frames of 320 samples,
                at least one.

        Yields:
            fp32 `[slots, rows, dimension]`, and by slot the piece that its first rows belong to, a row a frame; other
            slots hold nothing. The start of a track comes alone, in a batch of one.

        Raises:
            ValueError: the precision is tf32, and the device no GPU.
        """
        # Not when it is made: a teacher is also made on a CPU for its specification alone.
        if self.precision == "tf32" and self.device.type != "cuda":
            raise ValueError(f"precision tf32 needs a GPU (device cuda), the device is {self.device}")
        slots = pieces_by_slot(tracks, self.slots, self.start_frames * HOP, CHUNK_FRAMES * HOP)
        carried = self._nothing_carried()
        while True:
            chunk: dict[int, Piece] = {}
            for slot, pieces in enumerate(slots):
                for piece in pieces:
                    if not piece.first:
                        carried.samples[slot, self.left_context :][: len(piece.samples)] = piece.samples
                        chunk[slot] = piece
                        break
                    yield self._start(piece, carried, slot), {0: piece}
            if not chunk:
                return
            yield self._advance(carried, longest=max(len(piece.samples) for piece in chunk.values())), chunk

    def _nothing_carried(self) -> "_Carried":
        shape = (self.lstm.num_layers, self.slots, self.lstm.hidden_size)
        hidden, cell = (torch.zeros(shape, device=self.device) for _ in range(2))
        return _Carried(
            samples=np.zeros((self.slots, self.left_context + CHUNK_FRAMES * HOP), np.float32),
            tail=torch.zeros(self.slots, self.lstm.hidden_size, self.head_left_context, device=self.device),
            state=(hidden, cell),
        )

    def _start(self, piece: Piece, carried: "_Carried", slot: int) -> Tensor:
        """Latents of the first piece of a track, and what its next one needs into the slot."""
        features, started = self._recur(self.padded_convolutions(self._tensor(piece.samples[None])), None)
        if not piece.last:
            carried.samples[slot, : self.left_context] = piece.samples[-self.left_context :]
            carried.tail[slot] = features[0, :, -self.head_left_context :]
            for whole, of_slot in zip(carried.state, started, strict=True):
                whole[:, slot] = of_slot[:, 0]
        return self.padded_head(features).transpose(1, 2)

    def _advance(self, carried: "_Carried", longest: int) -> Tensor:
        """Latents of a chunk in every slot, of which `longest` samples are wanted; what the next one
        needs stays there.
        """
        features, carried.state = self._recur(self._windows(carried.samples, longest), carried.state)
        features = torch.cat([carried.tail, features], dim=2)
        carried.samples[:, : self.left_context] = carried.samples[:, -self.left_context :]
        carried.tail = features[..., -self.head_left_context :]
        return self.head(features).transpose(1, 2)

    def _windows(self, samples: np.ndarray, longest: int) -> Tensor:
        """Features `[slots, channels, CHUNK_FRAMES]` of chunks and the context before them, computed as far as
        `longest`.
        """
        step = self.window_frames * HOP
        windows = [
            self._convolve(self._tensor(samples[:, start : start + self.left_context + step]))
            for start in range(0, longest, step)
        ]
        features = torch.cat(windows, dim=2)
        return nn.functional.pad(features, (0, CHUNK_FRAMES - features.shape[-1]))

    def _recur(self, features: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sequence = features.permute(2, 0, 1).contiguous()
        # In fp32 whatever the precision: its small steps gain nothing from less. On an H100, 16 slots take 7.4 ms, in
        # tf32 16.0 and in bf16 15.7 (docs/measurements.md).
        with tf32_allowed("fp32"):
            output, state = self.lstm(sequence, state)
        if self.skip:
            output = output + sequence
        return output.permute(1, 2, 0), state

    def _tensor(self, samples: np.ndarray) -> Tensor:
        """`[slots, n]` -> `[slots, 1, n]` on the device"""
        return torch.from_numpy(samples)[:, None].to(self.device)

    def _backend(self, precision: Precision, backend: Backend) -> tuple[Callable[[Tensor], Tensor], str]:
        """What maps samples `[slots, 1, n]` to features, and what it is, for the record."""
        network = without_padding(self.padded_convolutions)
        if backend == "torch":
            return TorchConvolutions(network, precision), f"torch {torch.__version__} {precision}"
        try:
            from mert_foundry.pipeline.teachers.codec.openvino_backend import VERSION, OpenvinoConvolutions
        except ModuleNotFoundError as error:
            raise ValueError(
                f"backend openvino: {error}; pip install 'mert-foundry[openvino]' or choose torch"
            ) from error
        window_samples = self.left_context + self.window_frames * HOP
        return OpenvinoConvolutions(network, self.slots, window_samples, precision), f"openvino {VERSION} {precision}"


@dataclass
class _Carried:
    """What goes from chunk to chunk, in every slot; where a track has ended, it is anything.

    samples: `[slots, left context + chunk]`, those before the chunk, then the chunk. tail: `[slots, channels, frames]`,
    the last inputs of the last convolution. state: hidden and cell state of the LSTM, `[layers, slots, channels]` each.
    """

    samples: np.ndarray
    tail: Tensor
    state: tuple[Tensor, Tensor]


class TorchConvolutions:
    """The convolutions in torch: samples fp32 `[slots, 1, n]` to features fp32 `[slots, channels, frames]`."""

    def __init__(self, network: nn.Module, precision: Precision):
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

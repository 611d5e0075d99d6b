"""A batch on its way to the device.

As the stream gives it (stored dtypes, CPU):  audio int16 or float32 [B, T]; discrete targets integer [B, K, F'];
continuous targets float or companded uint8 [B, F', bins], F' frames at the target's own frame rate; valid bool
[B, F] at 75 Hz; present/{target} bool [B, 1] of a partial target, the rows that have it; key list of B str; row int64
[B], index in the global batch. Of text alone there is no audio; its target `tokens` is what the encoder reads. With a
text memory also tokens int64 [B, n] and tokens_valid bool [B, n]. As the model takes it: audio float32 in [-1, 1),
codes int64, values float32, on the device.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.target_alignment import FRAME_RATE, align_valid, target_stride


def check_batch(batch: Mapping[str, Any], heads: Sequence[HeadSpec], num_frames: int, hop: int) -> None:
    """Refuse a batch the model cannot learn from, naming the key and both values (ValueError).

    `num_frames` is what an encoder of `hop` samples a frame returns for what it reads of the batch; targets may be
    longer, never shorter.
    """
    rows, target_frames = batch["valid"].shape
    enough = target_frames // target_stride("valid", FRAME_RATE, hop)
    if enough < num_frames:
        raise ValueError(f"targets have {enough} frames, fewer than the encoder's {num_frames}")
    filled = align_valid(batch["valid"], hop, num_frames).any(1)
    if not filled.all():
        raise ValueError(f"example {batch['key'][int((~filled).nonzero()[0])]} has no valid frame")
    for spec in heads:
        _check_target(batch[spec.name], spec, rows, target_frames * spec.frame_rate // FRAME_RATE, batch["key"])


def check_tokens(batch: Mapping[str, Any], vocabulary_size: int) -> None:
    """Refuse a batch whose tokens are not of this vocabulary, naming both values (ValueError)."""
    if "tokens" not in batch:
        raise ValueError("the model reads text, but the batch has no tokens")
    highest = int(batch["tokens"].max())
    if highest >= vocabulary_size:
        raise ValueError(f"the batch has token {highest}, the vocabulary {vocabulary_size}")


def _check_target(target: Tensor, spec: HeadSpec, rows: int, frames: int, keys: Sequence[str]) -> None:
    expected = [rows, spec.size, frames] if spec.kind == "discrete" else [rows, frames, spec.size]
    if list(target.shape) != expected:
        raise ValueError(f"target {spec.name} has shape {list(target.shape)}, expected {expected}")
    if spec.kind == "discrete":
        _check_codes(target.numpy(), spec, keys)
    elif (target.dtype == torch.uint8) != (spec.companding is not None):
        raise ValueError(f"target {spec.name} is stored as {target.dtype}, but its companding is {spec.companding!r}")


def _check_codes(codes: np.ndarray, spec: HeadSpec, keys: Sequence[str]) -> None:
    """numpy's two passes take a hundredth of the time of torch's while reading threads keep the cores busy."""
    assert spec.codebook_size is not None, "a discrete head has one"
    if codes.min() < 0 or codes.max() >= spec.codebook_size:
        wrong = (codes < 0) | (codes >= spec.codebook_size)
        row, code = int(wrong.nonzero()[0][0]), int(codes[wrong][0])
        raise ValueError(f"target {spec.name} of {keys[row]} has code {code}, codebook_size is {spec.codebook_size}")


def to_device(batch: Mapping[str, Any], heads: Sequence[HeadSpec], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch in their device form; stored dtypes travel, and are converted on the device."""
    moved = {name: copy_to(value, device) for name, value in batch.items() if isinstance(value, Tensor)}
    companded = {spec.name: spec.companding for spec in heads if spec.companding is not None}
    return {
        name: companded[name].expand(tensor) if name in companded else _convert(name, tensor)
        for name, tensor in moved.items()
    }


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device.

    On its way to a GPU it is pinned, so that the host does not wait for what the GPU does now.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _convert(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor
    if name == "audio" and tensor.dtype == torch.int16:
        return tensor.float() / 32768.0
    return tensor.float() if tensor.is_floating_point() else tensor.to(torch.int64)


def micro_batches(batch: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
    """Split a batch of B rows into `count` parts along its rows. Raises ValueError when B is below `count`."""
    rows = len(batch["valid"])
    if rows < count:
        raise ValueError(f"a batch of {rows} rows cannot be split into accumulation {count} parts")
    parts = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
    for i in range(count):
        yield {name: part[i] for name, part in parts.items()}

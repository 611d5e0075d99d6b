"""A batch on its way to the device.

As the stream gives it (stored dtypes, CPU):  audio int16 or float32 [B, T]; discrete targets integer [B, K, F];
continuous targets float [B, F, bins]; valid bool [B, F]; key list of B str; row int64 [B], index in the global batch.
As the model takes it: audio float32 in [-1, 1), codes int64, values float32, on the device.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model.heads import HeadSpec


def check_batch(batch: Mapping[str, Any], heads: Sequence[HeadSpec], num_frames: int) -> None:
    """Refuse a batch the model cannot learn from, naming the key and both values (ValueError).

    `num_frames` is what the encoder returns for the batch's audio; targets may be longer, never shorter.
    """
    rows, target_frames = batch["valid"].shape
    if target_frames < num_frames:
        raise ValueError(f"targets have {target_frames} frames, fewer than the encoder's {num_frames}")
    if not batch["valid"][:, :num_frames].any(1).all():
        empty = int((~batch["valid"][:, :num_frames].any(1)).nonzero()[0])
        raise ValueError(f"example {batch['key'][empty]} has no valid frame")
    for spec in heads:
        target = batch[spec.name]
        expected = [rows, spec.size, target_frames] if spec.kind == "discrete" else [rows, target_frames, spec.size]
        if list(target.shape) != expected:
            raise ValueError(f"target {spec.name} has shape {list(target.shape)}, expected {expected}")
        if spec.kind == "discrete":
            _check_codes(target.to(torch.int64), spec, batch["key"])


def _check_codes(codes: Tensor, spec: HeadSpec, keys: Sequence[str]) -> None:
    wrong = (codes < 0) | (codes >= spec.codebook_size)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        code = int(codes[wrong][0])
        raise ValueError(f"target {spec.name} of {keys[row]} has code {code}, codebook_size is {spec.codebook_size}")


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch in their device form; stored dtypes travel, and are converted on the device."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)}
    return {name: _convert(name, tensor) for name, tensor in moved.items()}


def _convert(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor
    if name == "audio" and tensor.dtype == torch.int16:
        return tensor.float() / 32768.0
    return tensor.float() if tensor.is_floating_point() else tensor.to(torch.int64)


def micro_batches(batch: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
    """Split a batch of B rows into `count` parts along its rows. Raises ValueError when B is below `count`."""
    rows = len(batch["audio"])
    if rows < count:
        raise ValueError(f"a batch of {rows} rows cannot be split into accumulation {count} parts")
    parts = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
    for i in range(count):
        yield {name: part[i] for name, part in parts.items()}

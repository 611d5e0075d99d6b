"""Arithmetic of the forward pass in training: fp32, tf32 (fp32 with products of 10-bit mantissas) or bf16 autocast."""

from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]


def resolve_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """What a setting stands for on a device: `auto` is bf16 on GPUs that have it, else fp32.

    Raises ValueError for tf32 where there is no GPU.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision tf32 needs a GPU (device cuda), the device is {device}")
    return precision


def set_precision(precision: Precision) -> None:
    """Set torch's switches for fp32 operations of this process. Beside bf16 autocast they stay as torch has them, which
    rounds convolutions alone to tf32.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"

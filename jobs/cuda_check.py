"""Whether the GPU that is asked for is there."""

import torch


def check_cuda(device: str) -> None:
    """Raise ValueError when the device is `cuda` and torch finds none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no CUDA device on this machine")

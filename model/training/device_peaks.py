"""What devices can do at most in bf16 with sums in fp32, without sparsity, by their makers' data sheets."""

import torch

# Operations per second by a part of the device's name; the first that fits counts.
PEAKS = (
    ("B200", 2.25e15),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


def peak_of(name: str) -> float | None:
    """Operations per second of a device of this name; None where it is not known."""
    return next((peak for part, peak in PEAKS if part in name), None)


def known_peak(device: torch.device, bfloat16: bool) -> float | None:
    """Operations per second of a device in the run's arithmetic; None where it is not known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" and bfloat16 else None

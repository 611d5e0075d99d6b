"""What devices can do at most in bf16 with sums in fp32, without sparsity, by their makers' data sheets."""

import re

import torch

# Operations per second by a pattern in the device's name; the first that fits counts. Those that end a name keep out
# its variants: an L40 is no L4, and an RTX 3090 Ti no RTX 3090.
PEAKS = (
    (r"\bB200$", 2.25e15),
    (r"\bH200$", 989e12),
    (r"\bH100 PCIe", 756e12),
    (r"\bH100 NVL", 835e12),
    (r"\bH100\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bL40S$", 362e12),
    (r"\bL4$", 121e12),
    (r"\bA10G$", 70e12),
    (r"\bRTX 4090$", 165e12),
    (r"\bRTX 3090$", 71e12),
)


def peak_of(name: str) -> float | None:
    """Operations per second of a device of this name; None where it is not known."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, name)), None)


def known_peak(device: torch.device, bfloat16: bool) -> float | None:
    """Operations per second of a device in the run's arithmetic; None where it is not known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" and bfloat16 else None

"""The largest memory that a process has had."""

from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def memory_peak(device: torch.device) -> float:
    """Bytes: on a GPU allocated by torch, else of this process's resident set (Linux; 0 elsewhere).

    Not by getrusage, whose peak begins at the parent's.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0.0)

"""Autocast where there may be none: the meta device, on which models are counted, knows no autocast, and torch's own
switches refuse it.
"""

import contextlib

import torch

META = "meta"


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, arithmetic on a device is in the dtype of its tensors."""
    return contextlib.nullcontext() if device.type == META else torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype to which products on a device are cast now; None: to none."""
    if device.type == META or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)

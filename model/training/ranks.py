"""Who this process is among the ranks, and sums over all of them. A process without a group is rank 0 of 1."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Index of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if dist.is_initialized():
        dist.barrier()


def agree_on_rank_zero(value: int, device: torch.device) -> int:
    """Rank 0's integer, on every rank."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    dist.broadcast(tensor, src=0)
    return int(tensor)


def gather_from_ranks(value: Any) -> list[Any]:
    """Every rank's value, which can be pickled, in their order; on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def of_this_rank(value: float) -> Tensor:
    """[ranks] float64 with this rank's value at its place, so that a sum over ranks has all of them."""
    values = torch.zeros(world_size(), dtype=torch.float64)
    values[rank()] = value
    return values


def sum_across_ranks(values: Mapping[str, Tensor | float], device: torch.device) -> dict[str, Tensor]:
    """Sum every named value (same names and shapes on all ranks) in one exchange; float64 tensors on the CPU.

    Names may come in another order on each rank.
    """
    tensors = {name: torch.as_tensor(values[name]).detach().to(device, torch.float64) for name in sorted(values)}
    packed = torch.cat([tensor.flatten() for tensor in tensors.values()])
    if world_size() > 1:
        dist.all_reduce(packed)
    parts = packed.cpu().split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts)}

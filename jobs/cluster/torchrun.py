"""Ranks of torchrun: which GPU each takes, the group they form, and how they are stopped."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.preflight import Device, check_cuda, resolve_device
from mert_foundry.model.training.ranks import wait_for_all

GROUP_TIMEOUT = timedelta(minutes=30)
# SIGUSR1 is what people have SLURM send before the time is over.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SLOWEST_RANK = timedelta(days=7)  # that the others wait for at the end of an extraction


def gpu_of_this_rank() -> int:
    """Index of the GPU: torchrun's LOCAL_RANK, or 0 for a process alone.

    Raises UsageError when there are ranks without it, which would all take the same GPU.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and LOCAL_RANK is not set: start the ranks with torchrun"
        )
    return 0


def node_count(world_size: int) -> int:
    """Nodes of torchrun's group, of equal size; 1 for a process alone.

    Raises UsageError when there are ranks and nothing says how many of them a node has.
    """
    if world_size > 1 and "LOCAL_WORLD_SIZE" not in os.environ:
        raise UsageError(
            f"WORLD_SIZE is {world_size} and LOCAL_WORLD_SIZE is not set: start the ranks with torchrun, or give"
            " trainer.replicas"
        )
    return world_size // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def process_group(device: Device, world_size: int) -> Iterator[torch.device]:
    """Join torchrun's process group if there are several ranks; gives this rank's device.

    Raises UsageError where there is no such device, and where torchrun could not start the group again as it was asked
    to.
    """
    check_cuda(device)
    if world_size > 1:
        _check_restarts()
    use_cuda = resolve_device(device) == "cuda"
    device_of_rank = torch.device("cuda", gpu_of_this_rank()) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device_of_rank)
    if world_size > 1:
        # Numbers that the host knows are summed by gloo, so that it need not wait for the GPU.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=GROUP_TIMEOUT)
    try:
        yield device_of_rank
        wait_for_all()  # gloo may abort a rank whose peer has gone
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _check_restarts() -> None:
    """torchrun of torch 2.11 keeps one store over restarts, with the addresses of the ranks before. New ranks that take
    those for their peers' wait for ever (https://github.com/pytorch/pytorch/issues/135712).
    """
    asked_for = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if asked_for > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UsageError(
            f"torchrun --max-restarts={asked_for} would leave a restarted group waiting for ranks that are gone: start"
            " it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, and with --standalone or"
            " --rdzv-backend=c10d"
        )


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A question whether a signal of STOPPING has come; a SIGINT after that interrupts at once."""
    received = []

    def remember(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, remember) for number in STOPPING}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def rank_group(ranks: int) -> Iterator[None]:
    """Join torchrun's other ranks, if there are any."""
    if ranks > 1:
        distributed.init_process_group("gloo", timeout=SLOWEST_RANK)
    try:
        yield
    finally:
        if ranks > 1:
            distributed.destroy_process_group()

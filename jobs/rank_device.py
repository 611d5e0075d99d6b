"""Which GPU a rank of torchrun takes."""

import os

from jobs.config import UsageError


def gpu_of_this_rank() -> int:
    """Index of the GPU: torchrun's LOCAL_RANK, or 0 for a process alone.

    Raises UsageError when there are ranks without it, which would all take the same GPU.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and LOCAL_RANK is not set: start the ranks with torchrun")
    return 0

"""What is checked before long work: whether its output can be written, a GPU is there, and nobody else works there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from mert_foundry.jobs.command.config import UsageError

LOCK = ".lock"
Device = Literal["auto", "cpu", "cuda"]  # as settings and options have it


def check_writable(path: Path) -> None:
    """Raise UsageError when no file could be made at `path`; folders on the way may be missing. Leaves nothing."""
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))  # Path.exists may raise
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{path}: nothing can be written in {folder}: {error.strerror}") from error


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """What a setting stands for: `auto` is cuda where torch finds a GPU on this machine, else cpu."""
    return ("cuda" if _finds_gpu() else "cpu") if device == "auto" else device


def check_precision(key: str, precision: str, device: str) -> None:
    """Raise UsageError naming the key when the precision is tf32 and the device (resolved) no GPU."""
    if precision == "tf32" and device == "cpu":
        raise UsageError(f"{key} tf32 needs a GPU (device cuda), the device is cpu")


def check_cuda(device: str) -> None:
    """Raise ValueError when the device is `cuda` and torch finds none."""
    if device == "cuda" and not _finds_gpu():
        raise ValueError("device cuda: torch finds no CUDA device on this machine")


def _finds_gpu() -> bool:
    # Not at the top: torch takes seconds to import, and commands that only hold a lock need none of it.
    import torch

    return torch.cuda.is_available()


@contextlib.contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold a local folder; `work` says in the error what the other process is doing there.

    Raises:
        ValueError: another process holds it, such as a rank that outlived its launcher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A soft lock, in its place on file systems without flock, would outlive a killed process.
    lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder}: another process is {work} in this folder") from error
    try:
        yield
    finally:
        lock.release()

"""Weights and settings read from files of others, without running any of their code."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: an object is needed, not {type(content).__name__}")
    return content


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises ValueError naming it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error


def named_tensors(content: Any, source: Path) -> dict[str, Tensor]:
    """What was unpickled, when it is tensors by name. Raises ValueError naming the source when it is not."""
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise ValueError(f"{source}: a mapping of names to tensors is needed")
    return dict(content)


def load_safely(path: Path) -> Any:
    """torch.load without running code of the file. Raises ValueError naming the classes it would need."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch have errors of their own for a file that cannot be loaded
        raise ValueError(f"{path}: not loaded, {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip archive of torch's, so its own message is the best there is
        unsafe = []
    if unsafe:
        return f"since it holds objects of {', '.join(sorted(unsafe))}, which could run code"
    return (
        "it is damaged or torch.save did not write it"
        if isinstance(error, pickle.UnpicklingError)
        else str(error).splitlines()[0]
    )

"""Configs as runs, checkpoints and exports hold them, read with the names that settings have now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def read_run_config(path: Path) -> Any:
    """The config.yaml of a run or a checkpoint, as `present_names` gives it."""
    return present_names(yaml.safe_load(path.read_text()))


def present_names(document: Any, parent: str = "") -> Any:
    """A stored document with older names of settings replaced by present ones.

    Until November 2026 `attention.learnable_temperature`, of all layers or within `overrides`, was
    `attention.temperature`.
    """
    if not isinstance(document, Mapping):
        return document
    return {_present_name(key, parent): present_names(value, key) for key, value in document.items()}


def _present_name(key: Any, parent: Any) -> Any:
    if key == "temperature" and parent == "attention":
        return "learnable_temperature"
    return "attention.learnable_temperature" if key == "attention.temperature" else key  # overrides may be dotted

"""Which models are probed, and under which names."""

import hashlib
import re
from dataclasses import dataclass

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.extraction.models import SPECTRA
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.model.runs.checkpoint import (
    CHECKPOINTS,
    OF_AVERAGE,
    checkpoint_step,
    find_fault,
    list_checkpoints,
    split_average,
)


@dataclass(frozen=True)
class ProbedModel:
    """A model of the report.

    name: in the report. location: the `model` of `mert extract`. step: optimiser steps of the checkpoint, if every
    checkpoint of a run is probed. is_baseline: whether the settings list it under `baselines`.
    """

    name: str
    location: str
    step: int | None = None
    is_baseline: bool = False

    @property
    def is_spectrum(self) -> bool:
        """Whether it is a baseline that computes spectra.

        The mean of a spectrum alone would say little about a clip.
        """
        return self.location in SPECTRA

    @property
    def slug(self) -> str:
        """The name of the model in file names."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")[-40:]
        return f"{readable}-{hashlib.sha256(self.location.encode()).hexdigest()[:8]}"


def list_models(config: ProbeConfig) -> list[ProbedModel]:
    """The models of the settings, then the baselines, each location once. Raises UsageError."""
    models = [model for name, location in _named(config.model) for model in _checkpoints(config, name, location)]
    models += [ProbedModel(name, name, is_baseline=True) for name in config.baselines]
    if not models:
        raise UsageError("model and baselines are empty: there is nothing to probe")
    first: dict[str, ProbedModel] = {}
    for model in models:
        if model.name in first and first[model.name].location != model.location:
            raise UsageError(
                f"two models have the name {model.name}: {first[model.name].location} and {model.location}"
            )
        first.setdefault(model.name, model)
    return list(first.values())


def compared_model(config: ProbeConfig, models: list[ProbedModel]) -> ProbedModel:
    """The model that differences are taken from. Raises UsageError for a name that is not among them."""
    if config.compare_with is None:
        return next((model for model in models if model.is_baseline), models[0])
    for model in models:
        if config.compare_with in (model.name, model.location):
            return model
    raise UsageError(f"compare_with {config.compare_with}: the models are {', '.join(model.name for model in models)}")


def _named(model: str | list[str] | dict[str, str]) -> list[tuple[str, str]]:
    if isinstance(model, dict):
        return list(model.items())
    return [(location, location) for location in ([model] if isinstance(model, str) else model)]


def _checkpoints(config: ProbeConfig, name: str, location: str) -> list[ProbedModel]:
    """The model itself, or all complete checkpoints of a run, oldest first. Warns of incomplete ones."""
    run, averaged = split_average(location)
    folder = run / CHECKPOINTS
    if not (config.every_checkpoint and folder.is_dir()):
        return [ProbedModel(name, location)]
    faults = {path: find_fault(path) for path in reversed(list_checkpoints(folder))}
    for fault in filter(None, faults.values()):
        console.warn(f"incomplete checkpoint is skipped: {fault}")
    steps = [(checkpoint_step(path), path) for path, fault in faults.items() if fault is None]
    if not steps:
        raise UsageError(f"{folder}: no whole checkpoint to probe")
    return [ProbedModel(f"{name} step {step}", f"{path}{OF_AVERAGE if averaged else ''}", step) for step, path in steps]

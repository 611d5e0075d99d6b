"""Checkpoints: `checkpoints/step_{n}/`, published by rename, found again only when whole. Local paths only.

model.safetensors   all weights of the PretrainModel
ema.safetensors     their exponential moving average, where trainer.ema asks for one; opened as FOLDER@ema
optimizer.pt        the optimiser's state dict, read back with weights_only=True
state.json          CheckpointState
config.yaml         the resolved config of the run
checksums.json      SHA-256 of each file above, written last; a folder that does not match it is incomplete
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from mert_foundry.model.runs.publish import publish_folder, retire_folder
from mert_foundry.model.runs.stored_config import read_run_config
from mert_foundry.pipeline.storage.documents import file_sha256

CHECKPOINTS = "checkpoints"  # the folder in a run folder
FORMAT_VERSION = 1
CHECKSUMS = "checksums.json"
AVERAGE = "ema.safetensors"
FOR_GOOD = "for_good"  # an empty file: this checkpoint stays
OF_AVERAGE = "@ema"  # after the name of a run or checkpoint: its averaged weights


@dataclass(frozen=True)
class CheckpointState:
    """What a resume needs beside weights and optimiser.

    step: optimiser steps done. position: the stream's, opaque. seed: of the run. world_size: ranks that wrote it.
    skipped_steps: steps so far that moved no weight, non-finite or skipped as spikes. consecutive_skips: those at the
    end of the run so far. spikes: what SpikeWatch knows.
    samples: of audio heard so far, by all ranks; None in a run that an older program began.
    """

    step: int
    position: Any
    seed: int
    world_size: int
    skipped_steps: int = 0
    consecutive_skips: int = 0
    spikes: dict[str, list[float]] | None = None
    samples: int | None = None


def save_checkpoint(
    folder: Path,
    state: CheckpointState,
    weights: Mapping[str, Tensor],
    optimizer_state: dict[str, Any],
    run_config: dict[str, Any],
    average: Mapping[str, Tensor] | None = None,
    for_good: bool = False,
) -> Path:
    """Publish `folder/step_{n}`.

    `average`: of the weights, if there is one. `for_good`: it is marked as one that stays.

    An incomplete folder under the same name is replaced. Returns the folder written.
    """
    target = folder / f"step_{state.step}"
    if target.exists():
        retire_folder(target)
    with publish_folder(target) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / "model.safetensors")
        if average is not None:
            save_file({name: tensor.contiguous() for name, tensor in average.items()}, temporary / AVERAGE)
        with open(temporary / "optimizer.pt", "wb") as file:  # torch's own files do not say why a write failed
            torch.save(optimizer_state, file)
        document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(state)}
        (temporary / "state.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
        (temporary / "config.yaml").write_text(yaml.safe_dump(run_config, sort_keys=False))
        if for_good:
            (temporary / FOR_GOOD).touch()
        sums = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
    return target


def reasons_to_keep(paths: Sequence[Path], keep: int, every: int | None) -> dict[Path, list[str]]:
    """Why each checkpoint stays: it is one of the newest `keep`, its step is a multiple of `every`, or it is marked as
    one that stays, by an `every` that the run had when it was written. No reason, and it goes.
    """
    newest = sorted(map(checkpoint_step, paths), reverse=True)[:keep]
    return {path: ["newest"] * (checkpoint_step(path) in newest) + _reason_for_good(path, every) for path in paths}


def _reason_for_good(path: Path, every: int | None) -> list[str]:
    if every is not None and checkpoint_step(path) % every == 0:
        return [f"every {every:,} steps"]
    return ["for good, by an earlier keep_every"] if (path / FOR_GOOD).exists() else []


def retire_checkpoints(folder: Path, step: int, keep: int, every: int | None = None) -> None:
    """Remove checkpoints up to a step, that of the newest whole one, but the newest `keep` and those of every `every`
    steps.
    """
    # One of a later step is incomplete, or this run would have gone on from it: it must not push out a whole one.
    until_now = [path for path in list_checkpoints(folder) if checkpoint_step(path) <= step]
    for old, reasons in reasons_to_keep(until_now, keep, every).items():
        if not reasons:
            retire_folder(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders by name, newest step first, whole or not."""
    paths = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(paths, key=checkpoint_step, reverse=True)


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step_"))


def find_fault(path: Path) -> str | None:
    """Why a checkpoint folder is not whole, in one line; None when it is."""
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        return f"{path}: no readable {CHECKSUMS} ({error})"
    for name, expected in sums.items():
        if not (path / name).is_file():
            return f"{path}: {name} is missing"
        found = file_sha256(path / name)
        if found != expected:
            return f"{path}: {name} has SHA-256 {found}, {CHECKSUMS} says {expected}"
    return None


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint (None if there is none), and the faults of newer, incomplete ones."""
    faults: list[str] = []
    for path in list_checkpoints(folder):
        fault = find_fault(path)
        if fault is None:
            return path, faults
        faults.append(fault)
    return None, faults


def find_checkpoint(source: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a run folder, or the checkpoint folder itself, and the faults of incomplete ones
    passed over.

    Raises ValueError when the source is neither, or has only incomplete checkpoints.
    """
    if (source / CHECKPOINTS).is_dir():
        checkpoint, faults = latest_checkpoint(source / CHECKPOINTS)
        if checkpoint is None:
            raise ValueError(f"{source}: no whole checkpoint{''.join('; ' + fault for fault in faults)}")
        return checkpoint, faults
    if not (source / CHECKSUMS).is_file():
        raise ValueError(
            f"{source} is neither a run folder nor a whole checkpoint nor an exported one: no {CHECKPOINTS}/,"
            f" {CHECKSUMS} or config.json"
        )
    fault = find_fault(source)
    if fault:
        raise ValueError(f"incomplete checkpoint: {fault}")
    return source, []


def load_state(path: Path) -> CheckpointState:
    """Read state.json. Raises ValueError when it was written in another format version."""
    document = json.loads((path / "state.json").read_text())
    version = document.pop("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: checkpoint format_version is {version}, this program reads {FORMAT_VERSION}")
    return CheckpointState(**document)


def load_config(path: Path) -> dict[str, Any]:
    """The resolved config of the run that wrote the checkpoint."""
    return read_run_config(path / "config.yaml")


def load_weights(path: Path) -> dict[str, Tensor]:
    """All weights of the PretrainModel by name, on the CPU."""
    return load_file(path / "model.safetensors")


def load_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint by name, on the CPU. Raises ValueError when it has none."""
    if not has_average(path):
        raise ValueError(f"{path} has no averaged weights ({AVERAGE}): its run has trainer.ema null")
    return load_file(path / AVERAGE)


def has_average(path: Path) -> bool:
    """Whether a checkpoint holds averaged weights."""
    return (path / AVERAGE).is_file()


def split_average(name: Path | str) -> tuple[Path, bool]:
    """The folder that FOLDER or FOLDER@ema names, and whether its averaged weights are meant."""
    text = str(name)
    if text.endswith(OF_AVERAGE) and not Path(text).exists():
        return Path(text.removesuffix(OF_AVERAGE)), True
    return Path(text), False


def load_optimizer_state(path: Path) -> dict[str, Any]:
    """The optimiser's state dict, on the CPU; its tensors are read from the file as they are used, and not after it is
    gone.
    """
    return torch.load(str(path / "optimizer.pt"), map_location="cpu", weights_only=True, mmap=True)


def check_weights(own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: object) -> None:
    """Raise ValueError naming `source` and the first weight that is missing, unknown or of another shape."""
    for name in sorted(own.keys() | found.keys()):
        if name not in found or name not in own:
            raise ValueError(f"{source}: weight {name} is only in the {'model' if name in own else 'checkpoint'}")
        if found[name].shape != own[name].shape:
            shapes = f"{list(found[name].shape)} in the checkpoint, {list(own[name].shape)} in the model"
            raise ValueError(f"{source}: weight {name} is {shapes}")

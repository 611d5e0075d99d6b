"""Features of a task's clips: clips are cut to length, features are extracted once for each model and read back by
clip.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from mert_foundry.jobs.extraction.plan import Plan
from mert_foundry.jobs.extraction.run import extract
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.probing.models import ProbedModel
from mert_foundry.jobs.probing.settings import ProbeConfig
from mert_foundry.model.probing.features import FrameFeatures, PooledFeatures
from mert_foundry.model.probing.separation import find_misfit
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.probe_sets.clips import cut, files_to_measure, find_late_start
from mert_foundry.pipeline.probe_sets.durations import audio_seconds
from mert_foundry.pipeline.probe_sets.task import POOLED_KINDS, LabelledSet, ProbeTask
from mert_foundry.pipeline.storage import files

TABLE = "clips.jsonl"
CLIPS_OF_A_PROCESS = 500


@dataclass(frozen=True)
class ProbedTask:
    """A task as it is probed.

    labelled: its clips, cut to the length that the task asks for. unusable: why clips were dropped, by file.
    """

    labelled: LabelledSet
    unusable: dict[str, str]

    def without(self, faults: dict[int, str]) -> "ProbedTask":
        """The task without the clips of these numbers. Raises ValueError when none is left."""
        clips = self.labelled.clips
        kept = tuple(clip for number, clip in enumerate(clips) if number not in faults)
        if not kept:
            raise ValueError(f"task {self.labelled.task.name}: no clip has features; {clips[0].path}: {faults[0]}")
        unusable = self.unusable | {clips[number].path: reason for number, reason in faults.items()}
        return replace(self, labelled=self.labelled.model_copy(update={"clips": kept}), unusable=unusable)


@dataclass(frozen=True)
class FeatureTable:
    """The features of one model for the clips of one task.

    group: the store. description: its attributes. rows: the store's row of each clip that is probed.
    """

    group: zarr.Group
    description: dict[str, Any]
    rows: np.ndarray

    def faults(self) -> dict[int, str]:
        """Why clips have no features, by the number of the clip."""
        return {number: str(reason) for number, reason in enumerate(np.asarray(self.array("dropped")[:])) if reason}

    def array(self, name: str) -> zarr.Array:
        """An array of the store. Nothing is read yet."""
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array


def cut_to_length(labelled: LabelledSet, listed: LabelledSet) -> ProbedTask:
    """Cut the clips to the length that the task asks for. Clips of files whose length cannot be found are dropped.

    Args:
        listed: the task as it was read, with all of its clips; an error names the row there.

    Raises:
        ValueError: a clip starts after the end of its file.
    """
    seconds: dict[str, float] = {}
    faults: dict[str, str] = {}
    for path in files_to_measure(labelled):
        try:
            seconds[path] = audio_seconds(Path(labelled.root) / path)
        except FileNotFoundError:
            faults[path] = "no such file"
        except DecodeError as error:
            faults[path] = str(error)
    numbers = {number: faults[clip.path] for number, clip in enumerate(labelled.clips) if clip.path in faults}
    measured = ProbedTask(labelled, {}).without(numbers)
    if clip := find_late_start(measured.labelled, seconds):
        rows = [(each.path, each.start, each.end) for each in listed.clips]
        row = 1 + rows.index((clip.path, clip.start, clip.end))
        raise ValueError(
            f"task {listed.task.name}, row {row}: the clip starts at {clip.start} s, {clip.path} ends at"
            f" {seconds[clip.path]:.3f} s"
        )
    return replace(measured, labelled=cut(measured.labelled, seconds))


class MisfitError(ValueError):
    """The features of a model do not fit a task; the message says why."""


def check_fit(task: ProbeTask, plan: Plan, config: ProbeConfig) -> None:
    """Raise MisfitError when the features of a plan do not fit a task."""
    if task.kind != "separation":
        return
    if reason := find_misfit(plan.description["frame_rate"], len(plan.order.layout.layers), config.separation):
        raise MisfitError(reason)


def extract_features(probed: ProbedTask, model: ProbedModel, config: ProbeConfig) -> FeatureTable:
    """Extract a model's features, or find them in the cache; they are recomputed when model or clips changed.

    Raises MisfitError before anything is computed, and as `mert_foundry.jobs.extraction.run.extract`.
    """
    task = probed.labelled.task
    folder = Path(config.cache or Path(config.out) / "features") / task.name
    table = "".join(
        json.dumps({"path": clip.path, "start": clip.start, "end": clip.end}) + "\n" for clip in probed.labelled.clips
    ).encode()
    path = folder / TABLE
    if not path.exists() or path.read_bytes() != table:
        files.publish_bytes(str(path), table)
    settings = ExtractConfig(
        model=model.location,
        input=str(path),
        input_root=probed.labelled.root,
        out=str(folder / f"{model.slug}.zarr"),
        pooling=_pooling(probed, model, config),
        dtype="float32" if task.kind in POOLED_KINDS else "float16",
        batch_seconds=config.batch_seconds,
        precision=config.precision,
        device=config.device,
        overwrite=True,
    )
    location = extract(settings, _processes(probed, config), lambda plan, *_: check_fit(task, plan, config))
    group = zarr.open_group(location, mode="r")
    return FeatureTable(group, dict(group.attrs), np.arange(len(probed.labelled.clips)))


def read_pooled(probed: ProbedTask, table: FeatureTable) -> PooledFeatures:
    """Features [clips, layers, dim]. Where the store has `std`, it follows `mean` in the last axis."""
    names = [name for name in ("mean", "std") if name in table.group]
    arrays = [np.asarray(table.array(name)[:], dtype=np.float32)[table.rows] for name in names]
    return PooledFeatures(probed.labelled, np.concatenate(arrays, axis=-1))


def read_frames(probed: ProbedTask, table: FeatureTable) -> FrameFeatures:
    """Features [frames of all clips, layers, dim], one clip after the other."""
    offsets, lengths = (np.asarray(table.array(name)[:])[table.rows] for name in ("offset", "length"))
    stored = table.array("features")
    values = np.concatenate([np.asarray(stored[first : first + count]) for first, count in zip(offsets, lengths)])
    return FrameFeatures(
        labelled=probed.labelled,
        values=np.asarray(values, dtype=np.float32),
        lengths=lengths,
        frame_rate=float(table.description["frame_rate"]),
    )


def drop_faults(probed: ProbedTask, tables: Sequence[FeatureTable]) -> tuple[ProbedTask, list[FeatureTable]]:
    """Drop a clip for all models when one of them has no features for it, so that all models are scored on the same
    clips.
    """
    faults = {number: reason for table in tables for number, reason in table.faults().items()}
    rows = np.array([number for number in range(len(probed.labelled.clips)) if number not in faults])
    return probed.without(faults), [replace(table, rows=rows) for table in tables]


def _processes(probed: ProbedTask, config: ProbeConfig) -> int:
    """One process per 500 clips, so that start-up time does not matter; a single one when a GPU does the work."""
    cores = 1 if config.device == "cuda" else os.cpu_count() or 1
    return min(cores, 1 + len(probed.labelled.clips) // CLIPS_OF_A_PROCESS)


def _pooling(probed: ProbedTask, model: ProbedModel, config: ProbeConfig) -> Literal["none", "mean", "mean_std"]:
    if probed.labelled.task.kind not in POOLED_KINDS:
        return "none"
    return "mean_std" if model.is_spectrum else config.pooling

"""Label a manifest with the teachers and write WebDataset shards, on Ray.

    mert label configs/label.yaml manifest=MANIFEST_FOLDER out=SHARD_FOLDER
    python -m mert_foundry.jobs.label configs/label.yaml manifest=MANIFEST_FOLDER out=SHARD_FOLDER
    ray job submit --working-dir . -- python -m mert_foundry.jobs.label configs/label.yaml manifest=/abs/M out=/abs/S

Ray is started on this machine unless address= names a cluster or RAY_ADDRESS is set (as in a submitted job).
A rerun does only the shards without a valid record; shards made with other settings or teachers are refused
unless overwrite=true. Files that have the names of shards but were not written by mert label are left alone, always:
the job does not start beside them. Exit code 1 when a shard is missing at the end.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mert_foundry.jobs.cluster.ray_tasks import run_on_ray
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import Device, locked, resolve_device
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.pipeline.labelling.plan import SegmentConfig, ShardTask, plan_shards
from mert_foundry.pipeline.labelling.process_shard import DECODE_THREADS, process_shard
from mert_foundry.pipeline.labelling.resume import find_unfinished, remove_unplanned, shard_names
from mert_foundry.pipeline.manifest.rows import Manifest, check_root, load_manifest
from mert_foundry.pipeline.shards.index import INDEX_NAME, RECORDED_CONFIG, ShardIndex, build_index
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage import files as storage
from mert_foundry.pipeline.storage.folder_kinds import SHARDS, FolderError, check_output
from mert_foundry.pipeline.teachers.registry import TeacherConfig, build_teachers, check_device

SUMMARY = {"totals", "dropped", "statistics"}  # of index.json, for --json


class LabelConfig(BaseModel):
    """What `mert label` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="Manifest folder")
    out: str = Field(description="Folder or fsspec URL for the shards")
    teachers: list[TeacherConfig] = Field(min_length=1, description="Teachers, in the order of index.json")
    segments: SegmentConfig = Field(default=SegmentConfig(), description="How tracks are cut and grouped")
    overwrite: bool = Field(default=False, description="Throw away shards made with other settings or teachers")
    device: Device = Field(
        default="cpu",
        description="Where tracks are resampled and the teachers run; auto: cuda where this machine has one",
    )
    actors: int = Field(
        default=0, ge=0, description="Teacher processes; 0: one a CPU core, or one a GPU; more than these share them"
    )
    decode_threads: int = Field(
        default=0, ge=0, description="Decoding threads of each actor; 0: 2 on a CPU, 16 for a GPU"
    )
    address: str | None = Field(
        default=None, description="'local', or the address of a running Ray cluster; null: RAY_ADDRESS, else local"
    )

    @model_validator(mode="after")
    def _check_device(self) -> "LabelConfig":
        check_device(self.teachers, resolve_device(self.device))
        return self

    def recorded(self) -> dict:
        """The settings that shape the result, without places and how the work is spread."""
        return self.model_dump(mode="json", include={"teachers", "segments"})


CONFIG = LabelConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    config = config.model_copy(update={"device": resolve_device(config.device)})
    check_output(config.out, SHARDS)
    manifest = load_manifest(config.manifest)
    tasks = plan_shards(manifest, config.segments)
    if not tasks:
        raise ValueError(f"{config.manifest}: the manifest has no track")
    specs = [teacher.spec for teacher in build_teachers(config.teachers, "cpu")]
    if not storage.is_local(config.out):
        return label(config, manifest, tasks, specs)
    find_work(config, manifest, tasks, specs)  # before the lock, whose file is the first thing written
    with locked(storage.local_path(config.out), "labelling"):
        return label(config, manifest, tasks, specs)


def find_work(
    config: LabelConfig, manifest: Manifest, tasks: list[ShardTask], specs: list[TargetSpec]
) -> list[ShardTask]:
    """The tasks that are to do; writes nothing.

    Raises as `find_unfinished`, as `check_root` when there is any, and FolderError when the folder has a label.yaml that
    stands beside no shard, and so is somebody's own.
    """
    recorded = storage.join(config.out, RECORDED_CONFIG)
    if storage.exists(recorded) and not shard_names(config.out):
        raise FolderError(f"{recorded} is not ours: there is no shard beside it, and labelling would overwrite it")
    unfinished = find_unfinished(config.out, tasks, specs, config.segments.audio, config.overwrite)
    if unfinished:
        check_root(manifest, config.manifest)
    return unfinished


def label(config: LabelConfig, manifest: Manifest, tasks: list[ShardTask], specs: list[TargetSpec]) -> int:
    """Do what the plan lacks and write the index; returns the exit code."""
    unfinished = find_work(config, manifest, tasks, specs)
    storage.sweep_temporary(config.out)
    remove_unplanned(config.out, tasks)
    console.say(
        f"plan: {len(tasks)} shards, {sum(task.seconds for task in tasks) / 3600:.3f} h; {len(unfinished)} to do"
    )
    failures = label_tasks(config, manifest.root, unfinished) if unfinished else {}
    for name, message in sorted(failures.items()):
        print(f"error: {name}: {message}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(tasks)} shards are missing; the same command does just those", file=sys.stderr)
        return 1
    storage.publish_bytes(storage.join(config.out, RECORDED_CONFIG), yaml.safe_dump(config.recorded()).encode())
    index = build_index(
        config.out,
        [task.name for task in tasks],
        specs,
        name="mert-foundry",
        manifest_sha256=manifest.sha256,
        segment_seconds=config.segments.segment_seconds,
        audio_member=config.segments.audio,
    )
    console.finish({"out": config.out, **index.model_dump(mode="json", include=SUMMARY)}, summary_lines(config, index))
    return 0


def label_tasks(config: LabelConfig, root: str, tasks: list[ShardTask]) -> dict[str, str]:
    """Do the tasks on Ray; returns the message of each shard that failed."""
    # An index must not stand beside shards that are about to change.
    storage.remove(storage.join(config.out, INDEX_NAME))
    with Progress("label", sum(task.seconds for task in tasks)) as progress:
        return label_on_ray(
            tasks,
            config.teachers,
            root,
            config.out,
            address=config.address,
            device=config.device,
            actors=config.actors,
            decode_threads=config.decode_threads or DECODE_THREADS[config.device],
            report=progress.update,
        )


def summary_lines(config: LabelConfig, index: ShardIndex) -> Iterator[str]:
    """Hours, examples and bytes by split, codebook use, and what was dropped."""
    for split, totals in index.totals.items():
        rate = totals.bytes / totals.seconds if totals.seconds else 0
        yield (
            f"{split}: {totals.shards} shards, {totals.examples} examples, {totals.seconds / 3600:.3f} h,"
            f" {totals.bytes / 1e6:.1f} MB ({rate / 1000:.1f} kB an audio second)"
        )
    for spec in index.targets:
        if spec.kind == "discrete":
            levels = ", ".join(f"{value:.0f}" for value in index.statistics[spec.name].perplexity)
            yield f"{spec.name}: {spec.size} codebooks of {spec.codebook_size}, perplexity {levels}"
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(index.dropped.items()))
    yield f"dropped segments: {dropped or 'none'}"
    yield f"shards: {config.out}"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))


class Labeller:
    """Holds the teachers of one process and labels one shard at a time."""

    def __init__(self, teachers: list[TeacherConfig], device: str, root: str, out: str, decode_threads: int):
        torch.set_num_threads(1)
        self.teachers = build_teachers(teachers, device)
        self.backend = {
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "torch": torch.__version__,
        }
        for teacher in self.teachers:
            self.backend |= getattr(teacher, "backend", {})
        self.root, self.out, self.decode_threads, self.device = root, out, decode_threads, device
        self.seconds = 0.0

    def run(self, task: ShardTask) -> None:
        """Label and publish one shard. Raises as `process_shard` does."""
        self.seconds = 0.0
        process_shard(
            task,
            self.teachers,
            self.root,
            self.out,
            self.backend,
            device=self.device,
            decode_threads=self.decode_threads,
            report=self._count,
        )
        self.seconds = 0.0

    def seconds_done(self) -> float:
        """Audio seconds done of the shard at work."""
        return self.seconds

    def _count(self, seconds: float) -> None:
        self.seconds += seconds


def label_on_ray(
    tasks: list[ShardTask],
    teachers: list[TeacherConfig],
    root: str,
    out: str,
    *,
    address: str | None,
    device: Literal["cpu", "cuda"],
    actors: int,
    decode_threads: int,
    report: Callable[[float, str], None],
) -> dict[str, str]:
    """Do every task as `run_on_ray` does; returns the error message of each shard that failed."""
    arguments = (teachers, device, root, out, decode_threads)
    return run_on_ray(tasks, Labeller, arguments, address=address, device=device, actors=actors, report=report)

"""Label a manifest with the teachers and write WebDataset shards, on Ray.

    mert label configs/label.yaml manifest=MANIFEST_FOLDER out=SHARD_FOLDER
    ray job submit -- mert label $PWD/configs/label.yaml manifest=s3://BUCKET/manifest out=s3://BUCKET/shards

Ray is started on this machine unless address= names a cluster or RAY_ADDRESS is set (as in a submitted job).
A rerun does only the shards without a valid record; shards made with other settings or teachers are refused
unless overwrite=true. splits=[train] and limit_hours=10 take a part of the manifest, always the same one.
augment.semitones=[-2,2] adds two copies of each track of the split train, shifted in pitch.
The job does not start beside files that have the names of shards but were not written by mert label, and never
changes them. Exit code 1 when a shard is missing at the end.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mert_foundry.jobs.command.config import UsageError, load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import Device, locked, resolve_device
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.model.teacher.registry import TEACHERS, TeacherConfig
from mert_foundry.pipeline.labelling.plan import SegmentConfig, ShardTask, plan_shards
from mert_foundry.pipeline.labelling.process_shard import DECODE_THREADS, LABELLERS_PER_GPU
from mert_foundry.pipeline.labelling.resume import find_unfinished, remove_unplanned
from mert_foundry.pipeline.labelling.status import JobPlan, write_plan
from mert_foundry.pipeline.labelling.work_order import Labeller, WorkOrder
from mert_foundry.pipeline.manifest.rows import Manifest, check_root, load_manifest
from mert_foundry.pipeline.manifest.shifted_track import semitones_of
from mert_foundry.pipeline.shards.catalogue import MOST_SHARDS, Catalogue, read_catalogue
from mert_foundry.pipeline.shards.index import (
    INDEX_NAME,
    NO_COPIES,
    RECORDED_CONFIG,
    WHOLE_MANIFEST,
    Augment,
    Selection,
    ShardIndex,
    build_index,
)
from mert_foundry.pipeline.shards.record_sums import RecordSums
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import OF_TEXT, TOKENIZER_NAME, TextSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import SHARDS, FolderError, check_output
from mert_foundry.pipeline.teachers.registry import check_device, describe_targets
from mert_foundry.pipeline.text.columns import TextColumns
from mert_foundry.pipeline.text.tokenizer import TextTokenizer, load_tokenizer

SAVE_EVERY = 300.0  # seconds between documents of what is finished, when fewer shards than one holds have come
SUMMARY = {"totals", "dropped", "statistics"}  # of index.json, for --json


class TextConfig(TextColumns):
    """The text that stands beside the audio."""

    tokenizer: str = Field(description="Folder of mert tokenizer, or any tokenizer.json")


class LabelConfig(BaseModel):
    """What `mert label` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="Manifest folder")
    out: str = Field(description="Folder or fsspec URL for the shards")
    teachers: list[TeacherConfig] = Field(min_length=1, description="Teachers, in the order of index.json")
    segments: SegmentConfig = Field(default=SegmentConfig(), description="How tracks are cut and grouped")
    text: TextConfig | None = Field(default=None, description="Text beside the audio of each example; null: none")
    splits: list[str] | None = Field(default=None, min_length=1, description="Splits to label; null: all")
    limit_hours: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Label no more than about these hours, shared among the splits by their hours; null: all. More"
        " hours hold what fewer hours hold; overwrite=true then makes the last shard of each split again and keeps"
        " the others",
    )
    augment: Augment = Field(default=NO_COPIES, description="Copies of the tracks of the split train")
    overwrite: bool = Field(default=False, description="Throw away shards made with other settings or teachers")
    device: Device = Field(
        default="cpu",
        description="Where tracks are resampled and the teachers run; auto: cuda where this machine has one",
    )
    actors: int = Field(
        default=0,
        ge=0,
        description="Worker processes; 0: one per CPU core, or up to 8 per GPU, but no more than there are CPU cores"
        " for each GPU. Each takes about 1.5 GB of GPU memory",
    )
    decode_threads: int = Field(default=DECODE_THREADS, gt=0, description="Decoding threads of each actor")
    wait_for_nodes: float = Field(
        default=3600.0,
        ge=60,
        description="How long to wait when no worker is left, as when all nodes of a cluster have gone, before the"
        " job ends, seconds; a worker that starts, which may take most of a minute, is none yet",
    )
    address: str | None = Field(
        default=None, description="'local', or the address of a running Ray cluster; null: RAY_ADDRESS, else local"
    )

    @model_validator(mode="after")
    def _check_device(self) -> "LabelConfig":
        check_device(self.teachers, resolve_device(self.device))
        return self

    def recorded(self) -> dict:
        """The settings that shape the result, without folders and how the work is spread, and without
        what is not set.
        """
        part = self.selection.model_dump(mode="json", exclude_none=True)
        if self.augment != NO_COPIES:
            part["augment"] = self.augment.model_dump(mode="json")
        shaping = {"teachers", "segments"} | ({"text"} if self.text else set())
        return self.model_dump(mode="json", include=shaping) | part

    @property
    def selection(self) -> Selection:
        """The part of the manifest to label."""
        return Selection(splits=self.splits, limit_hours=self.limit_hours)


@dataclass(frozen=True)
class Contents:
    """What the shards are to hold: targets, and text with the tokenizer that encodes it, if any."""

    specs: list[TargetSpec]
    text: TextSpec | None
    tokenizer: TextTokenizer | None


CONFIG = LabelConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    config = config.model_copy(update={"device": resolve_device(config.device)})
    check_output(config.out, SHARDS)
    manifest = load_manifest(config.manifest)
    tasks = plan_tasks(config.manifest, manifest, config)
    wanted = describe_contents(config)
    catalogue = read_catalogue(config.out)
    if not files.is_local(config.out):
        return label(config, manifest, tasks, wanted, catalogue)
    find_work(config, manifest, tasks, wanted, catalogue)  # before the lock, whose file is the first thing written
    with locked(files.local_path(config.out), "labelling"):
        return label(config, manifest, tasks, wanted, read_catalogue(config.out, catalogue.unpublished))


def describe_contents(config: LabelConfig) -> Contents:
    """The contents that a config asks for.

    Raises as `describe_targets`, and UsageError for a tokenizer that is not there, or none.
    """
    specs = describe_targets(config.teachers, TEACHERS)
    if config.text is None:
        return Contents(specs, None, None)
    try:
        tokenizer = load_tokenizer(config.text.tokenizer)
    except (OSError, ValueError) as error:
        raise UsageError(f"text.tokenizer: {error}") from error
    return Contents(specs, tokenizer.spec(config.text), tokenizer)


def plan_tasks(location: str, manifest: Manifest, config: LabelConfig) -> list[ShardTask]:
    """The shards that a config makes of the manifest at `location`.

    Raises ValueError or UsageError when it has no track for them.
    """
    if not manifest.tracks:
        raise ValueError(f"{location}: the manifest has no track")
    try:
        return plan_shards(manifest, config.segments, config.selection, config.augment, config.text)
    except ValueError as error:
        raise UsageError(f"{location}: {error}") from error


def find_work(
    config: LabelConfig, manifest: Manifest, tasks: list[ShardTask], wanted: Contents, catalogue: Catalogue
) -> list[ShardTask]:
    """The tasks that are to do; writes nothing.

    Raises as `find_unfinished`, as `check_root` when there is any, and FolderError when the folder has a label.yaml or
    tokenizer.json that stands beside no shard, and so is somebody's own.
    """
    for name in (RECORDED_CONFIG, TOKENIZER_NAME) if wanted.text else (RECORDED_CONFIG,):
        if name in catalogue.sizes and not catalogue.shard_names:
            location = files.join(config.out, name)
            raise FolderError(f"{location} is not ours: there is no shard beside it, and labelling would overwrite it")
    audio, overwrite = config.segments.audio, config.overwrite
    unfinished = find_unfinished(config.out, tasks, wanted.specs, audio, overwrite, catalogue, wanted.text)
    if unfinished:
        check_root(manifest, config.manifest)
    return unfinished


def label(
    config: LabelConfig, manifest: Manifest, tasks: list[ShardTask], wanted: Contents, catalogue: Catalogue
) -> int:
    """Do what the plan lacks and write the index; returns the exit code."""
    unfinished = find_work(config, manifest, tasks, wanted, catalogue)
    files.sweep_temporary(config.out)
    remove_unplanned(catalogue, tasks)
    catalogue.forget([task.name for task in unfinished])
    catalogue.publish()
    whole = sum(track.seconds for track in manifest.tracks) / 3600
    part = f" of the manifest's {whole:.3f} h ({config.selection})" if config.selection != WHOLE_MANIFEST else ""
    expected = {task.name: task.fingerprint()[:16] for task in unfinished}
    plan = JobPlan(shards=len(tasks), seconds=sum(task.seconds for task in tasks), expected=expected)
    copied = sum(track.seconds for task in tasks for track in task.tracks if semitones_of(track)) / 3600
    copies = f" and {copied:.3f} h of copies {config.augment}" if copied else ""
    hours = f"{plan.seconds / 3600 - copied:.3f} h{part}{copies}"
    console.say(f"plan: {plan.shards} shards, {hours}; {len(unfinished)} to do")
    write_plan(config.out, plan)
    if config.text:
        texts = [config.text.text_of(track) for task in tasks for track in task.tracks]
        console.say(f"text: {sum(map(bool, texts))} of {len(texts)} tracks have some")
    failures = label_tasks(config, manifest.root, unfinished, wanted.tokenizer, catalogue) if unfinished else {}
    for name, message in sorted(failures.items()):
        print(f"error: {name}: {message}", file=sys.stderr)
    if failures:
        write_plan(config.out, plan.model_copy(update={"failed": failures}))
        print(f"{len(failures)} of {len(tasks)} shards are missing; the same command does just those", file=sys.stderr)
        return 1
    # After work, of the folder as it is then: a tar that has gone is not listed.
    catalogue = read_catalogue(config.out, catalogue.unpublished) if unfinished else catalogue
    index = write_index(config, manifest, tasks, wanted, catalogue)
    console.finish({"out": config.out, **index.model_dump(mode="json", include=SUMMARY)}, summary_lines(config, index))
    return 0


def write_index(
    config: LabelConfig, manifest: Manifest, tasks: list[ShardTask], wanted: Contents, catalogue: Catalogue
) -> ShardIndex:
    """Write label.yaml, tokenizer.json and index.json of a finished set. Raises as `build_index`."""
    files.publish_bytes(files.join(config.out, RECORDED_CONFIG), yaml.safe_dump(config.recorded()).encode())
    if wanted.tokenizer:
        files.publish_bytes(files.join(config.out, TOKENIZER_NAME), wanted.tokenizer.content)
    return build_index(
        config.out,
        [task.name for task in tasks],
        wanted.specs,
        name="mert-foundry",
        manifest_sha256=manifest.sha256,
        segment_seconds=config.segments.segment_seconds,
        audio_member=config.segments.audio,
        selection=config.selection,
        augment=config.augment,
        text=wanted.text,
        catalogue=catalogue,
    )


def label_tasks(
    config: LabelConfig, root: str, tasks: list[ShardTask], tokenizer: TextTokenizer | None, catalogue: Catalogue
) -> dict[str, str]:
    """Do the tasks on Ray; `catalogue` learns of each shard. Returns the message of each that failed."""
    # Ray takes seconds to import, and only who labels needs it: not --help, not a rerun that finds all done, not a
    # check of the config.
    from mert_foundry.jobs.cluster.ray_tasks import run_on_ray

    order = WorkOrder(
        teachers=config.teachers,
        root=root,
        out=config.out,
        device=resolve_device(config.device),
        decode_threads=config.decode_threads,
        tokenizer=tokenizer.content if tokenizer else None,
    )
    # An index must not stand beside shards that are about to change.
    files.remove(files.join(config.out, INDEX_NAME))
    saver = CatalogueSaver(catalogue)
    with Progress("label", sum(task.seconds for task in tasks)) as progress, closing(saver):
        return run_on_ray(
            tasks,
            Labeller,
            (order, TEACHERS),
            address=config.address,
            device=order.device,
            actors=config.actors,
            actors_per_gpu=LABELLERS_PER_GPU,
            wait=config.wait_for_nodes,
            report=progress.update,
            finished=saver.add,
        )


class CatalogueSaver:
    """Notes shards as they are finished, and writes them down now and then, so that another job knows them by few
    requests.
    """

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        self._saved = time.monotonic()

    def add(self, sums: RecordSums) -> None:
        """A shard is finished."""
        self._catalogue.add(sums)
        if time.monotonic() > self._saved + SAVE_EVERY or len(self._catalogue.unpublished) >= MOST_SHARDS:
            self.close()

    def close(self) -> None:
        """Write down what is not yet; what cannot be written is tried again the next time."""
        try:
            self._catalogue.publish()
        except OSError as error:
            console.warn(
                f"what is finished cannot be written down: {error}; no shard is lost, but a rerun takes longer"
            )
        self._saved = time.monotonic()


def summary_lines(config: LabelConfig, index: ShardIndex) -> Iterator[str]:
    """Hours, examples and bytes by split, codebook use, and what was dropped."""
    for split, totals in index.totals.items():
        rate = totals.bytes / totals.seconds if totals.seconds else 0
        yield (
            f"{split}: {totals.shards} shards, {totals.examples} examples, {totals.seconds / 3600:.3f} h,"
            f" {totals.bytes / 1e6:.1f} MB ({rate / 1000:.1f} kB an audio second)"
        )
    for spec in index.targets:
        summary = index.statistics[spec.name]
        if summary.kind == "discrete":
            levels = ", ".join(f"{value:.0f}" for value in summary.perplexity)
            yield f"{spec.name}: {spec.size} codebooks of {spec.codebook_size}, perplexity {levels}"
    if index.text:
        summary = index.statistics[OF_TEXT]
        assert summary.kind == "discrete", "tokens are counted"
        yield (
            f"text: vocabulary of {index.text.vocabulary_size}, {summary.usage[0]:.1%} of it used,"
            f" perplexity {summary.perplexity[0]:.0f}"
        )
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(index.dropped.items()))
    yield f"dropped segments: {dropped or 'none'}"
    yield f"shards: {config.out}"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

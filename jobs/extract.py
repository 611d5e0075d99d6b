"""Hidden states of an encoder over audio, into a zarr v3 store.

    mert extract configs/extract.yaml model=runs/demo/export input=runs/demo/shards out=FEATURES.zarr
    torchrun --nproc-per-node=8 -m jobs.extract configs/extract.yaml device=cuda model=MODEL input=SHARDS out=FEATURES.zarr
    ray job submit --working-dir . -- python -m jobs.extract configs/extract.yaml model=/abs/M input=/abs/S out=s3://B/F.zarr

model: a run folder, a checkpoint, what `mert export` or `mert import` wrote, or a Hugging Face folder of MERT or Hubert.
input: a shard folder, a manifest folder, or any folder of audio. A shard folder needs no decoder of audio files; a folder
of audio is decoded twice (by every rank, under torchrun), so make a manifest of a large one.

Under torchrun each rank does a share of the parts; else Ray does: started on this machine, unless address= names a
cluster or RAY_ADDRESS is set. A rerun does only the parts that are missing; a store of another model, input or settings
is refused unless replace=true. The same bytes come out for any number of workers. Exit code 1 when a part is missing.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import distributed

from jobs.command_line import run
from jobs.config import load_config
from jobs.console import console
from jobs.cuda_check import check_cuda
from jobs.extract_part import PartExtractor, WorkOrder, model_fingerprint
from jobs.folder_lock import locked
from jobs.output_check import check_writable
from jobs.progress import Progress
from jobs.rank_device import gpu_of_this_rank
from jobs.text_table import human_bytes, printable
from model.feature_encoder import FeatureEncoder, Precision
from model.feature_windows import WindowConfig
from model.ranks import wait_for_all
from pipeline import storage
from pipeline.feature_plan import Part, SourceTrack, frame_offsets, plan_frame_parts, plan_track_parts, tracks_digest
from pipeline.feature_store import (
    KIND,
    PARTS,
    ROOT,
    SCHEMA_VERSION,
    StoreLayout,
    description_digest,
    find_finished,
    finish_store,
    is_complete,
    prepare_store,
    refuse_other_folder,
    reopen_store,
)
from pipeline.folder_kinds import AUDIO, CHECKPOINT, MANIFEST, MODEL, RUN, SHARDS, check_input
from pipeline.frames import AUDIO_VERSION, SAMPLE_RATE
from pipeline.shard_tracks import ShardTracks

# Ranks wait at the end for the slowest.
GROUP_TIMEOUT = timedelta(days=7)
ARRAYS = {"none": ("features",), "mean": ("mean",), "mean_deviation": ("mean", "deviation")}
SEAMS = (
    "A track of at most window_frames frames is encoded whole. A longer one is cut into windows of window_frames frames"
    " that start at frames 0, step, 2 step, ... (step = window_frames - overlap_frames) while more than a window is left,"
    " and one that ends with the track. Where a window starting at frame a is followed by one starting at frame b, frames"
    " before (a + window_frames + b) // 2 come from the first and the others from the second."
)


class StorageConfig(BaseModel):
    """How rows lie in the store; a part is what a worker holds in memory and publishes as one file an array."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk_seconds: float = Field(default=10.0, gt=0, description="Frames of one layer that are read together, seconds")
    part_seconds: float = Field(
        default=600.0, gt=0, description="Frames of a part, seconds, rounded up to whole chunks (MERT 95M, 13 layers, float16: 0.9 GB)"
    )
    part_tracks: int = Field(default=64, gt=0, description="Tracks of a part when features are pooled")


class ExtractConfig(BaseModel):
    """What `mert extract` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Folder of the encoder, local")
    input: str = Field(min_length=1, description="Shard folder, manifest folder or folder of audio; local path or fsspec URL")
    out: str = Field(min_length=1, description="The zarr store; local path or fsspec URL")
    layers: Literal["all"] | list[int] = Field(
        default="all", description="Hidden states to keep: 0 is the input of the first layer, i the output of layer i"
    )
    pooling: Literal["none", "mean", "mean_deviation"] = Field(
        default="none", description="none: every frame; else mean, or mean and standard deviation, over each track"
    )
    dtype: Literal["float16", "float32"] = Field(default="float16", description="Type of the stored features")
    windows: WindowConfig = Field(default=WindowConfig(), description="How long tracks are cut")
    batch_seconds: float = Field(
        default=30.0, ge=0.001, description="Windows of exactly the same length are encoded together, so many seconds of them"
    )
    precision: Literal["auto"] | Precision = Field(
        default="auto", description="Arithmetic; auto: float32 on a CPU, tf32 on a GPU"
    )
    storage: StorageConfig = Field(default=StorageConfig(), description="How rows lie in the store")
    replace: bool = Field(default=False, description="Throw away a store of another model, input or settings")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where the encoder runs")
    actors: int = Field(
        default=0, ge=0, description="Ray workers; 0: one a CPU core, or one a GPU; more than these share them"
    )
    decode_threads: int = Field(default=2, gt=0, description="Reading threads of each worker")
    address: str | None = Field(
        default=None, description="'local', or the address of a running Ray cluster; null: RAY_ADDRESS, else local"
    )

    def resolved_precision(self) -> Precision:
        """The arithmetic that `auto` stands for."""
        if self.precision != "auto":
            return self.precision
        return "tf32" if self.device == "cuda" else "float32"


CONFIG = ExtractConfig


class Input(BaseModel):
    """What was found under `input`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["shards", "manifest", "folder"] = Field(description="What it is")
    audio: str = Field(description="Shard folder, or root of the files")
    tracks: list[SourceTrack] = Field(description="Its tracks, sorted by key")
    rejected: dict[str, str] = Field(description="Files that are no usable audio, by path: reason and detail")


class Plan(BaseModel):
    """All that is decided before the first part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: WorkOrder = Field(description="What each worker must know")
    description: dict[str, Any] = Field(description="Attributes of the store")
    table: dict[str, list] = Field(description="The track table, without `dropped`")
    parts: list[Part] = Field(description="Every part")


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 0))
    if ranks:
        check_cuda(config.device)  # without torchrun, Ray knows
    if rank == 0:
        check_out(config.out)
    # First what is quickly found wrong: to list a folder of audio takes long.
    layers = None if config.layers == "all" else config.layers
    check_input(config.model, RUN, CHECKPOINT, MODEL)
    encoder = FeatureEncoder(Path(config.model), torch.device("cpu"), "float32", layers)
    found = read_input(config, ranks)
    plan = make_plan(config, encoder, found)
    del encoder  # each worker has its own
    # Rank 0 alone looks at what is there, and joins the others, who wait for it, when it may be gone on with.
    with hold(config.out) if rank == 0 else nullcontext():
        if rank == 0:
            for path, reason in found.rejected.items():
                print(printable(f"left out: {path}: {reason}"), file=sys.stderr)
            for key in plan.description["input"]["without_a_frame"]:
                print(f"left out: {key}: too short for a frame of the model", file=sys.stderr)
            prepare_store(config.out, plan.description, config.replace)
        with rank_group(ranks):
            finished = find_finished(config.out, plan.order.layout, plan.order.digest)
            missing = [part for part in plan.parts if part.number not in finished]
            if rank == 0:
                hours = sum(part.seconds for part in plan.parts) / 3600
                console.say(f"plan: {len(found.tracks)} tracks, {hours:.3f} h in {len(plan.parts)} parts; {len(missing)} to do")
                if missing:
                    reopen_store(config.out, plan.description)
            wait_for_all()  # or a rank that is late would find the parts of another one done
            failures = work(config, plan, missing, rank, ranks) if missing else {}
            wait_for_all()
        for name, message in sorted(failures.items()):
            print(printable(f"error: {name}: {message}"), file=sys.stderr)
        return finish(config, plan) if rank == 0 else 0  # torchrun would end rank 0 for another's failure


def check_out(out: str) -> None:
    """Raise UsageError, FolderError or ValueError when no store can be made there, or something else is there; writes
    nothing.
    """
    if storage.is_local(out):
        check_writable(storage.local_path(storage.join(out, ROOT)))
    refuse_other_folder(out)


def read_input(config: ExtractConfig, ranks: int) -> Input:
    """The tracks of a shard folder, a manifest folder or a folder of audio, whichever it is.

    Raises ValueError when it is another kind of folder or the store lies in a folder of audio, FileNotFoundError when a
    manifest's audio is needed and not there, and as the readers of these do.
    """
    location, out = config.input, config.out
    kind = check_input(location, SHARDS, MANIFEST, AUDIO)
    if kind is SHARDS:
        shards = ShardTracks(location)
        tracks = shards.list_tracks()
        shards.close()
        return Input(kind="shards", audio=location, tracks=tracks, rejected={})
    # Only here are decoders of audio files needed.
    from jobs.worker_processes import examine_in_processes
    from pipeline.file_tracks import list_folder, list_manifest
    from pipeline.manifest import check_root

    if kind is MANIFEST:
        manifest, tracks = list_manifest(location)
        if config.replace or not is_complete(out):  # else there is nothing to decode
            check_root(manifest, location)
        return Input(kind="manifest", audio=manifest.root, tracks=tracks, rejected={})
    if lies_in(out, location):
        raise ValueError(f"out {out} lies in input {location}: the next run would take its files for input")
    with Progress("scan") as progress:

        def report(seconds: float, rejected: int) -> None:
            progress.update(progress.done + seconds, f"{rejected} left out" if rejected else "")

        # Each rank scans the folder, so they share the cores.
        workers = max(1, os.cpu_count() // max(1, ranks))
        tracks, rejects = list_folder(location, workers, report, examine_in_processes)
    reasons = {reject.path: f"{reject.reason}: {reject.detail}" for reject in rejects}
    return Input(kind="folder", audio=location, tracks=tracks, rejected=reasons)


def lies_in(location: str, folder: str) -> bool:
    """Whether `location` is `folder` or lies below it."""
    if storage.is_local(location) and storage.is_local(folder):
        return storage.local_path(location).resolve().is_relative_to(storage.local_path(folder).resolve())
    return PurePosixPath(location).is_relative_to(folder)


def make_plan(config: ExtractConfig, encoder: FeatureEncoder, found: Input) -> Plan:
    """Rows, parts and attributes; a pure function of model, input and settings.

    Raises ValueError when there is no track with a frame.
    """
    geometry, rate = encoder.geometry, encoder.sample_rate
    frame_rate = rate / geometry.hop
    frames = {track.key: geometry.num_frames(track.samples_at(rate)) for track in found.tracks}
    # Too short for a frame: there is nothing to keep of it.
    tracks = [track for track in found.tracks if frames[track.key]]
    if not tracks:
        raise ValueError(f"{config.input}: no track with a frame in it ({len(found.tracks)} tracks, {len(found.rejected)} rejected)")
    lengths = [frames[track.key] for track in tracks]
    layout = make_layout(config, encoder, lengths, frame_rate)
    window_frames = max(1, round(config.windows.seconds * frame_rate))
    overlap_frames = min(round(config.windows.overlap_seconds * frame_rate), window_frames - 1)
    description = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": {
            "fingerprint": model_fingerprint(encoder),
            "layers": encoder.num_layers,
            "width": encoder.width,
            "unlike_mert_95m": encoder.architecture,
            "normalised_audio": encoder.normalised,
        },
        "sample_rate": rate,
        "frame_rate": frame_rate,
        "hop": geometry.hop,
        "samples_of_a_frame": geometry.reach,
        "seams": SEAMS,
        "input": {
            "kind": found.kind,
            "tracks": len(found.tracks),
            "tracks_sha256": tracks_digest(found.tracks),
            "without_a_frame": [track.key for track in found.tracks if not frames[track.key]],
            "rejected": found.rejected,
        },
        "settings": {
            "layers": list(encoder.layers),
            "pooling": config.pooling,
            "dtype": config.dtype,
            "window_frames": window_frames,
            "overlap_frames": overlap_frames,
            "batch_samples": round(config.batch_seconds * rate),
            "precision": config.resolved_precision(),
            "part_rows": layout.part_rows,
            "chunk_rows": layout.chunk_rows,
        },
    }
    if found.kind != "shards" or rate != SAMPLE_RATE:  # else the samples are those of the shards
        description["settings"]["audio_version"] = AUDIO_VERSION
    order = WorkOrder(
        model=config.model, model_fingerprint=description["model"]["fingerprint"], audio=found.audio,
        from_shards=found.kind == "shards", out=config.out, layout=layout, digest=description_digest(description),
        window_frames=window_frames, overlap_frames=overlap_frames, batch_samples=round(config.batch_seconds * rate),
        precision=config.resolved_precision(), decode_threads=config.decode_threads,
    )
    plan_parts = plan_frame_parts if layout.row == "frame" else plan_track_parts
    table = {
        "key": [track.key for track in tracks],
        "seconds": [track.seconds for track in tracks],
        "offset": frame_offsets(lengths)[:-1].tolist(),
        "length": lengths,
        "split": [track.split for track in tracks],
        "group": [track.group for track in tracks],
    }
    return Plan(order=order, description=description, table=table, parts=plan_parts(tracks, lengths, layout.part_rows, frame_rate))


def make_layout(config: ExtractConfig, encoder: FeatureEncoder, lengths: list[int], frame_rate: float) -> StoreLayout:
    """Arrays for tracks of `lengths` frames."""
    if config.pooling == "none":
        chunk_rows = max(1, round(config.storage.chunk_seconds * frame_rate))
        part_rows = max(1, -(-round(config.storage.part_seconds * frame_rate) // chunk_rows)) * chunk_rows
    else:
        chunk_rows = part_rows = config.storage.part_tracks
    return StoreLayout(
        arrays=ARRAYS[config.pooling], row="frame" if config.pooling == "none" else "track",
        rows=sum(lengths) if config.pooling == "none" else len(lengths),
        layers=encoder.layers, width=encoder.width, dtype=config.dtype, part_rows=part_rows, chunk_rows=chunk_rows,
    )


@contextmanager
def hold(out: str) -> Iterator[None]:
    """Keep other processes out of a local store."""
    with locked(storage.local_path(storage.join(out, PARTS)), "extracting") if storage.is_local(out) else nullcontext():
        yield


@contextmanager
def rank_group(ranks: int) -> Iterator[None]:
    """Join torchrun's other ranks, if there are any."""
    if ranks > 1:
        distributed.init_process_group("gloo", timeout=GROUP_TIMEOUT)
    try:
        yield
    finally:
        if ranks > 1:
            distributed.destroy_process_group()


def work(config: ExtractConfig, plan: Plan, parts: list[Part], rank: int, ranks: int) -> dict[str, str]:
    """Do the parts: this rank's share under torchrun, all of them on Ray without; the message of each that failed."""
    if not ranks:
        # Ray comes with the `label` extra, which torchrun does without.
        from jobs.ray_tasks import run_on_ray

        with Progress("extract", sum(part.seconds for part in parts)) as progress:
            return run_on_ray(
                parts, PartExtractor, (plan.order, config.device), address=config.address, device=config.device,
                actors=config.actors, report=progress.update,
            )
    # Neighbouring parts, which may share a track.
    share = parts[len(parts) * rank // ranks : len(parts) * (rank + 1) // ranks]
    if not share:
        return {}
    device = f"cuda:{gpu_of_this_rank()}" if config.device == "cuda" else "cpu"
    title = "extract" if ranks == 1 else f"extract, rank 0's {len(share)} of {len(parts)} parts"
    return work_on_rank(plan.order, share, device, title if rank == 0 else None)


def work_on_rank(order: WorkOrder, parts: list[Part], device: str, title: str | None) -> dict[str, str]:
    """Do parts in this process; the message of each that failed. `title`: of the progress of these parts, if shown."""
    failures: dict[str, str] = {}
    done = 0.0
    extractor = PartExtractor(order, device)
    with Progress(title, sum(part.seconds for part in parts)) if title else nullcontext() as progress:

        def report(seconds: float) -> None:
            nonlocal done
            done += seconds
            if progress:
                progress.update(done, f"{len(failures)} failed" if failures else "")

        for part in parts:
            try:
                extractor.run(part, report)
            except (OSError, ValueError) as error:
                failures[part.name] = f"{type(error).__name__}: {error}"
    return failures


def finish(config: ExtractConfig, plan: Plan) -> int:
    """Complete the store when all parts are there; returns the exit code."""
    records = find_finished(config.out, plan.order.layout, plan.order.digest)
    missing = len(plan.parts) - len(records)
    if missing:
        print(f"{missing} of {len(plan.parts)} parts are missing; the same command does just those", file=sys.stderr)
        return 1
    dropped = {key: reason for record in records.values() for key, reason in record.dropped.items()}
    if not is_complete(config.out):
        finish_store(config.out, plan.order.layout, plan.description, plan.table, dropped)
    for key, reason in sorted(dropped.items()):
        print(printable(f"dropped: {key}: {reason}"), file=sys.stderr)
    layout = plan.order.layout
    stored = sum(size for record in records.values() for size, _ in record.files.values())
    raw = layout.rows * len(layout.layers) * layout.width * (2 if layout.dtype == "float16" else 4) * len(layout.arrays)
    shape = f"[{layout.rows} {layout.row}s, {len(layout.layers)} layers, {layout.width}]"
    tracks, rejected = len(plan.table["key"]), plan.description["input"]["rejected"]
    console.finish(
        {"out": config.out, "arrays": list(layout.arrays), "rows": layout.rows, "layers": list(layout.layers),
         "width": layout.width, "dtype": layout.dtype, "tracks": tracks, "dropped": dropped, "rejected": rejected, "bytes": stored},
        [
            *(f"{name}: {layout.dtype} {shape}" for name in layout.arrays),
            f"tracks: {tracks}, {len(dropped)} dropped, {len(rejected)} files left out",
            f"stored: {human_bytes(stored)}, {stored / raw:.0%} of {human_bytes(raw)}",
            f"features: {config.out}",
        ],
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

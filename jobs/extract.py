"""Hidden states of an encoder over audio, into a zarr v3 store.

    mert extract configs/extract.yaml model=runs/demo/export input=runs/demo/shards out=FEATURES.zarr
    torchrun --nproc-per-node=8 -m mert_foundry.jobs.extract configs/extract.yaml device=cuda model=MODEL input=SHARDS out=FEATURES.zarr
    ray job submit --working-dir . -- python -m mert_foundry.jobs.extract configs/extract.yaml model=/abs/M input=/abs/S out=s3://B/F.zarr

model: a run folder, a checkpoint, what `mert export` or `mert import` wrote, or a Hugging Face folder of MERT or Hubert.
input: a shard folder, a manifest folder, or any folder of audio. A shard folder needs no decoder of audio files; a folder
of audio is decoded twice (by every rank, under torchrun), so make a manifest of a large one.

Under torchrun each rank does a share of the parts; else Ray does: started on this machine, unless address= names a
cluster or RAY_ADDRESS is set. A rerun does only the parts that are missing; a store of another model, input or settings
is refused unless overwrite=true. The same bytes come out for any number of workers. Exit code 1 when a part is missing.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from mert_foundry.jobs.cluster.torchrun import gpu_of_this_rank, rank_group
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_cuda, check_precision, check_writable, locked, resolve_device
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.command.text import human_bytes, printable
from mert_foundry.jobs.extraction.part import PartExtractor, WorkOrder
from mert_foundry.jobs.extraction.plan import Plan, in_names_of, make_plan
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.extraction.source import read_input
from mert_foundry.model.features.feature_encoder import FeatureEncoder
from mert_foundry.model.training.ranks import wait_for_all
from mert_foundry.pipeline.features.plan import (
    Part,
)
from mert_foundry.pipeline.features.resume import (
    PARTS,
    ROOT,
    begun_as,
    find_finished,
    is_complete,
    prepare_store,
    refuse_other_folder,
    reopen_store,
)
from mert_foundry.pipeline.features.store import finish_store
from mert_foundry.pipeline.storage import files as storage
from mert_foundry.pipeline.storage.folder_kinds import CHECKPOINT, MODEL, RUN, check_input

CONFIG = ExtractConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    config = config.model_copy(update={"device": resolve_device(config.device)})
    check_precision("precision", config.precision, config.device)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 0))
    if ranks:
        check_cuda(config.device)  # without torchrun, Ray knows
    if rank == 0:
        check_out(config.out)
    # First what is quickly found wrong: to list a folder of audio takes long.
    layers = None if config.layers == "all" else config.layers
    check_input(config.model, RUN, CHECKPOINT, MODEL)
    encoder = FeatureEncoder(Path(config.model), torch.device("cpu"), "fp32", layers)
    found = read_input(config, ranks)
    plan = make_plan(config, encoder, found)
    plan = in_names_of(plan, begun_as(config.out, plan.description))
    del encoder  # each worker has its own
    # Rank 0 alone looks at what is there, and joins the others, who wait for it, when it may be gone on with.
    with hold(config.out) if rank == 0 else nullcontext():
        if rank == 0:
            for path, reason in found.rejected.items():
                print(printable(f"left out: {path}: {reason}"), file=sys.stderr)
            for key in plan.description["input"]["without_a_frame"]:
                print(f"left out: {key}: too short for a frame of the model", file=sys.stderr)
            prepare_store(config.out, plan.description, config.overwrite)
        with rank_group(ranks):
            finished = find_finished(config.out, plan.order.layout, plan.order.digest)
            missing = [part for part in plan.parts if part.number not in finished]
            if rank == 0:
                hours = sum(part.seconds for part in plan.parts) / 3600
                console.say(
                    f"plan: {len(found.tracks)} tracks, {hours:.3f} h in {len(plan.parts)} parts; {len(missing)} to do"
                )
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


@contextmanager
def hold(out: str) -> Iterator[None]:
    """Keep other processes out of a local store."""
    with locked(storage.local_path(storage.join(out, PARTS)), "extracting") if storage.is_local(out) else nullcontext():
        yield


def work(config: ExtractConfig, plan: Plan, parts: list[Part], rank: int, ranks: int) -> dict[str, str]:
    """Do the parts: this rank's share under torchrun, all of them on Ray without; the message of each that failed."""
    if not ranks:
        # Ray comes with the `label` extra, which torchrun does without.
        from mert_foundry.jobs.cluster.ray_tasks import run_on_ray

        with Progress("extract", sum(part.seconds for part in parts)) as progress:
            return run_on_ray(
                parts,
                PartExtractor,
                (plan.order, config.device),
                address=config.address,
                device=config.device,
                actors=config.actors,
                report=progress.update,
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

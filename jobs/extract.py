"""Features of a model over audio, into a zarr v3 store: hidden states of an encoder, or a baseline such as log-mel.

    mert extract configs/extract.yaml model=runs/demo/export input=runs/demo/shards out=FEATURES.zarr
    mert extract configs/extract.yaml model=runs/demo/export input=CLIPS.csv out=POOLED.zarr pooling=mean_std
    mert extract configs/extract.yaml model=log_mel input=CLIPS.csv out=LOGMEL.zarr pooling=mean_std
    torchrun --nproc-per-node=8 -m mert_foundry.jobs.extract configs/extract.yaml device=cuda model=MODEL input=SHARDS
    out=FEATURES.zarr ray job submit --working-dir . -- python -m mert_foundry.jobs.extract configs/extract.yaml
    model=/abs/M input=/abs/S out=s3://B/F.zarr

model: a run folder, a checkpoint, what `mert export` or `mert import` wrote, or a Hugging Face folder of MERT or
Hubert; or one of the baselines log_mel, cqt, chroma, mfcc, musicnn, codec:WEIGHTS and random:CONFIG.yaml@SEED.
input: a shard folder, a manifest folder, any folder of audio, or a table of clips (.csv, .jsonl) with the column path,
if you like start and end in seconds, and columns of your own. A shard folder needs no decoder of audio files; a folder
of audio is scanned before the first run, which decodes it once more than a table or a manifest.

Under torchrun each rank does a share of the parts. Else processes of this machine do them, one a core; or Ray, when
address= names a cluster, RAY_ADDRESS is set, or the device is cuda. A rerun does only the parts that are missing; a
store of another model, input or settings is refused unless overwrite=true. The same bytes come out for any number of
workers. Exit code 1 when a part is missing.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

from mert_foundry.jobs.cluster.torchrun import gpu_of_this_rank
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_cuda
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.command.text import human_bytes, printable
from mert_foundry.jobs.extraction.part import PartExtractor
from mert_foundry.jobs.extraction.plan import Plan
from mert_foundry.jobs.extraction.run import (
    Extraction,
    Ranks,
    StoreResult,
    missing_parts,
    resolve,
    run_extraction,
    unit_of,
    work_here,
)
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.extraction.source import Input
from mert_foundry.pipeline.features.plan import Part

CONFIG = ExtractConfig


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    config = resolve(load_config(CONFIG, arguments))
    ranks = Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 0)))
    if ranks.count:
        check_cuda(config.device)  # without torchrun, Ray knows
    done = run_extraction(config, partial(work, config, ranks), ranks, report)
    for name, message in sorted(done.failures.items()):
        print(printable(f"error: {name}: {message}"), file=sys.stderr)
    return end(config, done) if ranks.is_first else 0  # torchrun would end rank 0 for another's failure


def report(plan: Plan, found: Input, missing: list[Part]) -> None:
    """What was found, and what there is to do."""
    report_rejected(plan, found)
    hours = "hours are not known yet," if plan.seconds is None else f"{plan.seconds / 3600:.3f} h"
    if found.kind == "documents":
        hours = f"{sum(plan.table['length']):,} tokens"
    console.say(f"plan: {len(plan.table['key'])} tracks, {hours} in {len(plan.parts)} parts; {len(missing)} to do")


def report_rejected(plan: Plan, found: Input) -> None:
    """One line for each file and track without rows."""
    for path, reason in found.rejected.items():
        print(printable(f"rejected: {path}: {reason}"), file=sys.stderr)
    if found.kind != "table":  # whose lines all have rows, and may be dropped
        for key in plan.description["input"]["without_a_frame"]:
            print(f"rejected: {key}: too short for a frame of the model", file=sys.stderr)


def work(config: ExtractConfig, ranks: Ranks, plan: Plan, parts: list[Part]) -> dict[str, str]:
    """Do the parts: this rank's share under torchrun, all of them without; the message of each that failed."""
    if not ranks.count:
        if config.device == "cuda" or config.address or os.environ.get("RAY_ADDRESS"):
            return work_on_ray(config, plan, parts)
        return work_here(plan, parts, config.device, "extract", config.actors or os.cpu_count() or 1)
    # Neighbouring parts, which may share a track.
    share = parts[len(parts) * ranks.rank // ranks.count : len(parts) * (ranks.rank + 1) // ranks.count]
    if not share:
        return {}
    device = f"cuda:{gpu_of_this_rank()}" if config.device == "cuda" else "cpu"
    title = "extract" if ranks.count == 1 else f"extract, rank 0's {len(share)} of {len(parts)} parts"
    return work_here(plan, share, device, title if ranks.is_first else None, 1)


def work_on_ray(config: ExtractConfig, plan: Plan, parts: list[Part]) -> dict[str, str]:
    """Do the parts on Ray actors; the message of each that failed."""
    # Ray comes with the `label` extra, which torchrun and processes do without.
    from mert_foundry.jobs.cluster.ray_tasks import Task, Worker, run_on_ray

    total = None if plan.seconds is None else sum(part.seconds for part in parts)
    device: Literal["cpu", "cuda"] = "cuda" if config.device == "cuda" else "cpu"
    with Progress("extract", total, unit=unit_of(plan)) as progress:

        def advance(done: float, notes: str) -> None:
            # Where lengths are not known, the end of a part takes its seconds away.
            progress.update(max(done, progress.done), notes)

        return run_on_ray(
            cast("Sequence[Task]", parts),
            cast("type[Worker]", PartExtractor),
            (plan.order, config.device),
            address=config.address,
            device=device,
            actors=config.actors,
            report=advance,
        )


def end(config: ExtractConfig, done: Extraction) -> int:
    """Say what the store is, or how many of its parts are missing; returns the exit code."""
    plan = done.plan
    if done.result is None:
        missing = len(missing_parts(config, plan))
        print(f"{missing} of {len(plan.parts)} parts are missing; the same command does just those", file=sys.stderr)
        return 1
    for key, reason in sorted(done.result.dropped.items()):
        print(printable(f"dropped: {key}: {reason}"), file=sys.stderr)
    report_result(config, plan, done.result)
    return 0


def report_result(config: ExtractConfig, plan: Plan, result: StoreResult) -> None:
    """What was made."""
    layout = plan.order.layout
    raw = layout.rows * len(layout.layers) * layout.width * (2 if layout.dtype == "float16" else 4) * len(layout.arrays)
    shape = f"[{layout.rows} {layout.row}s, {len(layout.layers)} layers, {layout.width}]"
    tracks, rejected = len(plan.table["key"]), plan.description["input"]["rejected"]
    console.finish(
        {"out": config.out, "arrays": list(layout.arrays), "rows": layout.rows, "layers": list(layout.layers),
         "width": layout.width, "dtype": layout.dtype, "tracks": tracks, "dropped": result.dropped,
         "rejected": rejected,
         "bytes": result.bytes},
        [
            *(f"{name}: {layout.dtype} {shape}" for name in layout.arrays),
            f"tracks: {tracks}, {len(result.dropped)} dropped, {len(rejected)} files rejected",
            f"stored: {human_bytes(result.bytes)}, {result.bytes / raw:.0%} of {human_bytes(raw)}",
            f"features: {config.out}",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

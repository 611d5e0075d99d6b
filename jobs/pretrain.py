"""Pre-train the encoder from a shard folder; run again, it goes on from the newest checkpoint.

    mert pretrain configs/tiny.yaml shards=SHARD_FOLDER out=RUN_FOLDER
    torchrun --nproc-per-node=8 -m jobs.pretrain configs/mert_95m.yaml shards=SHARD_FOLDER out=RUN_FOLDER

SIGTERM or Ctrl-C: a checkpoint is written, then the run ends with exit code 1, since it is not finished.
"""

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch import distributed

from jobs.command_line import run
from jobs.config import load_config
from jobs.training_report import TrainingReport
from model.encoder import EncoderConfig
from model.heads import HeadSpec
from model.pretrain_model import ObjectiveConfig, build_pretrain_model
from model.publish import publish_file
from model.trainer import Batch, Position, TrainerConfig, train
from pipeline.batch_stream import BatchStream, StreamConfig, validation_batches
from pipeline.shard_index import ShardIndex, load_index

GROUP_TIMEOUT = timedelta(minutes=30)
RUN_CONFIG = "config.yaml"
LOCK = ".lock"
# What makes another model of a run; other keys may change between two starts of it.
FIXED_KEYS = ("seed", "encoder", "objective")


class PretrainConfig(BaseModel):
    """What `mert pretrain` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: str = Field(description="Shard folder, a local path or fsspec URL")
    out: str = Field(description="Run folder, local")
    seed: int = Field(default=0, ge=0, description="Seed of weights, order, crops, masks, mixture and dropout")
    train_split: str = Field(default="train", description="Split to train on")
    valid_split: str | None = Field(default="valid", description="Split to validate on; null for none")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")
    stream: StreamConfig = Field(description="Batches")
    encoder: EncoderConfig = Field(default=EncoderConfig(), description="Architecture")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="What is predicted")
    trainer: TrainerConfig = Field(default=TrainerConfig(), description="How it is trained")


class RunDescription(BaseModel):
    """What is saved beside every checkpoint: the resolved config, the heads, and what the data were."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: PretrainConfig = Field(description="The resolved config")
    heads: list[HeadSpec] = Field(description="Heads, from the targets of index.json")
    data: dict = Field(description="Digest, hours and teachers of the shard set")


def main(arguments: list[str]) -> int:
    config = load_config(PretrainConfig, arguments)
    with process_group(config.device) as (rank, world_size, device):
        index = load_index(config.shards)
        heads = heads_of(index)
        check_fit(config, index)
        model = build_pretrain_model(config.encoder, heads, config.objective, config.seed)
        description = RunDescription(config=config, heads=heads, data=describe_data(index))
        report = TrainingReport(config.trainer.schedule.total_steps)
        with stop_on_signal() as stop, contextlib.ExitStack() as streams:
            if rank == 0:
                streams.enter_context(lock_folder(Path(config.out)))
                report.note(save_description(Path(config.out), description))

            def stream(position: Position | None) -> Iterator[tuple[Batch, Position]]:
                return streams.enter_context(
                    BatchStream(
                        config.shards, config.train_split, config.stream, config.seed, rank, world_size, position
                    )
                )

            result = train(
                model, stream, validation_of(config, rank, world_size), config.trainer, Path(config.out),
                description.model_dump(mode="json"), config.seed, index.sample_rate, device, stop, report,
            )
        if rank == 0:
            report.close()
            print(f"{result.status} after step {result.step}; checkpoint: {result.checkpoint}")
            if result.status == "stopped":
                print(f"{config.trainer.schedule.total_steps - result.step} steps are left; the same command goes on", file=sys.stderr)
    return 0 if result.status == "done" else 1


@contextlib.contextmanager
def process_group(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """Join torchrun's process group if there is one; gives rank, world size and this rank's device."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_cuda and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no CUDA device on this machine")
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    if world_size > 1:
        distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=GROUP_TIMEOUT)
    try:
        yield rank, world_size, place
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def lock_folder(out: Path) -> BinaryIO:
    """Hold the run folder until this process ends, however it ends.

    Raises:
        ValueError: another process holds it, such as a rank that outlived its launcher.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / LOCK, "wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{out}: another process is training in this run folder") from error
    return lock


def heads_of(index: ShardIndex) -> list[HeadSpec]:
    """One head for each target of the shard set."""
    return [
        HeadSpec(name=spec.name, kind=spec.kind, size=spec.size, codebook_size=spec.codebook_size)
        for spec in index.targets
    ]


def check_fit(config: PretrainConfig, index: ShardIndex) -> None:
    """Raise ValueError when shards and encoder disagree on the hop, or a split is not there."""
    hop = config.encoder.frontend.hop
    if hop != index.hop:
        raise ValueError(f"the front-end's strides multiply to {hop} samples, the shards have a hop of {index.hop}")
    index.shards(config.train_split)
    if config.valid_split is not None and config.valid_split not in index.totals:
        raise ValueError(
            f"{config.shards}: no split {config.valid_split!r} to validate on, only {', '.join(sorted(index.totals))};"
            " valid_split=null trains without validation"
        )


def validation_of(config: PretrainConfig, rank: int, world_size: int) -> Callable[[], Iterator[Batch]] | None:
    """Fresh validation batches at each call, or None without a split to validate on."""
    if config.valid_split is None:
        return None
    return lambda: validation_batches(config.shards, config.valid_split, config.stream, rank, world_size)


def describe_data(index: ShardIndex) -> dict:
    """What a checkpoint or model card says about the data."""
    return {
        "index_sha256": index.digest(),
        "manifest_sha256": index.manifest_sha256,
        "hours": {split: round(totals.seconds / 3600, 4) for split, totals in index.totals.items()},
        "sample_rate": index.sample_rate,
        "teachers": {spec.name: spec.teacher | {"fingerprint": spec.fingerprint} for spec in index.targets},
    }


def save_description(out: Path, description: RunDescription) -> str:
    """Write the run's config.yaml; says what changed since the last start.

    Raises:
        ValueError: a key that makes another model differs, naming both values.
    """
    values = description.model_dump(mode="json")
    path = out / RUN_CONFIG
    changes = []
    if path.exists():
        before = flatten(yaml.safe_load(path.read_text())["config"])
        now = flatten(values["config"])
        changes = [(key, before.get(key), now.get(key)) for key in sorted(before | now) if before.get(key) != now.get(key)]
        for key, old, new in changes:
            if key.split(".")[0] in FIXED_KEYS:
                raise ValueError(f"{path}: {key} was {old!r} in this run, it is {new!r} now; use another out folder")
    publish_file(path, yaml.safe_dump(values, sort_keys=False).encode())
    return "; ".join(f"{key}: {old!r} became {new!r}" for key, old, new in changes)


def flatten(values: dict, prefix: str = "") -> dict:
    """Nested mappings to dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A question whether SIGTERM or SIGINT has come; a second SIGINT interrupts at once."""
    received = []

    def remember(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

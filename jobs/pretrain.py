"""Pre-train the encoder from a shard folder; run again, it goes on from the newest checkpoint.

    mert pretrain configs/tiny.yaml shards=SHARD_FOLDER out=RUN_FOLDER
    torchrun --nproc-per-node=8 -m jobs.pretrain configs/mert_95m.yaml shards=SHARD_FOLDER out=RUN_FOLDER
    mert pretrain configs/mert_95m.yaml shards=SHARD_FOLDER out=RUN_FOLDER initial=IMPORTED_OR_EXPORTED_FOLDER

`initial` is read when a run begins, not when it goes on from a checkpoint of its own.
SIGTERM or Ctrl-C: a checkpoint is written, then the run ends with exit code 1, since it is not finished.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import distributed

from jobs.command_line import run
from jobs.config import explain, load_config
from jobs.console import console
from jobs.cuda_check import check_cuda
from jobs.folder_lock import locked
from jobs.rank_device import gpu_of_this_rank
from jobs.training_report import TrainingReport
from model.architecture import architecture_differences
from model.checkpoint import latest_checkpoint, list_checkpoints
from model.encoder import EncoderConfig
from model.heads import HeadSpec
from model.load import read_model
from model.pretrain_model import ObjectiveConfig, PretrainModel, build_pretrain_model
from model.publish import publish_file
from model.ranks import wait_for_all
from model.stored_model import StoredModel, select
from model.target_alignment import target_stride
from model.trainer import Batch, Position, TrainerConfig, train
from pipeline.batch_stream import BatchStream, StreamConfig, validation_batches
from pipeline.folder_kinds import CHECKPOINT, MODEL, RUN, check_input, check_output
from pipeline.shard_index import ShardIndex, load_index
from pipeline.storage import local_path

GROUP_TIMEOUT = timedelta(minutes=30)
RUN_CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
# What makes another run; other keys may change between two starts of it.
FIXED_KEYS = (
    "config.seed",
    "config.encoder",
    "config.objective",
    "config.train_split",
    "config.stream.shuffle_window",
    "data.index_sha256",
)
FREE_KEYS = ("activation_checkpointing",)  # by their last part, also within the fixed ones: memory against time


class PretrainConfig(BaseModel):
    """What `mert pretrain` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: str = Field(description="Shard folder, a local path or fsspec URL")
    out: str = Field(description="Run folder, local")
    initial: str | None = Field(
        default=None,
        description="Local folder with the first weights: of mert import, mert export, a run, a checkpoint; null: random",
    )
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


CONFIG = PretrainConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out = local_path(config.out)
    if rank == 0:
        check_output(config.out, RUN)
    index = load_index(config.shards)
    initial = read_initial(config, out, index, rank)
    config = settle_encoder(config, initial, out)
    description = RunDescription(config=config, heads=heads_of(index), data=describe_data(index))
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(TrainingReport(config.trainer.schedule.total_steps, shown=rank == 0))
        if rank == 0:
            # Before it joins the others, who wait for it: so a refusal is one line, and torchrun ends the rest.
            check_fit(config, index, world_size)
            stack.enter_context(locked(out, "training"))
            report.note(save_description(out, description))
            report.note(warn_of_lone_rows(config, world_size))
        device = stack.enter_context(process_group(config.device, world_size))
        stop = stack.enter_context(stop_on_signal())

        def stream(position: Position | None) -> Iterator[tuple[Batch, Position]]:
            return stack.enter_context(
                BatchStream(config.shards, config.train_split, config.stream, config.seed, rank, world_size, position)
            )

        model = build_pretrain_model(config.encoder, description.heads, config.objective, config.seed)
        if initial is not None:
            taken = begin_from(model, initial, {spec.name: spec.fingerprint for spec in index.targets})
            report.note(taken if rank == 0 else "")
        result = train(
            model,
            stream,
            validation_of(config, rank, world_size),
            config.trainer,
            out,
            description.model_dump(mode="json"),
            config.seed,
            index.sample_rate,
            device,
            stop,
            report,
        )
    if rank == 0:
        told = {"status": result.status, "step": result.step, "checkpoint": str(result.checkpoint)}
        console.finish(told, [f"{result.status} after step {result.step}; checkpoint: {result.checkpoint}"])
        if result.status == "stopped":
            left = config.trainer.schedule.total_steps - result.step
            print(f"{left} steps are left; the same command goes on", file=sys.stderr)
    return 0 if result.status == "done" else 1


@contextlib.contextmanager
def process_group(device: str, world_size: int) -> Iterator[torch.device]:
    """Join torchrun's process group if there are several ranks; gives this rank's device."""
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    check_cuda(device)
    place = torch.device("cuda", gpu_of_this_rank()) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    if world_size > 1:
        distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=GROUP_TIMEOUT)
    try:
        yield place
        wait_for_all()  # gloo may abort a rank whose peer has gone
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def heads_of(index: ShardIndex) -> list[HeadSpec]:
    """One head for each target of the shard set."""
    return [HeadSpec(**spec.model_dump(include=set(HeadSpec.model_fields))) for spec in index.targets]


def read_initial(config: PretrainConfig, out: Path, index: ShardIndex, rank: int) -> StoredModel | None:
    """What a run that begins takes its first weights from; None for random ones, or when there are checkpoints.

    Raises:
        ValueError: no such folder or one of another kind, audio of another rate than the shards', or only torn checkpoints.
    """
    if config.initial is None:
        return None
    if list_checkpoints(out / CHECKPOINTS):
        if rank == 0 and latest_checkpoint(out / CHECKPOINTS)[0] is None:
            raise ValueError(f"{out}: all its checkpoints are torn; remove them to begin anew from {config.initial}")
        return None
    check_input(config.initial, RUN, CHECKPOINT, MODEL)
    initial = read_model(local_path(config.initial))
    if initial.sample_rate != index.sample_rate:
        raise ValueError(f"{config.initial} is for audio at {initial.sample_rate} Hz, the shards are at {index.sample_rate} Hz")
    return initial


def settle_encoder(config: PretrainConfig, initial: StoredModel | None, out: Path) -> PretrainConfig:
    """With `initial`, what the config does not say of the encoder comes from there (later from the run's own config).

    Raises:
        ValueError: the config says something else that makes another architecture; key and both values are named.
    """
    if config.initial is None:
        return config
    if initial is not None:
        before = initial.encoder
    else:
        before = EncoderConfig(**yaml.safe_load((out / RUN_CONFIG).read_text())["config"]["encoder"])
    said = config.encoder.model_dump(exclude_unset=True) if "encoder" in config.model_fields_set else {}
    try:
        encoder = EncoderConfig(**merge(before.model_dump(), said))
    except ValidationError as error:
        faults = "; ".join(explain(error, EncoderConfig))
        raise ValueError(f"{config.initial} and what the config says of the encoder do not go together: {faults}") from error
    if initial is not None:
        different = architecture_differences(encoder, before).items()
        if different:
            faults = "; ".join(f"encoder.{key} is {ours!r} in the config, {theirs!r} there" for key, (ours, theirs) in different)
            raise ValueError(f"{config.initial} has another encoder: {faults}")
    return config.model_copy(update={"encoder": encoder})


def merge(values: dict, changes: dict) -> dict:
    """Nested mappings, the second laid over the first; one of another `kind` takes its place."""
    if "kind" in changes and changes["kind"] != values.get("kind"):
        return changes
    inner = {
        key: merge(values[key], change) if isinstance(change, dict) and isinstance(values.get(key), dict) else change
        for key, change in changes.items()
    }
    return {**values, **inner}


def begin_from(model: PretrainModel, initial: StoredModel, fingerprints: dict[str, str]) -> str:
    """Load the encoder, and the heads that fit: the same target of the same teacher. Says which heads stay new."""
    model.encoder.load_state_dict(initial.weights)
    stored = {spec.name: spec for spec in initial.heads}
    taken = []
    for spec in model.head_specs:
        weights = select(initial.head_weights, f"{spec.name}.")
        own = {name: weight.shape for name, weight in model.heads[spec.name].state_dict().items()}
        same_teacher = initial.fingerprints.get(spec.name) == fingerprints[spec.name]
        if stored.get(spec.name) == spec and same_teacher and {n: w.shape for n, w in weights.items()} == own:
            model.heads[spec.name].load_state_dict(weights)
            taken.append(spec.name)
    new = [spec.name for spec in model.head_specs if spec.name not in taken]
    return f"first weights: encoder and {', '.join(taken) or 'no'} heads as stored; new heads: {', '.join(new) or 'none'}"


def check_fit(config: PretrainConfig, index: ShardIndex, world_size: int) -> None:
    """Raise ValueError when shards, encoder and ranks do not fit each other, or a split has no example."""
    frontend = config.encoder.frontend
    hop = frontend.hop
    if frontend.sample_rate not in (None, index.sample_rate):
        raise ValueError(f"the front-end is for audio at {frontend.sample_rate} Hz, the shards are at {index.sample_rate} Hz")
    if hop % index.hop:
        raise ValueError(f"the encoder's hop is {hop} samples, no multiple of the shards' hop of {index.hop}")
    for spec in index.targets:
        target_stride(spec.name, spec.frame_rate, hop)
    if config.stream.batch_size % world_size:
        raise ValueError(f"stream.batch_size {config.stream.batch_size} is not a multiple of the {world_size} ranks")
    filled = [split for split, totals in sorted(index.totals.items()) if totals.examples]
    for split, use, hint in (
        (config.train_split, "train", ""),
        (config.valid_split, "validate", "; valid_split=null trains without validation"),
    ):
        if split is not None and split not in filled:
            raise ValueError(f"{config.shards}: no split {split!r} to {use} on, only {', '.join(filled)}{hint}")


def warn_of_lone_rows(config: PretrainConfig, world_size: int) -> str:
    """A word when the mixture can do nothing, since it takes its snippets from other rows of the same rank."""
    if config.trainer.mixture is None or config.stream.batch_size > world_size:
        return ""
    return "trainer.mixture does nothing: stream.batch_size leaves one example a rank, with no other to take snippets from"


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
        ValueError: there are checkpoints, and a key that makes another run differs (both values are named).
    """
    values = description.model_dump(mode="json")
    path = out / RUN_CONFIG
    changes = []
    # Without a checkpoint there is nothing to go on from, so nothing that must stay.
    if path.exists() and list_checkpoints(out / CHECKPOINTS):
        before, now = flatten(yaml.safe_load(path.read_text())), flatten(values)
        keys = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
        for key in keys:
            name, old, new = key.removeprefix("config."), before.get(key), now.get(key)
            if key.split(".")[-1] not in FREE_KEYS and any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED_KEYS):
                raise ValueError(f"{path}: {name} was {old!r} in this run, it is {new!r} now; use another out folder")
            changes.append(f"{name}: {old!r} became {new!r}")
    publish_file(path, yaml.safe_dump(values, sort_keys=False).encode())
    return "; ".join(changes)


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
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

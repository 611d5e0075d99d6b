"""What a pre-training run is: its resolved config, heads and data, saved beside the run and compared
when it goes on.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mert_foundry.jobs.command.preflight import Device
from mert_foundry.jobs.pretraining.shard_sets import Shards, check_weights, find_exchanged, find_other_teacher
from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, check_memory
from mert_foundry.model.objective.target_alignment import target_stride
from mert_foundry.model.objective.text_memory import TextMemoryConfig
from mert_foundry.model.objective.trivial import TrivialScores
from mert_foundry.model.runs.checkpoint import CHECKPOINTS, list_checkpoints
from mert_foundry.model.runs.stored_config import read_run_config
from mert_foundry.model.training.sharding import check_replicas
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import parse_values
from mert_foundry.pipeline.stream.batch_stream import StreamConfig
from mert_foundry.pipeline.stream.set_mixture import MissingTargets, SetMixture

RUN_CONFIG = "config.yaml"
# What makes another run; other keys may change between two starts of it.
FIXED_KEYS = (
    "config.seed",
    "config.encoder",
    "config.memory",
    "config.objective",
    "config.train_split",
    "config.stream.shuffle_window",
)
SET_FOR_PROBE = ("model", "baselines", "compare_with", "every_checkpoint", "follow", "out", "score")
DERIVED_KEYS = ("trivial.", "data.")  # they follow from other keys, which are said
FREE_KEYS = ("activation_checkpointing",)  # by their last part, also within the fixed ones: memory against time


class PretrainConfig(BaseModel):
    """What `mert pretrain` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: Shards = Field(
        description="Shard folder, a local path or fsspec URL; or several to draw from:"
        " [{path: A, weight: 2}, {path: B, weight: 1}]"
    )
    mixing_temperature: float = Field(
        default=1.0,
        gt=0.0,
        allow_inf_nan=False,
        description="Several sets without weights have hours^(1/T) of the rows: 1 by hours, 2 by their root, large:"
        " alike",
    )
    missing_targets: MissingTargets = Field(
        default="stop",
        description="stop: several sets must have the same targets; mask: rows of a set without a target do not count"
        " in its loss",
    )
    out: str = Field(description="Run folder, local")
    initial: str | None = Field(
        default=None,
        description="First weights: a local folder of mert import or mert export, a run, a checkpoint, RUN@ema, or"
        " foundry-encoder; null: random",
    )
    seed: int = Field(default=0, ge=0, description="Seed of weights, order, crops, masks, mixture and dropout")
    train_split: str = Field(default="train", description="Split to train on")
    valid_split: str | None = Field(default="valid", description="Split to validate on; null for none")
    device: Device = Field(default="auto", description="Where it is trained; auto: cuda where there is one")
    stream: StreamConfig = Field(description="Batches")
    encoder: EncoderConfig = Field(default=EncoderConfig(), description="Architecture")
    memory: TextMemoryConfig | None = Field(
        default=None, description="What the encoder's layers with reads_memory read beside the audio; null: nothing"
    )
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="What is predicted")
    trainer: TrainerConfig = Field(default=TrainerConfig(), description="How it is trained")
    probe: dict[str, JsonValue] | None = Field(
        default=None,
        description="Settings of mert probe for trainer.probe_every, such as probe.data (required), probe.tasks and"
        " probe.protocol.seeds; validation clips are scored, test clips never; null: none",
    )

    @model_validator(mode="after")
    def _probe_fits(self) -> "PretrainConfig":
        if (self.probe is None) != (self.trainer.probe_every is None):
            missing = "trainer.probe_every" if self.trainer.probe_every is None else "probe"
            raise ValueError(f"probe and trainer.probe_every go together: {missing} is not set")
        if taken := [name for name in self.probe or {} if name in SET_FOR_PROBE]:
            raise ValueError(f"probe.{taken[0]} cannot be set, mert pretrain sets it")
        return self

    @model_validator(mode="after")
    def _deadline_outlasts_patience(self) -> "PretrainConfig":
        deadline, patience = self.trainer.step_deadline, self.stream.patience
        if deadline is not None and deadline <= patience:
            raise ValueError(
                f"trainer.step_deadline is {deadline:g} s, stream.patience {patience:g} s: a wait for the object store"
                " would pass for a hang; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _memory_fits(self) -> "PretrainConfig":
        # With `initial`, what the config does not say of the encoder comes from there: then the model checks.
        if self.memory is not None and self.initial is None:
            check_memory(self.memory, self.encoder)
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> "PretrainConfig":
        check_weights(self.shards, self.mixing_temperature)
        return self


class RunDescription(BaseModel):
    """What is saved beside every checkpoint: the resolved config, the heads, and what the data were."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: PretrainConfig = Field(description="The resolved config")
    heads: list[HeadSpec] = Field(description="Heads, from the targets of index.json")
    data: dict = Field(description="Digest, hours and teachers of the shard set")
    trivial: TrivialScores | None = Field(
        default=None, description="What the best constants reach, beside the losses; none in older runs"
    )

    @model_serializer(mode="wrap")
    def _without_trivial(self, fields: SerializerFunctionWrapHandler) -> dict:
        # An older run reads as it stands in its folder.
        return {name: value for name, value in fields(self).items() if name != "trivial" or value is not None}


def heads_of(targets: Sequence[TargetSpec], partial: Collection[str] = ()) -> list[HeadSpec]:
    """One head for each target. `partial`: names of those that some examples lack."""
    fields = set(HeadSpec.model_fields)
    return [HeadSpec(**spec.model_dump(include=fields), partial=spec.name in partial) for spec in targets]


def in_earlier_order(heads: Sequence[HeadSpec], out: Path) -> list[HeadSpec]:
    """Heads in the order of the run that goes on, which the optimiser's state follows; raises ValueError when it had
    others.
    """
    if not (out / RUN_CONFIG).exists() or not list_checkpoints(out / CHECKPOINTS):
        return list(heads)
    earlier = [spec.name for spec in read_description(out).heads]
    named = {spec.name: spec for spec in heads}
    if sorted(named) != sorted(earlier):
        raise ValueError(
            f"{out / RUN_CONFIG}: targets were {', '.join(earlier)} in this run, they are {', '.join(named)} now; use"
            " another out folder"
        )
    return [named[name] for name in earlier]


def check_fit(config: PretrainConfig, mixture: SetMixture, world_size: int) -> None:
    """Raise ValueError when shards, encoder and ranks do not fit each other, or a split has no example.

    Every set must have the split to train on, and one of them that to validate on.
    """
    check_input(config, mixture)
    check_sizes(config, mixture.targets, mixture.sample_rate, mixture.hop, world_size)
    if config.memory is not None and mixture.text is None:
        folders = ", ".join(each.folder for each in mixture.sets)
        raise ValueError(f"memory is text, but {folders} has none; mert label takes text= for it")
    filled = {each.folder: each.filled_splits() for each in mixture.sets}
    for folder, splits in filled.items():
        _check_split(config.train_split, "train", splits, folder)
    anywhere = sorted({split for splits in filled.values() for split in splits})
    _check_valid_split(config, anywhere, ", ".join(filled))


def check_input(config: PretrainConfig, mixture: SetMixture) -> None:
    """Raise ValueError when the front-end reads what the sets do not have, or settings are for audio
    and there is none.
    """
    frontend, folder = config.encoder.frontend, mixture.sets[0].folder
    if mixture.has_audio != (frontend.input_name == "audio"):
        there = "has audio" if mixture.has_audio else "is text alone"
        raise ValueError(
            f"{folder} {there}, but encoder.frontend.kind is {frontend.kind}; embedding is for text alone, and nothing"
            " else is"
        )
    if mixture.has_audio:
        return
    mask = config.trainer.mask
    for key, is_set, use in (
        ("trainer.mixture is set", config.trainer.mixture is not None, "mixes audio; null is needed"),
        (f"trainer.mask.fill is {mask.fill}", mask.fill == "noise", "puts noise into audio; embedding is needed"),
        (
            f"trainer.mask.span_seconds is {mask.span_seconds}",
            mask.span_seconds is not None,
            "is for audio; span is needed",
        ),
        (
            f"objective.unmasked_weight is {config.objective.unmasked_weight}",
            config.objective.unmasked_weight > 0.0,
            "asks for tokens that the encoder reads; 0 is needed",
        ),
    ):
        if is_set:
            raise ValueError(f"{folder} is text alone, but {key}, which {use}")


def with_vocabulary(config: PretrainConfig, mixture: SetMixture) -> PretrainConfig:
    """With the size of the shards' vocabulary in the front-end that embeds tokens.

    Raises ValueError when it says another one.
    """
    frontend = config.encoder.frontend
    if frontend.kind != "embedding" or mixture.has_audio:
        return config
    folder, found = mixture.sets[0].folder, mixture.targets[0].codebook_size
    if frontend.vocabulary_size not in (None, found):
        raise ValueError(
            f"encoder.frontend.vocabulary_size is {frontend.vocabulary_size}, the tokenizer of {folder} has {found}"
            " tokens"
        )
    known = frontend.model_copy(update={"vocabulary_size": found})
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"frontend": known})})


def check_sizes(
    config: PretrainConfig, targets: Sequence[TargetSpec], sample_rate: int, hop: int, world_size: int
) -> None:
    """Raise ValueError when targets, encoder and ranks do not fit each other; `sample_rate` (Hz) and `hop` are the
    shards'.
    """
    frontend = config.encoder.frontend
    if frontend.sample_rate not in (None, sample_rate):
        raise ValueError(f"the front-end is for audio at {frontend.sample_rate} Hz, the shards are at {sample_rate} Hz")
    if frontend.hop % hop:
        raise ValueError(f"the encoder's hop is {frontend.hop} samples, no multiple of the shards' hop of {hop}")
    config.trainer.mask.in_frames(frontend.hop, sample_rate)
    for spec in targets:
        target_stride(spec.name, spec.frame_rate, frontend.hop)
    for step, stage in config.stream.stages().items():
        _check_batch(stage, f", from step {step} on," if step > 1 else "", config.trainer.accumulation, world_size)
    check_replicas(config.trainer.replicas, world_size)


def _check_batch(stream: StreamConfig, when: str, accumulation: int, world_size: int) -> None:
    """Raise ValueError when the ranks cannot share a batch; `when` it is one of the schedule."""
    batch = f"stream.batch_size {stream.batch_size}{when}"
    if stream.batch_size % world_size:
        raise ValueError(f"{batch} is not a multiple of the {world_size} ranks")
    if stream.visits % world_size:
        raise ValueError(
            f"{batch} has {stream.visits} visits of stream.crops_per_visit {stream.crops_per_visit} crops, which is"
            f" not a multiple of the {world_size} ranks"
        )
    rows = stream.batch_size // world_size
    if rows < accumulation:
        raise ValueError(
            f"{batch} gives each of {world_size} ranks {rows} crops, fewer than trainer.accumulation {accumulation}"
        )


def check_splits(config: PretrainConfig, filled: Sequence[str], place: str) -> None:
    """Raise ValueError naming the place of the shards when a split to use is not among those that have an example."""
    _check_split(config.train_split, "train", filled, place)
    _check_valid_split(config, filled, place)


def _check_valid_split(config: PretrainConfig, filled: Sequence[str], place: str) -> None:
    if config.valid_split is not None:
        hint = "; valid_split=null trains without validation"
        _check_split(config.valid_split, "validate", filled, place, hint)


def _check_split(split: str, use: str, filled: Sequence[str], place: str, hint: str = "") -> None:
    if split not in filled:
        raise ValueError(f"{place}: no split {split!r} to {use} on, only {', '.join(filled)}{hint}")


def read_description(out: Path) -> RunDescription:
    """What the config.yaml of a run folder holds, with today's defaults for keys that it is too old to have.

    Raises ValueError when it does not fit, as that of a newer program.
    """
    return parse_values(str(out / RUN_CONFIG), read_run_config(out / RUN_CONFIG), RunDescription)


def save_description(out: Path, description: RunDescription) -> str:
    """Write the run's config.yaml; says what changed since the last start, but for what follows from the rest.

    Raises:
        ValueError: there are checkpoints, and a key that makes another run differs (both values are named).
    """
    values = description.model_dump(mode="json")
    path = out / RUN_CONFIG
    changes = []
    # Without a checkpoint there is nothing to go on from, so nothing that must stay.
    if path.exists() and list_checkpoints(out / CHECKPOINTS):
        # A key that an older run does not have had what is the default now.
        earlier = read_description(out)
        data, data_now = earlier.data, description.data
        if exchanged := find_exchanged(data, data_now) or find_other_teacher(data, data_now):
            key, theirs, ours = exchanged
            raise ValueError(f"{path}: {key} was {theirs!r} in this run, it is {ours!r} now; use another out folder")
        before, now = flatten(earlier.model_dump(mode="json")), flatten(values)
        changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
        keys = [key for key in changed if not key.startswith(DERIVED_KEYS)]
        for key in keys:
            name, old, new = key.removeprefix("config."), before.get(key), now.get(key)
            if key.split(".")[-1] not in FREE_KEYS and any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED_KEYS):
                raise ValueError(f"{path}: {name} was {old!r} in this run, it is {new!r} now; use another out folder")
            changes.append(f"{name}: {old!r} became {new!r}")
    files.publish_bytes(str(path), yaml.safe_dump(values, sort_keys=False).encode())
    return "; ".join(changes)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

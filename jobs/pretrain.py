"""Pre-train the encoder from a shard folder; run again, it goes on from the newest checkpoint.

    mert pretrain configs/tiny.yaml shards=SHARD_FOLDER out=RUN_FOLDER
    torchrun --nproc-per-node=8 --no-python mert pretrain configs/mert_95m.yaml shards=SHARD_FOLDER out=RUN_FOLDER
    mert pretrain configs/mert_95m.yaml shards=SHARD_FOLDER out=RUN_FOLDER initial=IMPORTED_OR_EXPORTED_FOLDER

`initial` is read when a run begins, not when it goes on from a checkpoint of its own.
With trainer.probe_every and probe.data, a process beside the run probes checkpoints on validation clips (`mert probe
--follow`). SIGTERM, SIGUSR1 or Ctrl-C: a checkpoint is written, then the run ends with exit code 1, since it is not
finished.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from mert_foundry.jobs.cluster.torchrun import node_count, process_group, stop_on_signal
from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_precision, locked, resolve_device
from mert_foundry.jobs.pretraining.initial_weights import load_initial_weights, read_initial, resolve_encoder_config
from mert_foundry.jobs.pretraining.probe_process import probing
from mert_foundry.jobs.pretraining.progress import TrainingReport, describe_losses, describe_trivial
from mert_foundry.jobs.pretraining.run_description import (
    PretrainConfig,
    RunDescription,
    check_fit,
    in_earlier_order,
    read_description,
    save_description,
    with_vocabulary,
)
from mert_foundry.jobs.pretraining.shard_sets import describe_sets, load_mixture
from mert_foundry.jobs.pretraining.target_values import sample_values, scaled_heads
from mert_foundry.jobs.pretraining.trivial_scores import measure_trivial
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.model.objective.pretrain_model import PretrainModel, build_pretrain_model
from mert_foundry.model.objective.text_memory import TOKENIZER
from mert_foundry.model.objective.trivial import TrivialScores
from mert_foundry.model.runs.history import BestProbe, describe_best_probe, find_best_probe
from mert_foundry.model.training.stages import Stage
from mert_foundry.model.training.trainer import Batch, Position, TrainingData, TrainResult, train
from mert_foundry.model.training.trainer_config import TrainerConfig
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import RUN, check_output
from mert_foundry.pipeline.stream.batch_stream import MixtureStream, validation_batches
from mert_foundry.pipeline.stream.set_mixture import SetMixture
from mert_foundry.pipeline.stream.staged_stream import staged_batches
from mert_foundry.pipeline.stream.stream_config import StreamConfig

CONFIG = PretrainConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    check_precision("trainer.precision", config.trainer.precision, resolve_device(config.device))
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    trainer = with_replicas(config.trainer, world_size)
    out = files.local_path(config.out)
    if rank == 0:
        check_output(config.out, RUN)
    mixture = load_mixture(config.shards, config.mixing_temperature, config.train_split, config.missing_targets)
    holder = holds_weights(config, rank)
    initial = read_initial(config, out, mixture, rank) if holder else None
    if holder:
        config = with_vocabulary(resolve_encoder_config(config, initial, out), mixture)
    with contextlib.ExitStack() as stack:
        description = None
        if rank == 0:
            description = stack.enter_context(open_run(config, mixture, out, world_size, initial))
        trivial = description.trivial if description else None
        report = stack.enter_context(TrainingReport(config.trainer.schedule.total_steps, rank == 0, trivial))
        if description:
            report.note(save_description(out, description))
            report.note(warn_of_lone_rows(config, world_size))
            report.note(describe_trivial(trivial) if trivial else "")
            report.watch = stack.enter_context(probing(config, out, report.note, report.warn))
        device = stack.enter_context(process_group(config.device, world_size))
        description = description or read_description(out)  # rank 0 wrote it before it joined
        if not holder:
            config = with_vocabulary(resolve_encoder_config(config, None, out), mixture)
        stop = stack.enter_context(stop_on_signal())
        model = build_model(config, description, rank)
        if initial is not None:
            teachers = description.data["teachers"].items()
            taken = load_initial_weights(model, initial, {name: about["fingerprint"] for name, about in teachers})
            report.note(taken if rank == 0 else "")
        data = data_of(config, mixture, rank, world_size, stack)
        run_config = description.model_dump(mode="json")
        result = train(model, data, trainer, out, run_config, config.seed, device, stop, report, trivial)
    if rank == 0:
        show(result, config.trainer.schedule.total_steps, trivial, find_best_probe(out))
    return 0 if result.status == "done" else 1


@contextlib.contextmanager
def open_run(
    config: PretrainConfig, mixture: SetMixture, out: Path, world_size: int, initial: StoredModel | None
) -> Iterator[RunDescription]:
    """The run of a folder that rank 0 holds meanwhile, as it begins or goes on.

    Rank 0 checks before it joins the others, who wait for it: so a refusal is one line, and torchrun ends the rest.
    Raises as `check_fit`, `check_one_node`, `locked` and `sample_values`.
    """
    check_fit(config, mixture, world_size)
    check_one_node(config, world_size)
    with locked(out, "training"):
        yield describe_run(config, mixture, out, initial)


def check_one_node(config: PretrainConfig, world_size: int) -> None:
    """Raise ValueError when corrupt shards are to be passed over on several nodes.

    Each node finds for itself which shards are corrupt: one with a sound copy of earlier would train on other examples.
    """
    nodes = node_count(world_size)
    if config.stream.on_bad_shard == "skip" and nodes > 1:
        raise ValueError(
            f"stream.on_bad_shard is skip, which is for one node, but this run has {nodes}: they could disagree on"
            " which shards are corrupt; take stop"
        )


def describe_run(
    config: PretrainConfig, mixture: SetMixture, out: Path, initial: StoredModel | None = None
) -> RunDescription:
    """The run as it begins or goes on; reads what the targets' statistics need. Raises as `sample_values`."""
    sampled = sample_values(config, mixture)
    heads = in_earlier_order(scaled_heads(config, mixture, sampled, out, initial), out)
    trivial = measure_trivial(config, mixture, heads, sampled)
    return RunDescription(
        config=config, heads=heads, data=describe_sets(mixture, config.memory is not None), trivial=trivial
    )


def holds_weights(config: PretrainConfig, rank: int) -> bool:
    """Whether a rank is to have all first weights. Where ranks divide the model, rank 0 gives each its part."""
    return config.trainer.parallel == "ddp" or rank == 0


def build_model(config: PretrainConfig, description: RunDescription, rank: int) -> PretrainModel:
    """The model with its first weights, or without any memory (on the meta device) on a rank that is
    not to have them.
    """
    vocabulary_size = description.data["teachers"][TOKENIZER]["vocabulary_size"] if config.memory else 0
    with contextlib.nullcontext() if holds_weights(config, rank) else torch.device("meta"):
        return build_pretrain_model(
            config.encoder, description.heads, config.objective, config.seed, config.memory, vocabulary_size
        )


def with_replicas(trainer: TrainerConfig, world_size: int) -> TrainerConfig:
    """hsdp without a number of replicas: one on each node, whose ranks exchange weights faster than nodes do.

    Raises as `node_count`.
    """
    if trainer.parallel != "hsdp" or trainer.replicas is not None:
        return trainer
    return trainer.model_copy(update={"replicas": node_count(world_size)})


def show(result: TrainResult, total_steps: int, trivial: TrivialScores | None, best: BestProbe | None) -> None:
    """Say how training ended, what its last validation found when it is done, and which checkpoint is the best by
    probe.
    """
    outcome = {"status": result.status, "step": result.step, "checkpoint": str(result.checkpoint)}
    lines = [f"{result.status} after step {result.step}; checkpoint: {result.checkpoint}"]
    if result.status == "done" and result.validation is not None:
        lines.append(f"last validation: {describe_losses({'kind': 'validation', **result.validation}, trivial)}")
    if best is not None:
        lines.append(f"best by probe: {describe_best_probe(best)}")
    console.finish(outcome, lines)
    if result.status == "stopped":
        print(f"{total_steps - result.step} steps are left; the same command goes on", file=sys.stderr)


def warn_of_lone_rows(config: PretrainConfig, world_size: int) -> str:
    """Warn when each rank has one row, so the in-batch mixture has nothing to mix."""
    smallest = min(stage.batch_size for stage in config.stream.stages().values())
    if config.trainer.mixture is None or smallest > world_size:
        return ""
    return (
        "trainer.mixture does nothing: stream.batch_size leaves one example a rank, with no other to take snippets from"
    )


def data_of(
    config: PretrainConfig, mixture: SetMixture, rank: int, world_size: int, stack: contextlib.ExitStack
) -> TrainingData:
    """This rank's batches from a position on, whose stream the stack closes, and the validation batches, fresh at each
    call.
    """
    split, with_text = config.valid_split, config.memory is not None
    sets = mixture.having(split) if split is not None else []

    def open_stream(stage: StreamConfig, position: Position | None) -> MixtureStream:
        return MixtureStream(mixture, config.train_split, stage, config.seed, rank, world_size, position, with_text)

    def stream(position: Position | None, step: int) -> Iterator[tuple[Batch, Position]]:
        return stack.enter_context(contextlib.closing(staged_batches(open_stream, config.stream, step, position)))

    def validation() -> Iterator[Batch]:
        assert split is not None
        for each in sets:
            for batch in validation_batches(
                each.folder, each.index, split, config.stream, rank, world_size, mixture, with_text
            ):
                yield {**batch, "set": each.folder}

    names = [each.folder for each in sets] if len(sets) > 1 else []
    stages = [Stage(step, each.batch_size, each.crop_samples) for step, each in config.stream.stages().items()]
    return TrainingData(stream, None if split is None else validation, mixture.sample_rate, names, stages)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

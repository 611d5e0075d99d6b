"""Train an RVQ-VAE codec of the EnCodec architecture on a manifest, to be a teacher.

    mert codec configs/codec.yaml manifest=MANIFEST_FOLDER out=CODEC_FOLDER

Writes codec.safetensors (state-dict names of encodec.EncodecModel), codec.yaml (its constructor sizes), the
settings, the losses on the way, and a model card that compares it on held-out music with the untrained codec.
The folder is then a teacher's `weights` in a label config. While it trains, a checkpoint lies in CODEC_FOLDER.training:
after a stop or a kill the same command goes on from it, with the same losses as if nothing had happened.
"""

import json
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from encodec.model import EncodecModel

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import LOCK, locked
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.model.runs.publish import publish_folder
from mert_foundry.pipeline.fitting.codec_card import Sample, render_card
from mert_foundry.pipeline.fitting.codec_quality import evaluate_codec
from mert_foundry.pipeline.fitting.codec_state import (
    CodecState,
    TrainingPosition,
    publish_state,
    read_position,
    read_state,
)
from mert_foundry.pipeline.fitting.codec_training import (
    CodecTrainingConfig,
    Crops,
    data_dependent_init,
    load_audio,
    start_codebooks,
    train_codec,
)
from mert_foundry.pipeline.fitting.tracks import draw_hours
from mert_foundry.pipeline.manifest.rows import Manifest, Track, check_root, load_manifest
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import first_difference
from mert_foundry.pipeline.storage.folder_kinds import CODEC, FolderError, check_output
from mert_foundry.pipeline.teachers.codec.weights import build_codec, save_folder

CONFIG = CodecTrainingConfig
CHECKPOINT = "checkpoint.safetensors"
RECORD_EVERY = 50  # steps from one line of losses.jsonl to the next


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    out = files.local_path(config.out)
    check_output(config.out, CODEC)
    checkpoints = out.with_name(f"{out.name}.training")
    if out.exists() and any(out.iterdir()):
        leftover = f", and remove {checkpoints}, which a stopped training left" if checkpoints.exists() else ""
        raise ValueError(f"{out} exists and is not empty; train into a new folder{leftover}")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.nn.utils.weight_norm")
    manifest = load_manifest(config.manifest)
    check_root(manifest, config.manifest)
    with training_folder(checkpoints) as folder:
        history = train(config, manifest, folder / CHECKPOINT)
        (folder / CHECKPOINT).unlink()
    console.finish({"out": config.out, **history}, [f"codec: {config.out}"])
    return 0


@contextmanager
def training_folder(folder: Path) -> Iterator[Path]:
    """A folder for the checkpoint, held while the work lasts, and removed at the end when no checkpoint is in it.

    Raises:
        FolderError: it has files that are not ours. ValueError: another process trains there.
    """
    others = {path.name for path in folder.iterdir()} - {LOCK, CHECKPOINT} if folder.exists() else set()
    if foreign := sorted(name for name in others if not re.fullmatch(rf"\.{CHECKPOINT}\..*\.tmp", name)):
        raise FolderError(f"{folder} has {foreign[0]}, which is not of mert codec; checkpoints need that folder")
    with locked(folder, "training a codec"):
        files.sweep_temporary(str(folder))
        try:
            yield folder
        finally:
            if not (folder / CHECKPOINT).exists():
                shutil.rmtree(folder)


def train(config: CodecTrainingConfig, manifest: Manifest, checkpoint: Path) -> dict:
    """Train from the checkpoint on, if there is one, and publish the codec; the first and the last evaluation.

    Raises ValueError when the checkpoint is of other settings, naming one and both values.
    """
    settings = {
        **config.model_dump(mode="json", exclude={"manifest", "out", "checkpoint_every"}),
        "manifest_sha256": manifest.sha256,
    }
    position = read_position(str(checkpoint))
    if position and (difference := first_difference(position.settings, settings)):
        raise ValueError(f"{checkpoint} was begun with {difference}; go on with those settings, or remove it")
    tracks = {
        "train": draw_hours(manifest, "train", config.train_hours, config.seed),
        "valid": draw_hours(manifest, "valid", config.valid_hours, config.seed),
    }
    learnt, held_out = (decode(split, manifest.root, chosen) for split, chosen in tracks.items())
    if position:
        console.say(f"going on after step {position.step} of {config.steps}")
    # Before hours of training, since it also tells whether the held-out audio can be used to evaluate at all.
    untrained = (
        position.untrained if position else evaluate_codec(untrained_codec(config, learnt.audio), held_out.audio)
    )
    console.say(f"before training: {describe(untrained)}")
    state = read_state(str(checkpoint), position) if position else None
    step_seconds = config.batch_size * config.crop_seconds
    done = position.step * step_seconds if position else 0.0
    with Progress("codec", config.steps * step_seconds, done) as progress:
        log = TrainingLog(config, held_out.audio, progress, position.history if position else [])

        def publish(state: CodecState) -> None:
            at = TrainingPosition(
                step=state.step, batches=state.batches, settings=settings, untrained=untrained, history=log.history
            )
            publish_state(str(checkpoint), state.tensors, at)

        model = train_codec(config, learnt.audio, log.record, state, publish)
    publish_codec(config, model, untrained, log.history, learnt, held_out)
    return {"untrained": untrained, "last": log.history[-1]}


class TrainingLog:
    """Follows training: progress at every step; a record every 50 steps, at each validation and at the end, with an
    evaluation at validations once the quantiser is trained too."""

    def __init__(
        self, config: CodecTrainingConfig, valid_audio: list[np.ndarray], progress: Progress, history: list[dict]
    ):
        """`history`: the records of the steps done before."""
        self.config = config
        self.valid_audio = valid_audio
        self.progress = progress
        self.history = list(history)
        last = [record["held_out"] for record in history if "held_out" in record][-1:]
        self.evaluated = f", held out: {describe(last[0])}" if last else ""

    def record(self, step: int, losses: dict[str, float], model: EncodecModel) -> None:
        """Take a step, its losses by name and the model after it."""
        config = self.config
        validates = step % config.validate_every == 0
        if step % RECORD_EVERY == 0 or validates or step == config.steps:
            self.history.append({"step": step, **{name: round(loss, 5) for name, loss in losses.items()}})
        if validates and step > config.autoencoder_steps:
            self.history[-1]["held_out"] = evaluate_codec(model, self.valid_audio)
            self.evaluated = f", held out: {describe(self.history[-1]['held_out'])}"
        notes = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        self.progress.update(step * config.batch_size * config.crop_seconds, f"step {step}: {notes}{self.evaluated}")


def describe(evaluation: dict) -> str:
    """Reconstruction of held-out music in a few words."""
    return f"SI-SDR {evaluation['si_sdr']} dB, log-mel distance {evaluation['log_mel_distance']}"


def decode(split: str, root: str, tracks: list[Track]) -> Sample:
    """Tracks with their audio, with progress on the way."""
    with Progress(f"decode {split}", sum(track.seconds for track in tracks)) as progress:
        return Sample(tracks, load_audio(root, tracks, progress.update))


def publish_codec(
    config: CodecTrainingConfig, model: EncodecModel, untrained: dict, history: list[dict], train: Sample, valid: Sample
) -> None:
    """Evaluate the codec beside the untrained one and publish its folder with the model card."""
    trained = evaluate_codec(model, valid.audio)
    settings = config.model_dump(mode="json", exclude={"manifest", "out", "checkpoint_every"})
    with publish_folder(files.local_path(config.out)) as folder:
        save_folder(model, config.sizes, folder)
        (folder / "training.yaml").write_text(yaml.safe_dump(settings, sort_keys=True))
        (folder / "losses.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
        (folder / "README.md").write_text(render_card(settings, trained, untrained, train, valid))


def untrained_codec(config: CodecTrainingConfig, train_audio: list[np.ndarray]) -> EncodecModel:
    """The codec as training finds it: first weights, codebooks from k-means over their latents."""
    torch.manual_seed(config.seed)
    model = build_codec(config.sizes)
    batches = Crops(train_audio, config)
    data_dependent_init(model, next(batches))
    start_codebooks(model, batches, config)
    return model.eval()


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

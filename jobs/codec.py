"""Train an RVQ-VAE codec of the EnCodec architecture on a manifest, to be a teacher.

    mert codec configs/codec.yaml manifest=MANIFEST_FOLDER out=CODEC_FOLDER

Writes codec.safetensors (state-dict names of encodec.EncodecModel), codec.yaml (its constructor sizes), the
settings, the losses on the way, and a model card that judges it on held-out music beside the untrained codec.
The folder is then a teacher's `weights` in a label config.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import yaml
from encodec.model import EncodecModel

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.model.runs.publish import publish_folder
from mert_foundry.pipeline.fitting.codec_quality import judge_codec
from mert_foundry.pipeline.fitting.codec_training import (
    CodecTrainingConfig,
    choose_tracks,
    crops,
    even_out_activations,
    load_audio,
    start_codebooks,
    train_codec,
)
from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.manifest.rows import Track, check_root, load_manifest
from mert_foundry.pipeline.storage.files import local_path
from mert_foundry.pipeline.storage.folder_kinds import CODEC, check_output
from mert_foundry.pipeline.teachers.codec.weights import build_codec, save_folder

CONFIG = CodecTrainingConfig
RECORD_EVERY = 50  # steps from one line of losses.jsonl to the next


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    out = local_path(config.out)
    check_output(config.out, CODEC)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; train into a new folder")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.nn.utils.weight_norm")
    manifest = load_manifest(config.manifest)
    check_root(manifest, config.manifest)
    train_tracks = choose_tracks(manifest, "train", config.train_hours, config.seed)
    valid_tracks = choose_tracks(manifest, "valid", config.valid_hours, config.seed)
    train_audio = decode("decode train", manifest.root, train_tracks)
    valid_audio = decode("decode valid", manifest.root, valid_tracks)
    # Before hours of training, since it also tells whether the held-out audio can be judged by at all.
    untrained = judge_codec(untrained_codec(config, train_audio), valid_audio)
    console.say(f"before training: {describe(untrained)}")
    with Progress("codec", config.steps * config.batch_size * config.crop_seconds) as progress:
        log = TrainingLog(config, valid_audio, progress)
        model = train_codec(config, train_audio, log.record)
    publish_codec(config, model, untrained, log.history, train_audio, valid_audio, train_tracks, valid_tracks)
    console.finish({"out": config.out, "untrained": untrained, "last": log.history[-1]}, [f"codec: {config.out}"])
    return 0


class TrainingLog:
    """Follows training: progress at every step; a record every 50 steps, at each validation and at the end, with a
    judgement at validations once the quantiser is trained too."""

    def __init__(self, config: CodecTrainingConfig, valid_audio: list[np.ndarray], progress: Progress):
        self.config = config
        self.valid_audio = valid_audio
        self.progress = progress
        self.history: list[dict] = []
        self.judged = ""

    def record(self, step: int, losses: dict[str, float], model: EncodecModel) -> None:
        """Take a step, its losses by name and the model after it."""
        config = self.config
        validates = step % config.validate_every == 0
        if step % RECORD_EVERY == 0 or validates or step == config.steps:
            self.history.append({"step": step, **{name: round(loss, 5) for name, loss in losses.items()}})
        if validates and step > config.autoencoder_steps:
            self.history[-1]["held_out"] = judge_codec(model, self.valid_audio)
            self.judged = f", held out: {describe(self.history[-1]['held_out'])}"
        notes = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        self.progress.update(step * config.batch_size * config.crop_seconds, f"step {step}: {notes}{self.judged}")


def describe(judgement: dict) -> str:
    """Reconstruction of held-out music in a few words."""
    return f"SI-SDR {judgement['si_sdr']} dB, log-mel distance {judgement['log_mel_distance']}"


def decode(title: str, root: str, tracks: list[Track]) -> list[np.ndarray]:
    """The audio of tracks, with progress on the way."""
    with Progress(title, sum(track.seconds for track in tracks)) as progress:
        return load_audio(root, tracks, progress.update)


def publish_codec(
    config: CodecTrainingConfig,
    model: EncodecModel,
    untrained: dict,
    history: list[dict],
    train_audio: list[np.ndarray],
    valid_audio: list[np.ndarray],
    train_tracks: list[Track],
    valid_tracks: list[Track],
) -> None:
    """Judge the codec beside the untrained one and publish its folder with the model card."""
    trained = judge_codec(model, valid_audio)
    settings = config.model_dump(mode="json", exclude={"manifest", "out"})
    with publish_folder(Path(config.out)) as folder:
        save_folder(model, config.sizes, folder)
        (folder / "training.yaml").write_text(yaml.safe_dump(settings, sort_keys=True))
        (folder / "losses.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
        hours = {
            name: sum(map(len, audio)) / SAMPLE_RATE / 3600
            for name, audio in (("train", train_audio), ("valid", valid_audio))
        }
        (folder / "README.md").write_text(model_card(settings, trained, untrained, hours, train_tracks, valid_tracks))


def untrained_codec(config: CodecTrainingConfig, train_audio: list[np.ndarray]) -> EncodecModel:
    """The codec as training finds it: first weights, codebooks from k-means over their latents."""
    torch.manual_seed(config.seed)
    model = build_codec(config.sizes)
    batches = crops(train_audio, config)
    even_out_activations(model, next(batches))
    start_codebooks(model, batches, config)
    return model.eval()


def model_card(
    settings: dict, trained: dict, untrained: dict, hours: dict, train_tracks: list[Track], valid_tracks: list[Track]
) -> str:
    """The card: data, settings, reconstruction on held-out music, use of every codebook."""
    levels = "\n".join(
        f"| {level + 1} | {used} | {perplexity} |"
        for level, (used, perplexity) in enumerate(zip(trained["usage"], trained["perplexity"]))
    )

    def folders(tracks: list[Track]) -> str:
        return ", ".join(sorted({track.path.split("/")[0] for track in tracks}))

    return f"""# RVQ-VAE codec

EnCodec architecture (arXiv 2210.13438), trained by `mert codec` without an adversary. 24 kHz mono in, 75 frames a second,
{settings["sizes"]["codebooks"]} residual codebooks of {settings["sizes"]["codebook_size"]} entries. `codec.safetensors` has the state-dict names of
`encodec.EncodecModel`; `codec.yaml` has the constructor sizes (see `pipeline/teachers/codec/weights.py: build_codec`).

It is a teacher for trying the system out and for tests, not a codec to listen to.

## Data

Trained on {hours["train"]:.2f} h ({len(train_tracks)} tracks) from {folders(train_tracks)}.
Held out: {hours["valid"]:.2f} h ({len(valid_tracks)} tracks) from {folders(valid_tracks)}, chosen by the manifest's hash split:
{chr(10).join("- " + track.path for track in valid_tracks)}

## Training

{settings["steps"]} steps of {settings["batch_size"]} crops of {settings["crop_seconds"]} s; every setting is in `training.yaml`, the losses in `losses.jsonl`.

## Held-out reconstruction

Over {trained["seconds"]} s of the held-out music in pieces of 10 s. SI-SDR: higher is better. Log-mel distance: mean absolute
difference of natural-log mel magnitudes (64 bands, window 1024), lower is better.

| | SI-SDR (dB) | log-mel distance |
| --- | --- | --- |
| this codec | {trained["si_sdr"]} | {trained["log_mel_distance"]} |
| untrained (first weights, k-means codebooks) | {untrained["si_sdr"]} | {untrained["log_mel_distance"]} |

## Codebooks on held-out music

| level | entries used | perplexity |
| --- | --- | --- |
{levels}
"""


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

"""Fit the weights of a teacher to the features of a corpus: residual codebooks of log-mel, centroids, codes of an
encoder.

    mert fit configs/fit.yaml manifest=MANIFEST_FOLDER out=MEL_RVQ_FOLDER
    mert fit configs/fit.yaml manifest=MANIFEST_FOLDER out=KMEANS_FOLDER 'teacher={kind: kmeans, feature: chroma}'
    mert fit configs/fit.yaml manifest=MANIFEST_FOLDER out=CODES_FOLDER 'teacher={kind: encoder, model: RUN_FOLDER,
    layer: 3}'

Writes the weights and a card: the feature's settings, how the weights were fitted, how well they code tracks that were
held out. The folder is then the `weights` of a teacher of that kind in a label config.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from threadpoolctl import threadpool_limits

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_writable
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.model.runs.publish import publish_folder
from mert_foundry.model.teacher.encoder_fitting import EncoderFittingConfig, encoder_fitting
from mert_foundry.pipeline.fitting.codebook import STEPS, batch_frames
from mert_foundry.pipeline.fitting.fitting import Fitting
from mert_foundry.pipeline.fitting.kmeans_fitting import KmeansFitting, KmeansFittingConfig
from mert_foundry.pipeline.fitting.mel_rvq_fitting import MelRvqFittingConfig, mel_rvq_fitting
from mert_foundry.pipeline.fitting.sample import Crops, choose_crops, collect_features, hold_out
from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.manifest.rows import check_root, load_manifest
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import check_output

FITTINGS: dict[type[BaseModel], Callable[[Any], Fitting]] = {
    MelRvqFittingConfig: mel_rvq_fitting,
    KmeansFittingConfig: KmeansFitting,
    EncoderFittingConfig: encoder_fitting,
}


class FitConfig(BaseModel):
    """What `mert fit` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="Manifest folder; its train split is used")
    out: str = Field(description="Local folder for the weights of the teacher")
    teacher: Annotated[
        MelRvqFittingConfig | KmeansFittingConfig | EncoderFittingConfig, Field(discriminator="kind")
    ] = Field(description="What to fit")
    frames: int = Field(default=200_000, gt=0, description="Audio to draw, in frames of 1/75 s: 200000 are 44 minutes")
    crop_seconds: float = Field(
        default=30.0, ge=1, allow_inf_nan=False, description="Length of the pieces that are drawn, seconds"
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sample and of the codebooks")


CONFIG = FitConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    fitting = FITTINGS[type(config.teacher)](config.teacher)
    out = files.local_path(config.out)
    check_output(config.out, fitting.folder_kind)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; fit into a new folder")
    check_writable(out)
    manifest = load_manifest(config.manifest)
    check_root(manifest, config.manifest)
    torch.set_num_threads(1)
    started = time.monotonic()
    crops = choose_crops(manifest, config.frames, config.crop_seconds, config.seed)
    fitted_to, held_out = hold_out(crops, config.seed)
    with tempfile.TemporaryFile(prefix="mert-fit-") as file, tempfile.TemporaryFile(prefix="mert-fit-") as other:
        sample = read("read", file, manifest.root, fitted_to, config, fitting)
        judged = read("read held-out tracks", other, manifest.root, held_out, config, fitting) if held_out else sample
        with threadpool_limits(1):  # the same machine gives the same bytes, whatever its number of threads
            weights = fit(fitting, sample, config.seed)
            quality = fitting.evaluate(weights, judged) | {"held_out_tracks": len(held_out)}
    with publish_folder(out) as folder:
        fitting.save(folder, weights, describe_fitting(manifest.sha256, config, len(sample)), quality)
    seconds = time.monotonic() - started
    result = {"out": config.out, "kind": config.teacher.kind, "seconds": round(seconds, 1), **quality}
    console.finish(result, [describe_quality(quality), f"{config.teacher.kind}: {config.out}, {seconds:.0f} s"])
    return 0


def read(title: str, file: BinaryIO, root: str, crops: list[Crops], config: FitConfig, fitting: Fitting) -> np.ndarray:
    """Features of drawn pieces, mapped from a file, with progress on the way."""
    with Progress(title, sum(drawn.seconds(config.crop_seconds) for drawn in crops)) as progress:
        return collect_features(file, root, crops, config.crop_seconds, fitting.feature, progress.update)


def fit(fitting: Fitting, sample: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Weights for a sample, with progress in the audio that went through the steps."""
    console.say(f"fitting {counted(fitting.codebooks, 'codebook')} to {len(sample)} frames, {STEPS} steps each")
    step_seconds = batch_frames(len(sample)) / FRAME_RATE
    with Progress("fit", fitting.codebooks * STEPS * step_seconds) as progress:

        def report(codebook: int, step: int, error: float) -> None:
            done = (codebook * STEPS + step) * step_seconds
            progress.update(done, f"codebook {codebook + 1} of {fitting.codebooks}, step {step}: error {error:.1%}")

        return fitting.fit(sample, seed, report)


def describe_fitting(manifest_sha256: str, config: FitConfig, frames: int) -> dict:
    """How the weights came about, for people to read."""
    settings = config.model_dump(mode="json", exclude={"manifest": True, "out": True, "teacher": {"model"}})
    steps = {"steps": STEPS, "batch_frames": batch_frames(frames)}
    return settings | steps | {"manifest_sha256": manifest_sha256, "fitted_frames": frames}


def counted(number: int, what: str) -> str:
    """A number of things, in the plural where that is due."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def describe_quality(quality: dict) -> str:
    """Errors and use of codebooks in a line."""
    on = counted(quality["held_out_tracks"], "held-out track") if quality["held_out_tracks"] else "the sample itself"
    errors = ", ".join(f"{error:.1%}" for error in quality["relative_error"])
    perplexity = ", ".join(f"{value:.0f}" for value in quality["perplexity"])
    return (
        f"on {on}, {quality['frames']} frames: error after each codebook {errors} of the variance;"
        f" entries in use {quality['used']}, perplexity {perplexity}"
    )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

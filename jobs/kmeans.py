"""Fit centroids of log-mel or chroma to a manifest, to be a teacher.

    mert kmeans configs/kmeans.yaml manifest=MANIFEST_FOLDER out=KMEANS_FOLDER
    mert kmeans configs/kmeans.yaml manifest=MANIFEST_FOLDER out=KMEANS_FOLDER feature=chroma

Writes centroids.safetensors and kmeans.yaml (the feature's settings, how they were fitted, how well). The folder is
then the `weights` of a teacher of kind kmeans in a label config.
"""

import sys
import tempfile

import torch

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.model.runs.publish import publish_folder
from mert_foundry.pipeline.fitting.kmeans_fitting import (
    KmeansFittingConfig,
    choose_crops,
    collect_features,
    describe_fitting,
    fit_centroids,
    judge_centroids,
)
from mert_foundry.pipeline.manifest.rows import check_root, load_manifest
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import KMEANS, check_output
from mert_foundry.pipeline.teachers.kmeans import build_feature, save_kmeans

CONFIG = KmeansFittingConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    out = files.local_path(config.out)
    check_output(config.out, KMEANS)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; fit into a new folder")
    manifest = load_manifest(config.manifest)
    check_root(manifest, config.manifest)
    crops = choose_crops(manifest, config)
    torch.set_num_threads(1)
    with tempfile.TemporaryFile(prefix="mert-kmeans-") as file:
        with Progress("kmeans", sum(drawn.seconds(config.crop_seconds) for drawn in crops)) as progress:
            sample = collect_features(file, manifest.root, crops, config, progress.update)
        console.say(f"fitting {config.num_clusters} centroids to {len(sample)} frames of {len(crops)} tracks")
        kmeans = fit_centroids(sample, config)
        quality = judge_centroids(kmeans, sample)
    with publish_folder(out) as folder:
        feature_settings = build_feature(config.feature, torch.device("cpu")).settings
        save_kmeans(
            folder,
            kmeans.cluster_centers_,
            feature_settings,
            describe_fitting(manifest, config, kmeans, sample),
            quality,
        )
    line = (
        f"{config.feature}: {quality['used']} of {config.num_clusters} centroids in use, perplexity {quality['perplexity']:.0f},"
        f" squared error {quality['squared_error']:.4g} a frame ({quality['relative_error']:.1%} of the variance)"
    )
    console.finish({"out": config.out, "feature": config.feature, **quality}, [line, f"kmeans: {config.out}"])
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))

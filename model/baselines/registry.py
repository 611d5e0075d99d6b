"""The baselines by their names in `model=`. Each is imported only when it is used, since their packages differ."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from mert_foundry.model.features.feature_model import FeatureModel, Precision

# Module and class of the baselines that take only device and layers.
PLAIN = {
    "log_mel": ("spectra", "LogMelBaseline"),
    "cqt": ("cqt", "CqtBaseline"),
    "chroma": ("spectra", "ChromaBaseline"),
    "mfcc": ("mfcc", "MfccBaseline"),
    "musicnn": ("musicnn", "MusicnnBaseline"),
}


def open_baseline(
    name: str, device: torch.device, precision: Precision = "fp32", layers: Sequence[int] | None = None
) -> FeatureModel:
    """The model of a name: log_mel, cqt, chroma, mfcc, musicnn, codec:WEIGHTS or random:CONFIG.yaml@SEED.

    Spectra, musicnn and codecs compute in fp32 at any precision.

    Raises:
        ValueError: there is none of that name, or it cannot be built; and as its class.
    """
    if name in PLAIN:
        module, class_name = PLAIN[name]
        baseline = getattr(importlib.import_module(f"mert_foundry.model.baselines.{module}"), class_name)
        return baseline(device, layers)
    kind, _, what = name.partition(":")
    match kind:
        case "codec":
            from mert_foundry.model.baselines.codec import CodecBaseline

            return CodecBaseline(what, device, layers)
        case "random":
            return _open_untrained(name, what, device, precision, layers)
    raise ValueError(f"model {name}: no baseline is called so")


def _open_untrained(
    name: str, what: str, device: torch.device, precision: Precision, layers: Sequence[int] | None
) -> FeatureModel:
    from mert_foundry.model.baselines.untrained import UntrainedEncoder

    found = re.fullmatch(r"(.+)@(\d+)", what)
    if not found:
        raise ValueError(f"model {name}: an untrained encoder is called random:CONFIG.yaml@SEED, SEED a whole number")
    return UntrainedEncoder(Path(found[1]), int(found[2]), device, precision, layers)

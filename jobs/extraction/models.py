"""What `model=` names: a folder with a trained encoder (FOLDER@ema: its averaged weights), a shipped one, or a
baseline.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from mert_foundry.model.features.feature_encoder import FeatureEncoder
from mert_foundry.model.features.feature_model import FeatureModel, Precision
from mert_foundry.model.interop.load import model_folder, read_model, shipped_encoders
from mert_foundry.model.runs.checkpoint import find_checkpoint, has_average, split_average
from mert_foundry.pipeline.storage.documents import fingerprint
from mert_foundry.pipeline.storage.folder_kinds import CHECKPOINT, MODEL, RUN, check_input

SPECTRA = ("log_mel", "cqt", "chroma", "mfcc")
FIXED = (*SPECTRA, "musicnn")
NAMES = (*FIXED, "codec:foundry-small (or another codec)", "random:CONFIG.yaml@SEED")


def open_model(
    name: str, device: torch.device, precision: Precision = "fp32", layers: Sequence[int] | None = None
) -> FeatureModel:
    """The model of a name.

    Raises:
        FolderError: a folder of another kind.
        ValueError: no folder and no baseline of that name; no such layer; and as the baselines.
    """
    check_model(name)
    if is_baseline(name):
        # Baselines need packages, such as torchaudio and encodec, that encoders do without.
        from mert_foundry.model.baselines.registry import open_baseline

        return open_baseline(name, device, precision, layers)
    return FeatureEncoder(read_model(Path(model_folder(name))), name, device, precision, layers)


def is_baseline(name: str) -> bool:
    """Whether a name is that of a baseline, and not of a folder."""
    return name in FIXED or name.startswith(("codec:", "random:"))


def check_model(name: str) -> None:
    """Raise as `open_model` for a name that nothing has, the wrong kind of folder, or averaged weights that are not
    there.
    """
    if is_baseline(name):
        return
    folder, is_average = split_average(model_folder(name))
    if not folder.exists():
        raise ValueError(
            f"model {name}: no folder of that name, no encoder that ships with this package"
            f" ({', '.join(shipped_encoders())}), and no baseline; those are {', '.join(NAMES)}"
        )
    check_input(str(folder), RUN, CHECKPOINT, MODEL)
    if is_average and not (folder / "config.json").is_file():
        checkpoint = find_checkpoint(folder)[0]
        if not has_average(checkpoint):
            raise ValueError(f"model {name}: {checkpoint} has no averaged weights; its run had trainer.ema null")


def tokenizer_of(model: FeatureModel) -> str | None:
    """SHA-256 of the tokenizer whose tokens a model reads; None for one that reads audio."""
    return model.tokenizer if isinstance(model, FeatureEncoder) else None


def model_fingerprint(model: FeatureModel) -> str:
    """SHA-256 over weights and all else that makes the features what they are."""
    return fingerprint(dict(model.settings), {name: tensor.numpy() for name, tensor in model.weights.items()})

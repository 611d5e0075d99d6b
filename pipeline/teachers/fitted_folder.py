"""A folder of fitted weights: one safetensors file, and a card in YAML that has its digest; and the target made with
them.

Same input, same bytes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import yaml
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import fingerprint, parse_values
from mert_foundry.pipeline.storage.folder_kinds import FolderKind, check_input

Card = TypeVar("Card", bound=BaseModel)


def write_fitted(
    folder: Path, kind: FolderKind, arrays: dict[str, np.ndarray], make_card: Callable[[str], BaseModel]
) -> None:
    """Write the two files of a kind, its card and its weights (float32), into an existing folder.

    Args:
        make_card: takes the SHA-256 of the weights.
    """
    card_name, weights_name = kind.markers[0]
    content = save({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})
    card = make_card(hashlib.sha256(content).hexdigest())
    (folder / weights_name).write_bytes(content)
    (folder / card_name).write_text(yaml.safe_dump(card.model_dump(mode="json"), sort_keys=True))


def read_fitted(
    folder: Path, kind: FolderKind, model: type[Card], digest_key: str
) -> tuple[dict[str, np.ndarray], Card]:
    """The arrays of a folder by name, and its card, whose `digest_key` is the SHA-256 of the weights.

    Raises:
        FolderError: the folder is of another kind.
        FileNotFoundError: the folder or one of its files is not there.
        ValueError: a file is damaged or of another form.
    """
    card_name, weights_name = kind.markers[0]
    check_input(str(folder), kind)
    for name in (card_name, weights_name):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: not there; {kind.maker} writes such a folder")
    fault = f"{folder / card_name}: not a card of {kind.maker}"
    try:
        values = yaml.safe_load((folder / card_name).read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{fault}: {' '.join(str(error).split())}") from error
    card = parse_values(fault, values, model)
    content = (folder / weights_name).read_bytes()
    digest, expected = hashlib.sha256(content).hexdigest(), getattr(card, digest_key)
    if digest != expected:
        raise ValueError(f"{folder / weights_name}: SHA-256 {digest}, {card_name} says {expected}")
    try:
        return load(content), card
    except SafetensorError as error:
        raise ValueError(f"{folder / weights_name}: no weights can be read: {error}") from error


def check_arrays(
    folder: Path, kind: FolderKind, arrays: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]]
) -> None:
    """Raise ValueError when an array is missing, not of the shape it must have by the card (float32), or not finite."""
    card_name, weights_name = kind.markers[0]
    for name, shape in expected.items():
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype != np.float32:
            there = "is not there" if found is None else f"is {found.dtype} {found.shape}"
            raise ValueError(f"{folder / weights_name}: {name} {there}, {card_name} says float32 {shape}")
        if not np.isfinite(found).all():
            faults = np.count_nonzero(~np.isfinite(found))
            raise ValueError(f"{folder / weights_name}: {faults} of {found.size} values of {name} are not finite")


def check_size(folder: Path, kind: FolderKind, settings: dict, found: int) -> None:
    """Raise ValueError when the card's settings of the feature have another size than the weights, values a frame."""
    size = settings.get("size")
    if size != found:
        card_name, weights_name = kind.markers[0]
        raise ValueError(
            f"{folder / card_name}: feature_settings.size is {size!r}, {weights_name} is for {found} values a frame"
        )


def check_feature(folder: Path, kind: FolderKind, fitted_to: dict, computed: dict) -> None:
    """Raise ValueError when weights were fitted to a feature of other settings than those that are computed now."""
    if fitted_to != computed:
        raise ValueError(f"{folder / kind.marker}: fitted to {fitted_to}, this version computes {computed}")


def codes_spec(
    name: str, settings: dict, weights: dict[str, np.ndarray], codebooks: int, entries: int, origin: dict[str, str]
) -> TargetSpec:
    """The target of a teacher that codes a feature with fitted weights.

    Args:
        settings: kind of the teacher, and settings of the feature; with the weights, what the codes depend on.
        origin: where it came from, for people to read.
    """
    return TargetSpec(
        name=name,
        kind="discrete",
        dtype="uint16",
        frame_rate=FRAME_RATE,
        size=codebooks,
        codebook_size=entries,
        fingerprint=fingerprint(settings, weights),
        teacher=settings | origin,
    )

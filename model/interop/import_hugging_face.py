"""Encoders of others from Hugging Face folders: the released MERT models and any Hubert.

A weight that the encoder has and the folder has not is an error, as is one of another shape; nothing stays random.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.interop.hubert_config import encoder_from_hubert, unknown_keys
from mert_foundry.model.interop.stored_model import OWN_MODEL_TYPE, StoredModel
from mert_foundry.model.interop.weight_files import load_safely, load_safetensors, named_tensors, read_json
from mert_foundry.model.interop.weight_names import HUBERT_NAMES, Names, rename
from mert_foundry.model.objective.heads import HeadSpec

MODEL_TYPES = ("hubert", "mert_model", "music_hubert")
# torch's older weight norm and the parametrised one of today hold the same two tensors.
OLDER_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


@dataclass(frozen=True)
class Imported:
    """The model, and notes of one line each: weights that were not imported, keys that are not known."""

    model: StoredModel
    notes: list[str]


def import_hugging_face(folder: Path, sample_rate: int | None = None) -> Imported:
    """Read config.json, the weights (safetensors or .bin, sharded or not) and heads.safetensors if there is one.

    `sample_rate` (Hz) is needed where neither config.json nor preprocessor_config.json has one.
    Raises ValueError for another architecture, a missing weight, one of another shape, no or two sample rates.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") == OWN_MODEL_TYPE:
        raise ValueError(
            f"{folder} is a folder of mert export already: mert pretrain initial= and mert export take it as it is"
        )
    if config.get("model_type") not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ValueError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, imported are {known}")
    preprocessor = folder / "preprocessor_config.json"
    processing = read_json(preprocessor) if preprocessor.exists() else {}
    try:
        encoder = encoder_from_hubert(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    weights, notes = fit_weights(encoder, _read_weights(folder), HUBERT_NAMES, folder)
    unknown = unknown_keys(config)
    if unknown:
        notes.append(f"keys of config.json that are not known here and have no effect: {', '.join(unknown)}")
    normalised = bool(processing.get("do_normalize"))
    if normalised:
        notes.append(
            "its feature extractor scales audio to zero mean and unit variance (do_normalize); nothing here does"
        )
    rate = one_rate(
        {"config.json": config.get("sample_rate"), preprocessor.name: processing.get("sampling_rate")},
        sample_rate,
        folder,
    )
    return Imported(StoredModel(encoder, weights, rate, *read_heads(folder), normalised), notes)


def fit_weights(
    encoder: EncoderConfig, found: Mapping[str, Tensor], names: Names, source: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under the names of MertEncoder in float32, and notes on weights that were not imported or were converted.

    `names` leads to those of the source, which may have a prefix and the older names of weight norm.
    Raises ValueError naming what is missing, or the weight with another shape and both shapes.
    """
    with torch.device("meta"):
        expected = {
            rename(name, names): (name, weight.shape) for name, weight in MertEncoder(encoder).state_dict().items()
        }
    prefix = _prefix(found, next(iter(expected)))
    current = {_current_name(name.removeprefix(prefix)): name for name in found}
    missing = [name for name in expected if name not in current]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of {len(expected)} encoder weights are missing: {', '.join(missing)}"
        )
    for name, (_, shape) in expected.items():
        if found[current[name]].shape != shape:
            shapes = f"{list(found[current[name]].shape)} in the file, {list(shape)} by its config"
            raise ValueError(f"{source}: weight {current[name]} has shape {shapes}")
        if not found[current[name]].is_floating_point():
            raise ValueError(
                f"{source}: weight {current[name]} is {found[current[name]].dtype}, floating point is needed"
            )
    weights = {ours: found[current[name]].float() for name, (ours, _) in expected.items()}
    notes = [
        f"not imported: {name} {list(found[name].shape)}"
        for theirs, name in sorted(current.items())
        if theirs not in expected
    ]
    converted = {str(found[current[name]].dtype) for name in expected} - {"torch.float32"}
    if converted:
        notes.append(f"weights were {', '.join(sorted(converted))}, they are torch.float32 now")
    return weights, notes


def one_rate(stated: Mapping[str, int | None], given: int | None, source: Path) -> int:
    """The sample rate, Hz.

    Raises ValueError when none is known, one is no rate or two differ, naming where each stands.
    """
    rates = {origin: rate for origin, rate in {**stated, "--sample-rate": given}.items() if rate is not None}
    for origin, rate in rates.items():
        if not isinstance(rate, int | float) or rate < 1 or rate != int(rate):
            raise ValueError(f"{source}: the sample rate in {origin} is {rate!r}, a whole number of Hz is needed")
    if not rates:
        raise ValueError(f"{source}: no sample rate in {' or '.join(stated)}; give --sample-rate")
    if len(set(rates.values())) > 1:
        raise ValueError(f"{source}: {', '.join(f'{origin} says {rate} Hz' for origin, rate in rates.items())}")
    return int(next(iter(rates.values())))


def read_heads(folder: Path) -> tuple[tuple[HeadSpec, ...], dict[str, Tensor], dict[str, str]]:
    """Specs, weights and fingerprints of heads.safetensors beside an exported encoder; all empty without it."""
    path = folder / "heads.safetensors"
    if not path.exists():
        return (), {}, {}
    weights = load_safetensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if "heads" not in metadata:
        raise ValueError(f"{path}: its metadata has no specs of heads")
    try:
        described = json.loads(metadata["heads"])
        fingerprints = {spec["name"]: spec.pop("fingerprint", None) for spec in described}
        specs = tuple(HeadSpec(**spec) for spec in described)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: specs of heads: {type(error).__name__}: {' '.join(str(error).split())}") from error
    known = {name: fingerprint for name, fingerprint in fingerprints.items() if fingerprint is not None}
    return specs, weights, known


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder by name, on the CPU."""
    for name, read in (("model.safetensors", load_safetensors), ("pytorch_model.bin", _load_pickle)):
        if (folder / name).exists():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            return {key: tensor for part in _parts(index) for key, tensor in read(folder / part).items()}
    raise ValueError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")


def _parts(index: Path) -> list[str]:
    """The files that an index of sharded weights names, all in its own folder. Raises ValueError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: it has no weight_map")
    for part in weight_map.values():
        if not isinstance(part, str) or part != Path(part).name:
            raise ValueError(f"{index}: {part!r} is no file name, weights are read from this folder alone")
    return sorted(set(weight_map.values()))


def _load_pickle(path: Path) -> dict[str, Tensor]:
    return named_tensors(load_safely(path), path)


def _prefix(found: Mapping[str, Tensor], name: str) -> str:
    """What stands before the encoder's own names, such as `hubert.` in a model with a head."""
    return next((key.removesuffix(name) for key in found if key == name or key.endswith("." + name)), "")


def _current_name(name: str) -> str:
    return re.sub(r"\b(weight_[gv])$", lambda match: OLDER_NAMES[match[1]], name)

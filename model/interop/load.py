"""Any folder that holds a trained encoder, opened, and the encoder that ships with this package.

    from mert_foundry.model.interop.load import load_encoder
    encoder, sample_rate = load_encoder("FOLDER")

FOLDER: what `mert export` or `mert import` wrote, in either form; a run folder (its newest whole checkpoint) or one of
its checkpoints; a Hugging Face folder of Hubert or MERT. `FOLDER@ema` takes the averaged weights of a run or
checkpoint. `foundry-encoder` is the small encoder in model/interop/shipped; with a folder of your own by that name
beside it, that name alone is
refused: write `./foundry-encoder` for yours, or rename it.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.interop.import_hugging_face import import_hugging_face, read_heads
from mert_foundry.model.interop.stored_model import OWN_MODEL_TYPE, StoredMemory, StoredModel, select
from mert_foundry.model.interop.weight_files import load_safetensors, read_json
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.text_memory import TOKENIZER, TextMemory, TextMemoryConfig
from mert_foundry.model.runs.checkpoint import (
    OF_AVERAGE,
    check_weights,
    find_checkpoint,
    load_average,
    load_config,
    load_weights,
    split_average,
)
from mert_foundry.model.runs.stored_config import present_names

SHIPPED_ENCODERS = Path(__file__).parent / "shipped"


def shipped_encoders() -> list[str]:
    """Names of the encoders that ship with this package."""
    return sorted(path.parent.name for path in SHIPPED_ENCODERS.glob("*/config.json"))


def model_folder(name: str) -> str:
    """Where the model of a name lies: the folder of an encoder that ships with this package, else the name as it
    stands.

    Raises ValueError when the working folder has a folder of the name of an encoder that ships with this package.
    """
    plain = name.removesuffix(OF_AVERAGE)
    if plain not in shipped_encoders():
        return name
    if Path(plain).exists():
        raise ValueError(
            f"{name}: {plain} is an encoder that ships with this package, and a folder of that name lies in"
            f" {Path.cwd()}; write ./{name} for the folder, or rename the folder to have the encoder"
        )
    return str(SHIPPED_ENCODERS / name)


def load_encoder(folder: Path | str, device: torch.device | str = "cpu") -> tuple[MertEncoder, int]:
    """The encoder in eval mode on a device, and the sample rate (Hz) of the audio it takes.

    Raises ValueError when the folder is none of those above, or not whole.
    """
    stored = read_model(Path(model_folder(str(folder))))
    return build_encoder(stored).to(device).eval(), stored.sample_rate


def build_encoder(stored: StoredModel) -> MertEncoder:
    """The encoder of a model that was read; it shares the weights."""
    with torch.device("meta"):
        encoder = MertEncoder(stored.encoder)
    encoder.load_state_dict(stored.weights, assign=True)
    return encoder


def read_model(folder: Path) -> StoredModel:
    """Weights and configs of any folder named above. Raises ValueError as `load_encoder`."""
    folder, averaged = split_average(folder)
    if not (folder / "config.json").is_file():
        return read_checkpoint(find_checkpoint(folder)[0], averaged)
    if averaged:
        raise ValueError(f"{folder} is a model with one set of weights; {OF_AVERAGE} is for runs and checkpoints")
    if read_json(folder / "config.json").get("model_type") == OWN_MODEL_TYPE:
        return _read_own(folder)
    return import_hugging_face(folder).model


def read_checkpoint(checkpoint: Path, averaged: bool = False) -> StoredModel:
    """What a whole checkpoint holds, its averaged weights if they are asked for (ValueError when there are none).

    Its config.yaml has `config.encoder`, `heads` and `data`, as jobs/pretrain.py writes them.
    """
    description, weights = load_config(checkpoint), (load_average if averaged else load_weights)(checkpoint)
    data = description["data"]
    memory = None
    if settings := description["config"].get("memory"):
        tokenizer = data["teachers"][TOKENIZER]
        memory = StoredMemory(
            TextMemoryConfig(**settings),
            tokenizer["vocabulary_size"],
            tokenizer["fingerprint"],
            select(weights, "memory."),
        )
    return StoredModel(
        EncoderConfig(**description["config"]["encoder"]),
        select(weights, "encoder."),
        data["sample_rate"],
        tuple(HeadSpec(**spec) for spec in description["heads"]),
        select(weights, "heads."),
        {name: teacher["fingerprint"] for name, teacher in data["teachers"].items()},
        memory=memory,
    )


def _read_own(folder: Path) -> StoredModel:
    config = present_names(read_json(folder / "config.json"))  # an older export may have older names
    try:
        encoder = EncoderConfig(**config["encoder"])
        sample_rate = int(config["sample_rate"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    weights = load_safetensors(folder / "model.safetensors")
    with torch.device("meta"):
        check_weights(MertEncoder(encoder).state_dict(), weights, folder)
    return StoredModel(encoder, weights, sample_rate, *read_heads(folder), memory=_read_memory(folder))


def _read_memory(folder: Path) -> StoredMemory | None:
    """The text memory of memory.safetensors beside an exported encoder; None without it."""
    path = folder / "memory.safetensors"
    if not path.exists():
        return None
    weights = load_safetensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    try:
        described = json.loads(metadata["memory"])
        config, vocabulary_size = TextMemoryConfig(**described["config"]), int(described["vocabulary_size"])
        memory = StoredMemory(config, vocabulary_size, str(described["fingerprint"]), weights)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: settings of the memory: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    with torch.device("meta"):
        check_weights(TextMemory(config, vocabulary_size).state_dict(), weights, path)
    return memory


def build_memory(stored: StoredMemory) -> TextMemory:
    """The text memory of a model that was read; it shares the weights."""
    with torch.device("meta"):
        memory = TextMemory(stored.config, stored.vocabulary_size)
    memory.load_state_dict(stored.weights, assign=True)
    return memory

"""A codec half-way through its training as one file, from which training goes on as if it had never stopped.

The file is in the safetensors format: weights, moments of the optimiser and the state of torch's random generator as
tensors, everything else as JSON in its metadata. It is published by rename, so a kill leaves the one before.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field, JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.documents import Document, parse_model

FORMAT_VERSION = 1
METADATA_KEY, DIGEST_KEY = "codec_training", "tensors_sha256"
MODEL, OPTIMIZER, RANDOM = "model.", "optimizer.", "random_state"


class TrainingPosition(Document):
    """Where a training stands, and what it was begun with."""

    format_version: int = Field(
        default=FORMAT_VERSION, ge=FORMAT_VERSION, le=FORMAT_VERSION, description="Form of this file"
    )
    step: int = Field(ge=0, description="Steps done")
    batches: int = Field(
        ge=0, description="Batches of crops taken, those before the first step and for the codebooks too"
    )
    settings: dict[str, JsonValue] = Field(description="All that decides the result, the manifest's SHA-256 too")
    untrained: dict[str, JsonValue] = Field(description="Evaluation of the untrained codec")
    history: list[dict[str, JsonValue]] = Field(description="Lines of losses.jsonl so far")


@dataclass(frozen=True)
class CodecState:
    """What changes from step to step: steps done, batches taken, tensors by name."""

    step: int
    batches: int
    tensors: Mapping[str, Tensor]


def capture_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of the model's weights and buffers, the optimiser's moments and the random generator's state, by name."""
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{number}.{name}": tensor for name, tensor in moments.items()}
    tensors[RANDOM] = torch.get_rng_state()
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def restore_tensors(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `capture_tensors` took, into a model and an optimiser built with the same settings."""
    model.load_state_dict(
        {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            number, moment = name.removeprefix(OPTIMIZER).split(".")
            moments.setdefault(int(number), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors[RANDOM])


def publish_state(location: str, tensors: Mapping[str, Tensor], position: TrainingPosition) -> None:
    """Write the file whole or not at all, in place of an older one."""
    metadata = {METADATA_KEY: position.model_dump_json(), DIGEST_KEY: _digest(tensors)}
    with files.publishing(location) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk is one of these too
            raise OSError(f"{location}: {error}") from error


def read_position(location: str) -> TrainingPosition | None:
    """Where the training in a local file stands; None when there is no file.

    Raises:
        ValueError: it is not such a file, or of another format version; the file is named.
    """
    if not files.exists(location):
        return None
    try:
        with safe_open(files.local_path(location), "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{location}: not a checkpoint of mert codec ({error})") from error
    if METADATA_KEY not in metadata:
        raise ValueError(f"{location}: not a checkpoint of mert codec, its metadata has no {METADATA_KEY}")
    return parse_model(location, metadata[METADATA_KEY].encode(), TrainingPosition)


def read_state(location: str, position: TrainingPosition) -> CodecState:
    """The state in a local file whose position was read. Raises ValueError when its tensors are damaged."""
    with safe_open(files.local_path(location), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        expected = file.metadata().get(DIGEST_KEY)
    if expected is None:
        raise ValueError(f"{location}: written by an older version, without a digest; remove it and train anew")
    if (found := _digest(tensors)) != expected:
        raise ValueError(f"{location}: its tensors have the SHA-256 {found}, its metadata says {expected}")
    return CodecState(position.step, position.batches, tensors)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over all values, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()

"""A trained encoder and what belongs to it, between the folder it was read from and the one it is written to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from model.encoder import EncoderConfig
from model.heads import HeadSpec

OWN_MODEL_TYPE = "mert_foundry"  # `model_type` in config.json of a folder that is no native Hugging Face model


@dataclass(frozen=True)
class StoredModel:
    """Weights on the CPU with all it takes to build their modules.

    encoder, weights: of MertEncoder; weights by its names.
    sample_rate: Hz of the audio it was trained on.
    heads, head_weights: of the pre-training heads, `{target}.{name in the head}`; both empty when there are none.
    fingerprints: by target, that of the teacher a head was trained on, where known.
    normalised: whether it was trained on audio of zero mean and unit variance, as some Hubert models were.
    """

    encoder: EncoderConfig
    weights: Mapping[str, Tensor]
    sample_rate: int
    heads: tuple[HeadSpec, ...] = ()
    head_weights: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    normalised: bool = False


def select(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose name begins with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def check_weights(own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: object) -> None:
    """Raise ValueError naming `source` and the first weight that is missing, unknown or of another shape."""
    for name in sorted(own.keys() | found.keys()):
        if name not in found or name not in own:
            raise ValueError(f"{source}: weight {name} is only in the {'model' if name in own else 'checkpoint'}")
        if found[name].shape != own[name].shape:
            shapes = f"{list(found[name].shape)} in the checkpoint, {list(own[name].shape)} in the model"
            raise ValueError(f"{source}: weight {name} is {shapes}")

"""A trained encoder and what belongs to it, between the folder it was read from and the one it is written to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.objective.heads import HeadSpec
from mert_foundry.model.objective.text_memory import TextMemoryConfig

OWN_MODEL_TYPE = "mert_foundry"  # `model_type` in config.json of a folder that is no native Hugging Face model


@dataclass(frozen=True)
class StoredMemory:
    """The text memory that an encoder was trained with: its settings, weights by names of TextMemory, and the
    vocabulary.

    fingerprint: of the tokenizer that made the tokens.
    """

    config: TextMemoryConfig
    vocabulary_size: int
    fingerprint: str
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class StoredModel:
    """Weights on the CPU with all it takes to build their modules.

    encoder, weights: of MertEncoder; weights by its names.
    sample_rate: Hz of the audio it was trained on.
    heads, head_weights: of the pre-training heads, `{target}.{name in the head}`; both empty when there are none.
    fingerprints: by target, that of the teacher a head was trained on, where known.
    normalised: whether it was trained on audio of zero mean and unit variance, as some Hubert models were.
    memory: what it read beside the audio; the encoder also works without.
    """

    encoder: EncoderConfig
    weights: Mapping[str, Tensor]
    sample_rate: int
    heads: tuple[HeadSpec, ...] = ()
    head_weights: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    normalised: bool = False
    memory: StoredMemory | None = None


def select(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose name begins with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}

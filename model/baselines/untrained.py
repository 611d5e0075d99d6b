"""An encoder before training: a baseline for the architecture alone, with random weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from mert_foundry.model.encoder import EncoderConfig, MertEncoder
from mert_foundry.model.features.feature_encoder import FeatureEncoder
from mert_foundry.model.features.feature_model import Precision
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.pipeline.frames import SAMPLE_RATE


class UntrainedEncoder(FeatureEncoder):
    """The encoder of a config of mert pretrain (its section `encoder`, without one MERT 95M) with the weights of a
    seed.

    Raises:
        ValueError: naming the file and the first thing wrong in it.
    """

    def __init__(
        self,
        config: Path,
        seed: int,
        device: torch.device,
        precision: Precision = "fp32",
        layers: Sequence[int] | None = None,
    ):
        encoder = read_encoder_config(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = MertEncoder(encoder).state_dict()
        stored = StoredModel(encoder, weights, encoder.frontend.sample_rate or SAMPLE_RATE)
        super().__init__(stored, f"random:{config}@{seed}", device, precision, layers)
        self.seed = seed
        self.settings = {**self.settings, "seed": seed}

    def describe(self) -> dict[str, object]:
        """See FeatureModel."""
        return super().describe() | {"baseline": "random", "seed": self.seed}


def read_encoder_config(path: Path) -> EncoderConfig:
    """The section `encoder` of a config of mert pretrain. Raises ValueError naming the file."""
    try:
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"a mapping of keys is needed, not {type(values).__name__}")
        return EncoderConfig(**(values.get("encoder") or {}))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, ("encoder", *first["loc"])))
        raise ValueError(f"{path}: {key}: {first['msg']}") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(getattr(error, 'strerror', None) or error).split())}") from error

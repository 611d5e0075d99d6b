"""Fit codebooks to a hidden layer of an encoder, for the encoder teacher; one codebook is HuBERT's k-means."""

from typing import Literal

import torch
from pydantic import Field

from mert_foundry.model.teacher.hidden_states import HiddenStates, LayerConfig
from mert_foundry.pipeline.fitting.residual_fitting import ResidualFitting
from mert_foundry.pipeline.storage.folder_kinds import ENCODER_CODES


class EncoderFittingConfig(LayerConfig):
    """Codebooks of a hidden layer of an encoder."""

    kind: Literal["encoder"] = Field(description="Codebooks of a hidden layer of an encoder")
    codebooks: int = Field(default=1, gt=0, le=64, description="Codebooks, each for what those before it leave")
    entries: int = Field(default=500, gt=1, le=65536, description="Entries per codebook")
    dimensions: int | None = Field(default=None, gt=0, description="Principal components that are coded; null: all")


def encoder_fitting(config: EncoderFittingConfig) -> ResidualFitting:
    """The fitting of a config.

    Raises:
        FolderError, ValueError: as `read_encoder`, or the layer has fewer dimensions than are asked for.
    """
    states = HiddenStates(config, torch.device("cpu"))
    if config.dimensions and config.dimensions > states.size:
        raise ValueError(f"{config.model}: a layer has {states.size} dimensions, not {config.dimensions}")
    return ResidualFitting(
        ENCODER_CODES,
        states,
        states.settings,
        codebooks=config.codebooks,
        entries=config.entries,
        dimensions=config.dimensions or states.size,
    )

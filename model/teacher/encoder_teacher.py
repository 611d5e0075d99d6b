"""A trained encoder as teacher: codes of a hidden layer, the second iteration of HuBERT (arXiv 2106.07447, section 4.3)
and MuQ.

Shards hold 75 frames per second. An encoder with a longer hop, such as 960 samples (25 Hz), gives each of its codes to
all frames that its frame stands for; a student with the same hop takes the middle one, and so exactly the codes of its
teacher.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.model.teacher.hidden_states import HiddenStates, LayerConfig, read_encoder
from mert_foundry.pipeline.frames import HOP
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import parse_values
from mert_foundry.pipeline.storage.folder_kinds import ENCODER_CODES
from mert_foundry.pipeline.teachers.fitted_folder import check_feature, codes_spec
from mert_foundry.pipeline.teachers.residual_kmeans import ResidualCard, ResidualKmeans, load_residual


class EncoderTeacherConfig(BaseModel):
    """A hidden layer of an encoder as teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["encoder"] = Field(description="A hidden layer of a trained encoder")
    name: str = Field(default="encoder", description="Name of the target")
    model: str = Field(description="Run, checkpoint or model folder; @ema after it takes averaged weights")
    weights: str = Field(description="Local folder of mert fit; says which layer it is")


class EncoderTeacher:
    """Codes uint16 `[codebooks, frames]`, 75 frames per second; frame i is that of the encoder's hop in which sample
    320 i lies.

    Raises:
        FolderError, FileNotFoundError, ValueError: as `load_residual` and `read_encoder`, or the codebooks were fitted
            to another encoder.
    """

    def __init__(self, config: EncoderTeacherConfig, device: torch.device):
        weights, card = load_residual(Path(config.weights), ENCODER_CODES)
        self.states = HiddenStates(_layer(config, card), device)
        self.quantizer = ResidualKmeans(weights, device)
        self.spec = _specification(config, weights, card, self.states.settings)

    @staticmethod
    def describe(config: EncoderTeacherConfig) -> TargetSpec:
        """See `pipeline.teachers.teacher.Teacher`. Raises as the constructor does."""
        weights, card = load_residual(Path(config.weights), ENCODER_CODES)
        return _specification(config, weights, card, read_encoder(_layer(config, card))[1])

    @torch.inference_mode()
    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a whole track, see `pipeline.teachers.teacher.Teacher`."""
        heard = given = 0  # frames of 320 samples

        def listen() -> Iterator[np.ndarray]:
            nonlocal heard
            for block in blocks:
                heard += len(block) // HOP
                yield block

        for states in self.states.stream(listen()):
            codes = np.repeat(self.quantizer.encode(states), self.states.repeats, axis=1)
            codes = codes[:, : heard - given]  # the last hop of the encoder may go on behind the track
            given += codes.shape[1]
            yield codes


def _specification(
    config: EncoderTeacherConfig, weights: dict[str, np.ndarray], card: ResidualCard, feature: dict
) -> TargetSpec:
    folder = Path(config.weights)
    check_feature(folder, ENCODER_CODES, card.feature_settings, feature)
    settings = {"kind": config.kind} | feature
    origin = {"weights": folder.name, "model": Path(config.model).name}
    return codes_spec(config.name, settings, weights, card.codebooks, card.entries, origin)


def _layer(config: EncoderTeacherConfig, card: ResidualCard) -> LayerConfig:
    """The layer that a card names, of the model that the config names. Raises ValueError when the card names none."""
    settings = card.feature_settings
    windows = {"seconds": settings.get("window_seconds"), "overlap_seconds": settings.get("overlap_seconds")}
    values = {"model": config.model, "layer": settings.get("layer"), "windows": windows}
    return parse_values(f"{Path(config.weights) / ENCODER_CODES.marker}: feature_settings", values, LayerConfig)

"""Hidden states of one layer of an encoder over tracks of any length, as a stream."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mert_foundry.model.features.feature_encoder import FeatureEncoder, identity, unlike_mert_95m
from mert_foundry.model.features.feature_model import check_layers
from mert_foundry.model.features.windows import WindowConfig
from mert_foundry.model.interop.load import model_folder, read_model
from mert_foundry.model.interop.stored_model import StoredModel
from mert_foundry.model.runs.checkpoint import split_average
from mert_foundry.model.teacher.window_stream import stream_windows
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.storage.documents import fingerprint
from mert_foundry.pipeline.storage.folder_kinds import CHECKPOINT, MODEL, RUN, check_input


class LayerConfig(BaseModel):
    """A hidden layer of an encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        description="Run, checkpoint or model folder, or foundry-encoder; @ema after it takes averaged weights"
    )
    layer: int = Field(ge=0, description="Hidden layer; 0 is the input of the first")
    windows: WindowConfig = Field(default=WindowConfig(), description="How long tracks are cut for the encoder")


def read_encoder(config: LayerConfig) -> tuple[StoredModel, dict[str, str | int | float]]:
    """The stored encoder, and what the states of the layer depend on, for fingerprints and cards.

    Raises:
        FolderError: a folder of another kind.
        ValueError: the folder holds no encoder, there is no such layer, or the encoder's rate or hop does not fit
            shards.
    """
    folder = model_folder(config.model)
    check_input(str(split_average(folder)[0]), RUN, CHECKPOINT, MODEL)
    stored = read_model(Path(folder))
    check_layers([config.layer], stored.encoder.transformer.layers, config.model)
    hop = stored.encoder.frontend.hop
    if stored.sample_rate != SAMPLE_RATE or hop % HOP:
        raise ValueError(
            f"{config.model}: {stored.sample_rate} Hz and a hop of {hop} samples;"
            f" shards hold {SAMPLE_RATE} Hz, and the hop must be a multiple of {HOP}"
        )
    settings = identity(unlike_mert_95m(stored), stored.sample_rate, stored.normalised)
    weights = {name: tensor.float().numpy() for name, tensor in stored.weights.items()}
    return stored, {
        "feature": "hidden_states",
        "encoder": fingerprint(settings, weights),  # as feature stores have it
        "layer": config.layer,
        "hop": hop,
        "window_seconds": config.windows.seconds,
        "overlap_seconds": config.windows.overlap_seconds,
    }


class HiddenStates:
    """Audio to the states of a layer, `[frames, size]`, a frame for each hop of the encoder, the last one begun
    included.

    repeats: target frames (75 per second) that a frame stands for. settings: what the states depend on.

    Raises as `read_encoder`.
    """

    def __init__(self, config: LayerConfig, device: torch.device):
        stored, self.settings = read_encoder(config)
        self.encoder = FeatureEncoder(stored, config.model, device, "fp32", [config.layer])
        self.size = self.encoder.width
        self.repeats = self.encoder.geometry.hop // HOP
        self.window_frames, self.overlap_frames = config.windows.in_frames(SAMPLE_RATE / self.encoder.geometry.hop)

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Blocks as `pipeline.teachers.teacher.Teacher.label` takes them; yields float32 `[f, size]`."""
        for part in stream_windows(blocks, self.encoder.geometry, self.window_frames, self.overlap_frames):
            states = self.encoder.encode(torch.from_numpy(part.audio)[None])[0, :, 0]
            yield states[part.keep_start : part.keep_stop]

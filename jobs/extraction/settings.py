"""The settings of mert extract."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.command.preflight import Device, resolve_device
from mert_foundry.model.features.feature_model import Precision
from mert_foundry.model.features.windows import WindowConfig


class StorageConfig(BaseModel):
    """How rows lie in the store; a part is what a worker holds in memory and publishes as one file an array."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk_seconds: float = Field(default=10.0, gt=0, description="Frames of one layer that are read together, seconds")
    part_seconds: float = Field(
        default=600.0,
        gt=0,
        description="Frames of a part, seconds, rounded up to whole chunks (MERT 95M, 13 layers, float16: 0.9 GB)",
    )
    part_tracks: int | None = Field(
        default=None,
        gt=0,
        description="Tracks of a part when features are pooled; null: about half an hour of audio, 64 to 512 tracks, or"
        " the size that the store has",
    )


class ExtractConfig(BaseModel):
    """What `mert extract` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        min_length=1,
        description="Local folder of an encoder (RUN@ema: averaged weights), foundry-encoder, or a baseline: log_mel,"
        " cqt, chroma, mfcc, musicnn, codec:WEIGHTS (such as codec:foundry-small), random:CONFIG.yaml@SEED",
    )
    input: str = Field(
        min_length=1,
        description="Shard folder, manifest folder, folder of audio, or a table of clips (.csv, .jsonl) with a column"
        " path; local path or fsspec URL",
    )
    input_root: str | None = Field(
        default=None, description="Folder that the paths of a table are relative to; null: the folder of the table"
    )
    out: str = Field(min_length=1, description="The zarr store; local path or fsspec URL")
    layers: Literal["all"] | list[int] = Field(
        default="all", description="Hidden states to keep: 0 is the input of the first layer, i the output of layer i"
    )
    pooling: Literal["none", "mean", "mean_std"] = Field(
        default="none", description="none: every frame; else mean, or mean and standard deviation, over each track"
    )
    dtype: Literal["float16", "float32"] = Field(default="float16", description="Type of the stored features")
    windows: WindowConfig = Field(default=WindowConfig(), description="How long tracks are cut")
    batch_seconds: float = Field(
        default=30.0,
        ge=0.001,
        description="Windows of about the same length are encoded together, so many seconds of them",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        default="auto", description="Arithmetic; tf32 needs a GPU; auto: fp32 on a CPU, tf32 on a GPU"
    )
    storage: StorageConfig = Field(default=StorageConfig(), description="How rows lie in the store")
    overwrite: bool = Field(default=False, description="Throw away a store of another model, input or settings")
    device: Device = Field(default="cpu", description="Where the encoder runs; auto: cuda where this machine has one")
    actors: int = Field(
        default=0, ge=0, description="Workers; 0: one a CPU core, or one a GPU; on Ray more than these share them"
    )
    decode_threads: int = Field(default=2, gt=0, description="Reading threads of each worker")
    address: str | None = Field(
        default=None,
        description="'local' (Ray on this machine), or the address of a running Ray cluster; null: RAY_ADDRESS, else"
        " processes of this machine, or on GPUs local",
    )

    def resolved_precision(self) -> Precision:
        """The arithmetic that `auto` stands for."""
        if self.precision != "auto":
            return self.precision
        return "tf32" if resolve_device(self.device) == "cuda" else "fp32"

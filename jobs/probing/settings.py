"""The settings of mert probe."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.command.preflight import Device
from mert_foundry.model.probing.protocol import ProbeProtocol
from mert_foundry.model.probing.separation import SeparationProtocol


class ProbeConfig(BaseModel):
    """What `mert probe` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | list[str] | dict[str, str] = Field(
        default=[],
        description="Encoders: a run, a checkpoint, a folder of mert export or import, a Hugging Face folder,"
        " foundry-encoder, or the name of a baseline; several as a list, or as a mapping from the name in the report"
        " to the encoder",
    )
    baselines: list[str] = Field(
        default=["log_mel", "cqt", "chroma", "mfcc", "codec:foundry-small"],
        description="Baselines to compare with; random:CONFIG.yaml@SEED is an untrained encoder",
    )
    data: str = Field(
        min_length=1,
        description="What mert suite made, a folder of published sets, or the task.yaml of a task of your own",
    )
    tasks: list[str] = Field(default=[], description="Names of tasks; []: all that are found under data")
    out: str = Field(min_length=1, description="Folder of the report, local")
    cache: str | None = Field(default=None, description="Folder of the features, local; null: features/ in out")
    compare_with: str | None = Field(
        default=None, description="Model that differences are taken from; null: the first baseline"
    )
    pooling: Literal["mean", "mean_std"] = Field(
        default="mean",
        description="What a head sees of a clip: the mean over its frames (as published), or mean and standard"
        " deviation; baselines of spectra always give both",
    )
    score: Literal["test", "valid"] = Field(
        default="test", description="Split that is scored; valid leaves the test clips untouched"
    )
    follow: str | None = Field(
        default=None, description="Folder of a run whose checkpoints are probed as they appear, on validation clips"
    )
    every_checkpoint: bool = Field(default=False, description="Probe every checkpoint of a run, not the newest alone")
    protocol: ProbeProtocol = Field(default=ProbeProtocol(), description="Heads, sweep, choice and intervals")
    separation: SeparationProtocol = Field(default=SeparationProtocol(), description="How stems are separated")
    batch_seconds: float = Field(
        default=120.0, ge=1, description="Audio of a batch while features are extracted, seconds"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        default="auto", description="Arithmetic of the encoder; auto: fp32 on a CPU, tf32 on a GPU"
    )
    device: Device = Field(
        default="cpu", description="Where encoder and heads run; auto: cuda where this machine has one"
    )

"""The settings of the training loop."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mert_foundry.model.objective.mixture import MixtureConfig
from mert_foundry.model.objective.span_mask import MaskConfig
from mert_foundry.model.training.optimizer import OptimizerConfig, ScheduleConfig
from mert_foundry.model.training.sharding import Parallel


class TrainerConfig(BaseModel):
    """How a model is trained; the defaults are MERT 95M's where the paper has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW and gradient clipping")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="learning rate and length of training")
    mask: MaskConfig = Field(MaskConfig(), description="span masks")
    mixture: MixtureConfig | None = Field(MixtureConfig(), description="in-batch noise mixture; null for none")
    ema: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="decay of a moving average of all weights, stored beside them and opened as RUN@ema; null: none",
    )
    accumulation: int = Field(1, ge=1, description="micro-batches into which a rank's batch is split")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto", description="forward arithmetic; tf32 needs a GPU; auto: bf16 on GPUs that have it, else fp32"
    )
    compile: bool = Field(
        False,
        description="torch.compile the layers: under a minute at each start, then faster steps on a GPU",
    )
    parallel: Parallel = Field(
        "ddp",
        description="ddp: every rank holds the whole model; fsdp: the ranks divide weights, gradients and moments;"
        " hsdp: they divide them within a replica; may be switched when a run goes on",
    )
    replicas: int | None = Field(
        None, ge=1, description="with hsdp: groups of ranks that hold the whole model each; null: every node is one"
    )
    peak_operations: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="operations per second of one device at most; the log says which share of them is used (MFU);"
        " null: as known of some GPUs in bf16 (model/training/device_peaks.py)",
    )
    log_every: int = Field(50, ge=1, description="steps between training records")
    validate_every: int = Field(5_000, ge=1, description="steps between validations")
    diagnostics_every: int | None = Field(200, ge=1, description="steps between diagnostics; null for none")
    checkpoint_every: int = Field(5_000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="newest checkpoints kept")
    keep_every: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints that stay for good; a multiple of checkpoint_every; null: none do",
    )
    max_failed_checkpoints: int = Field(
        3,
        ge=1,
        description="failed writes of a checkpoint in a row that end training, as on a full disk; after fewer it goes"
        " on",
    )
    probe_every: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints that a process beside the run probes, as `probe` says; a multiple of"
        " checkpoint_every; null: none is probed",
    )
    step_deadline: float | None = Field(
        1_800.0,
        gt=0.0,
        allow_inf_nan=False,
        description="seconds that a step may take, the wait for its batch included, before the run ends with every"
        " rank's stacks in the log; longer than stream.patience, and than the first step with compile; null: any time",
    )
    spike_band: float | None = Field(
        10.0,
        gt=0.0,
        description="robust standard deviations above the median of the last 200 steps beyond which a loss or"
        " gradient norm is a spike: the step is recorded with its examples; null: none is",
    )
    on_spike: Literal["record", "skip", "rewind"] = Field(
        "record",
        description="record: a step that is a spike is taken and recorded; skip: it is recorded, and the optimiser"
        " does not move by it; rewind: the run goes back to the newest checkpoint that is rewind_steps or more"
        " before, and passes over all batches from there to the spike's",
    )
    rewind_steps: int = Field(
        100, ge=1, description="with on_spike: rewind: steps from the checkpoint to the spike, at least"
    )
    max_consecutive_skips: int = Field(
        20, ge=1, description="steps in a row that are not finite, or are skipped as spikes, that end training"
    )

    @model_validator(mode="after")
    def _replicas_fit(self) -> "TrainerConfig":
        if self.replicas is not None and self.parallel != "hsdp":
            raise ValueError(f"replicas is {self.replicas}, but parallel is {self.parallel}: only hsdp has replicas")
        return self

    @model_validator(mode="after")
    def _knows_spikes(self) -> "TrainerConfig":
        if self.on_spike != "record" and self.spike_band is None:
            raise ValueError(f"on_spike is {self.on_spike}, but spike_band is null: nothing would be a spike")
        return self

    @model_validator(mode="after")
    def _has_checkpoints_to_probe_and_keep(self) -> "TrainerConfig":
        for name, every, use in (("probe_every", self.probe_every, "probe"), ("keep_every", self.keep_every, "keep")):
            if every is not None and every % self.checkpoint_every:
                raise ValueError(
                    f"{name} is {every}, no multiple of checkpoint_every {self.checkpoint_every}: there would be no"
                    f" checkpoint to {use}"
                )
        return self

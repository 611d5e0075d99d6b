"""What `mert plan` is asked, beside the two configs that it plans for."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mert_foundry.jobs.planning.gpus import GPUS


class Prices(BaseModel):
    """Prices in any one currency; what has none is left out of the cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="Of a GPU for an hour")
    worker_hour: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Of a labelling worker for an hour"
    )
    gb_month: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Of 1e9 bytes in the store for a month"
    )
    thousand_reads: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Of 1,000 requests that read from the store"
    )
    thousand_writes: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Of 1,000 requests that write into the store"
    )


class PlanConfig(BaseModel):
    """The settings of `mert plan` itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="Manifest folder")
    workers: int = Field(default=1, ge=1, description="Labelling workers among which the hours are shared")
    labelling_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Times real time at which one worker labels; null: measured here on some tracks",
    )
    flac_bytes_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="FLAC bytes of an audio second at 24 kHz mono; null: measured here on some tracks",
    )
    calibration_tracks: int = Field(
        default=64, ge=1, description="Tracks of the manifest that are decoded and encoded to measure FLAC"
    )
    calibration_seconds: float = Field(
        default=120.0, gt=0, allow_inf_nan=False, description="About how much audio is labelled to measure a worker"
    )
    gpus: int = Field(default=1, ge=1, description="GPUs that the run is trained on, one rank each")
    gpu: str | None = Field(default=None, description=f"Kind of GPU with measured rates: {', '.join(GPUS)}; null: none")
    audio_seconds_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Audio seconds that one GPU trains on in a second; null: as measured on `gpu`",
    )
    prices: Prices = Field(default=Prices(), description="What things cost")

    @field_validator("gpu")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in GPUS:
            raise ValueError(f"not measured; known are {', '.join(GPUS)}, and audio_seconds_per_second= states a rate")
        return value

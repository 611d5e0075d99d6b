"""What `mert plan` is asked, beside the two configs that it plans for."""

from pydantic import BaseModel, ConfigDict, Field


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
        default=24, ge=1, description="Tracks of the manifest that are decoded and encoded to measure FLAC"
    )
    calibration_seconds: float = Field(
        default=120.0, gt=0, allow_inf_nan=False, description="About how much audio is labelled to measure a worker"
    )

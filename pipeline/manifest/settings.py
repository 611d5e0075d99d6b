"""The settings of a scan."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mert_foundry.pipeline.audio.blocks import SILENCE_DBFS
from mert_foundry.pipeline.manifest.rows import REST_SPLIT

Keep = Literal["all", "best", "first"]


class NearDuplicateConfig(BaseModel):
    """Near duplicates within the corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: Keep = Field(
        description="What is kept of near duplicates: all; the best, of the highest sample rate, then bytes a second,"
        " then length; or the first by key. All stay in one group"
    )


class ManifestConfig(BaseModel):
    """What `mert manifest` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="Folder or fsspec URL with the audio; scanned with all folders below it")
    out: str = Field(description="Folder or fsspec URL for manifest.jsonl, rejected.jsonl, manifest.yaml")
    files: str = Field(
        default="",
        description="CSV or JSON lines with a column path, relative to root: these files alone are scanned. Columns"
        " group and split say where they belong, others are carried along in the manifest as extra",
    )
    tags: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
        description="Tags of the files, such as [title, artist, album, genre, comment, lyrics], that go into the"
        " manifest as extra; a column of files with the same name counts before the tag",
    )
    seed: int = Field(default=0, description="Seed of the split")
    splits: dict[str, float] = Field(
        default={"valid": 0.05}, description="Share per split, met on average over the groups; what is left is train"
    )
    group_by: Literal["folder", "track"] = Field(
        default="folder", description="What must not straddle splits: a folder (a track right under root counts alone)"
    )
    min_seconds: float = Field(default=3.0, ge=0, description="Shorter tracks are rejected, seconds")
    max_seconds: float = Field(default=10_800.0, gt=0, description="Longer tracks are rejected, seconds")
    silence_dbfs: float = Field(
        default=SILENCE_DBFS,
        description="Tracks whose peak, as stored (24 kHz mono), is below are rejected, dB full scale",
    )
    max_clipped_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Tracks with a larger share of samples more than 1 dB beyond full scale are rejected",
    )
    length_tolerance_seconds: float = Field(
        default=0.2,
        ge=0,
        description="The header of a lossy format may differ from the decoded length by this, seconds",
    )
    exclude: str = Field(
        default="",
        description="Data folder of probe sets, or one task.yaml: tracks that hold one of their test clips are"
        " rejected",
    )
    near_duplicates: NearDuplicateConfig | None = Field(
        default=None, description="Look for near duplicates, by a fingerprint of each track; null: do not"
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="Decoding processes; 0: one a core, on Ray also of nodes that join while the scan runs",
    )
    wait_for_nodes: float = Field(
        default=3600.0,
        ge=60,
        description="On Ray: how long to wait when no worker is left, as when all nodes have gone, before the command"
        " ends, seconds",
    )
    address: str | None = Field(
        default=None,
        description="'local' (Ray on this machine), or the address of a running Ray cluster; null: RAY_ADDRESS, else"
        " processes of this machine",
    )
    patience: float = Field(
        default=60.0,
        ge=0,
        description="Seconds to retry a file that the storage does not give, before it is listed as unreachable",
    )

    @field_validator("tags")
    @classmethod
    def _lower_case(cls, tags: list[str]) -> list[str]:
        return sorted({tag.lower() for tag in tags})

    @model_validator(mode="after")
    def _check_splits(self) -> "ManifestConfig":
        check_shares(self.splits)
        return self

    def recorded(self) -> dict:
        """The settings that shape the result, without folders and worker count."""
        return self.model_dump(
            mode="json",
            exclude={"root", "out", "workers", "patience", "wait_for_nodes", "address"}
            | {name for name in ("exclude", "files", "tags", "near_duplicates") if not getattr(self, name)},
        )


def check_shares(splits: dict[str, float]) -> None:
    """Raise ValueError naming a split that cannot have this name, or shares that leave nothing for the split of the
    rest.
    """
    for name in splits:
        if not re.fullmatch(r"[a-z][a-z0-9]*", name) or name == REST_SPLIT:
            raise ValueError(
                f"splits: {name!r} is not a split name (lower-case letters and digits; not {REST_SPLIT!r})"
            )
    if any(share < 0 for share in splits.values()) or sum(splits.values()) >= 1:
        raise ValueError(f"splits: shares {splits} must be positive and leave something for {REST_SPLIT!r}")

"""All of an extraction that is decided before the first part."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.extraction.part import WorkOrder, model_fingerprint
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.extraction.source import Input
from mert_foundry.model.features.feature_encoder import FeatureEncoder
from mert_foundry.pipeline.features.plan import (
    Part,
    StoreLayout,
    frame_offsets,
    plan_frame_parts,
    plan_track_parts,
    tracks_digest,
)
from mert_foundry.pipeline.features.resume import KIND, SCHEMA_VERSION, description_digest
from mert_foundry.pipeline.frames import AUDIO_VERSION, SAMPLE_RATE

ARRAYS = {
    "none": ("features",),
    "mean": ("mean",),
    "mean_std": ("mean", "std"),
    "mean_deviation": ("mean", "deviation"),  # of a store that was begun when mean_std had this name
}
SEAMS = (
    "A track of at most window_frames frames is encoded whole. A longer one is cut into windows of window_frames frames"
    " that start at frames 0, step, 2 step, ... (step = window_frames - overlap_frames) while more than a window is left,"
    " and one that ends with the track. Where a window starting at frame a is followed by one starting at frame b, frames"
    " before (a + window_frames + b) // 2 come from the first and the others from the second."
)


class Plan(BaseModel):
    """All that is decided before the first part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: WorkOrder = Field(description="What each worker must know")
    description: dict[str, Any] = Field(description="Attributes of the store")
    table: dict[str, list] = Field(description="The track table, without `dropped`")
    parts: list[Part] = Field(description="Every part")


def make_plan(config: ExtractConfig, encoder: FeatureEncoder, found: Input) -> Plan:
    """Rows, parts and attributes; a pure function of model, input and settings.

    Raises ValueError when there is no track with a frame.
    """
    geometry, rate = encoder.geometry, encoder.sample_rate
    frame_rate = rate / geometry.hop
    frames = {track.key: geometry.num_frames(track.samples_at(rate)) for track in found.tracks}
    # Too short for a frame: there is nothing to keep of it.
    tracks = [track for track in found.tracks if frames[track.key]]
    if not tracks:
        raise ValueError(
            f"{config.input}: no track with a frame in it ({len(found.tracks)} tracks, {len(found.rejected)} rejected)"
        )
    lengths = [frames[track.key] for track in tracks]
    layout = make_layout(config, encoder, lengths, frame_rate)
    window_frames = max(1, round(config.windows.seconds * frame_rate))
    overlap_frames = min(round(config.windows.overlap_seconds * frame_rate), window_frames - 1)
    description = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": {
            "fingerprint": model_fingerprint(encoder),
            "layers": encoder.num_layers,
            "width": encoder.width,
            "unlike_mert_95m": encoder.architecture,
            "normalised_audio": encoder.normalised,
        },
        "sample_rate": rate,
        "frame_rate": frame_rate,
        "hop": geometry.hop,
        "samples_of_a_frame": geometry.reach,
        "seams": SEAMS,
        "input": {
            "kind": found.kind,
            "tracks": len(found.tracks),
            "tracks_sha256": tracks_digest(found.tracks),
            "without_a_frame": [track.key for track in found.tracks if not frames[track.key]],
            "rejected": found.rejected,
        },
        "settings": {
            "layers": list(encoder.layers),
            "pooling": config.pooling,
            "dtype": config.dtype,
            "window_frames": window_frames,
            "overlap_frames": overlap_frames,
            "batch_samples": round(config.batch_seconds * rate),
            "precision": config.resolved_precision(),
            "part_rows": layout.part_rows,
            "chunk_rows": layout.chunk_rows,
        },
    }
    if found.kind != "shards" or rate != SAMPLE_RATE:  # else the samples are those of the shards
        description["settings"]["audio_version"] = AUDIO_VERSION
    order = WorkOrder(
        model=config.model,
        model_fingerprint=description["model"]["fingerprint"],
        audio=found.audio,
        from_shards=found.kind == "shards",
        out=config.out,
        layout=layout,
        digest=description_digest(description),
        window_frames=window_frames,
        overlap_frames=overlap_frames,
        batch_samples=round(config.batch_seconds * rate),
        precision=config.resolved_precision(),
        decode_threads=config.decode_threads,
    )
    plan_parts = plan_frame_parts if layout.row == "frame" else plan_track_parts
    table = {
        "key": [track.key for track in tracks],
        "seconds": [track.seconds for track in tracks],
        "offset": frame_offsets(lengths)[:-1].tolist(),
        "length": lengths,
        "split": [track.split for track in tracks],
        "group": [track.group for track in tracks],
    }
    return Plan(
        order=order,
        description=description,
        table=table,
        parts=plan_parts(tracks, lengths, layout.part_rows, frame_rate),
    )


def in_names_of(plan: Plan, description: dict[str, Any]) -> Plan:
    """The plan for a store whose description says the same in older names (`begun_as`): it goes on in these, since its
    parts carry the digest of what it says, and its arrays their names.
    """
    if description == plan.description:
        return plan
    layout = plan.order.layout.model_copy(update={"arrays": ARRAYS[description["settings"]["pooling"]]})
    order = plan.order.model_copy(update={"layout": layout, "digest": description_digest(description)})
    return plan.model_copy(update={"order": order, "description": description})


def make_layout(config: ExtractConfig, encoder: FeatureEncoder, lengths: list[int], frame_rate: float) -> StoreLayout:
    """Arrays for tracks of `lengths` frames."""
    if config.pooling == "none":
        chunk_rows = max(1, round(config.storage.chunk_seconds * frame_rate))
        part_rows = max(1, -(-round(config.storage.part_seconds * frame_rate) // chunk_rows)) * chunk_rows
    else:
        chunk_rows = part_rows = config.storage.part_tracks
    return StoreLayout(
        arrays=ARRAYS[config.pooling],
        row="frame" if config.pooling == "none" else "track",
        rows=sum(lengths) if config.pooling == "none" else len(lengths),
        layers=encoder.layers,
        width=encoder.width,
        dtype=config.dtype,
        part_rows=part_rows,
        chunk_rows=chunk_rows,
    )

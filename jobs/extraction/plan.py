"""The plan of an extraction: everything that is decided before the first part."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.extraction.models import model_fingerprint, tokenizer_of
from mert_foundry.jobs.extraction.part import ExtractionOrder
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.extraction.source import Input
from mert_foundry.model.features.feature_model import FeatureModel
from mert_foundry.pipeline.features.plan import (
    Part,
    SourceTrack,
    StoreLayout,
    frame_offsets,
    plan_frame_parts,
    plan_track_parts,
    tracks_digest,
)
from mert_foundry.pipeline.features.resume import KIND, SCHEMA_VERSION, PartRecord, description_digest
from mert_foundry.pipeline.frames import AUDIO_VERSION, SAMPLE_RATE

ARRAYS = {
    "none": ("features",),
    "mean": ("mean",),
    "mean_std": ("mean", "std"),
    "mean_deviation": ("mean", "deviation"),  # as stores of version 0.1 call mean_std
}
SEAMS = (
    "A track of at most window_frames frames is encoded whole. A longer one is cut into windows of window_frames"
    " frames that start at frames 0, step, 2 step, ... (step = window_frames - overlap_frames) while more than a"
    " window is left, and one that ends with the track. Where a window starting at frame a is followed by one"
    " starting at frame b, frames before (a + window_frames + b) // 2 come from the first and the others from the"
    " second."
)
TOO_SHORT = "too_short: no frame of the model fits into it"
# Of a part of pooled features: small enough to lose at a kill, and large enough that few files are written.
PART_SECONDS = 1800.0
FEWEST_TRACKS, MOST_TRACKS, TRACKS_OF_UNKNOWN_LENGTH = 64, 512, 128


class Plan(BaseModel):
    """All that is decided before the first part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: ExtractionOrder = Field(description="What each worker must know")
    description: dict[str, Any] = Field(description="Attributes of the store")
    table: dict[str, list[Any]] = Field(description="The track table, without `dropped`, as far as it is known")
    parts: list[Part] = Field(description="Every part")
    samples_of_a_frame: int = Field(description="Samples that make one frame")
    hop: int = Field(description="Samples from frame to frame")
    sample_rate: int = Field(description="Of the model, Hz")
    dropped: dict[str, str] = Field(description="Tracks that are known to be of no use, by key: reason and detail")

    @property
    def seconds(self) -> float | None:
        """Audio seconds in all; None when lengths are not known before they are decoded."""
        known = all(span.stop is not None for part in self.parts for span in part.spans)
        return sum(part.seconds for part in self.parts) if known else None

    def finished_table(self, records: Iterable[PartRecord]) -> tuple[dict[str, list[Any]], dict[str, str]]:
        """The track table with the lengths that the parts found, and what was dropped, by key."""
        records = list(records)
        dropped = self.dropped | {key: reason for record in records for key, reason in record.dropped.items()}
        found = {key: samples for record in records for key, samples in record.samples.items()}
        table = {name: list(values) for name, values in self.table.items()}
        for index, key in enumerate(table["key"]):
            if key in found:
                table["seconds"][index] = found[key] / self.sample_rate
                table["length"][index] = max(0, (found[key] - self.samples_of_a_frame) // self.hop + 1)
        if self.order.layout.row == "track":  # else the rows lie as they were planned
            table["offset"] = frame_offsets(table["length"])[:-1].tolist()
        return table, dropped


def make_plan(config: ExtractConfig, model: FeatureModel, found: Input) -> Plan:
    """Rows, parts and attributes; a pure function of model, input and settings.

    Raises ValueError when there is no track with a frame, and as `check_tokens`.
    """
    check_tokens(config, model, found)
    lengths = frames_of(found.tracks, model)
    # A track too short for a frame has no row, except in a table, which has a row for each of its lines.
    kept = [index for index, frames in enumerate(lengths) if found.kind == "table" or frames != 0]
    if all(lengths[index] == 0 for index in kept):
        raise ValueError(
            f"{config.input}: no track with a frame in it ({len(found.tracks)} tracks, {len(found.rejected)} rejected)"
        )
    tracks, frames = [found.tracks[index] for index in kept], [lengths[index] for index in kept]
    layout = make_layout(config, model, tracks, frames)
    description = describe_store(config, model, found, layout)
    frame_rate = model.sample_rate / model.geometry.hop
    if layout.row == "frame":
        parts = plan_frame_parts(tracks, known(frames), layout.part_rows, frame_rate)
    else:
        parts = plan_track_parts(tracks, frames, layout.part_rows, frame_rate)
    return Plan(
        order=make_order(config, model, found, layout, description),
        description=description,
        table=make_table(tracks, frames) | {name: [column[i] for i in kept] for name, column in found.columns.items()},
        parts=parts,
        samples_of_a_frame=model.geometry.receptive_field,
        hop=model.geometry.hop,
        sample_rate=model.sample_rate,
        dropped={track.key: TOO_SHORT for track, length in zip(tracks, frames) if length == 0} | found.dropped,
    )


def check_tokens(config: ExtractConfig, model: FeatureModel, found: Input) -> None:
    """Raise ValueError when a model over tokens is given audio, or tokens of another tokenizer, or a model of audio is
    given tokens.
    """
    reads = tokenizer_of(model)
    if (reads is None) != (found.tokenizer is None):
        takes, there = ("audio" if each is None else "tokens" for each in (reads, found.tokenizer))
        raise ValueError(f"{config.model} reads {takes}, {config.input} has {there}")
    if reads != found.tokenizer:
        raise ValueError(
            f"{config.model} reads tokens of tokenizer {reads}, those of {config.input} are of {found.tokenizer}"
        )


def frames_of(tracks: list[SourceTrack], model: FeatureModel) -> list[int | None]:
    """Frames of each track; None where its length is not known."""
    samples = [track.samples_at(model.sample_rate) for track in tracks]
    return [None if count is None else model.geometry.num_frames(count) for count in samples]


def known(lengths: list[int | None]) -> list[int]:
    """The lengths, all of which are known: frames have rows only where they are counted before."""
    return [length for length in lengths if length is not None]


def make_table(tracks: list[SourceTrack], lengths: list[int | None]) -> dict[str, list[Any]]:
    """The columns that every track table has, but `dropped`; lengths that are not known are 0."""
    counted = [length or 0 for length in lengths]
    return {
        "key": [track.key for track in tracks],
        "seconds": [track.seconds for track in tracks],
        "offset": frame_offsets(counted)[:-1].tolist(),
        "length": counted,
        "split": [track.split for track in tracks],
        "group": [track.group for track in tracks],
    }


def describe_store(config: ExtractConfig, model: FeatureModel, found: Input, layout: StoreLayout) -> dict[str, Any]:
    """The attributes that say what the store is."""
    rate, geometry = model.sample_rate, model.geometry
    window_frames, overlap_frames = config.windows.in_frames(model.sample_rate / model.geometry.hop)
    lengths = frames_of(found.tracks, model)
    settings: dict[str, Any] = {
        "layers": list(model.layers),
        "pooling": config.pooling,
        "dtype": config.dtype,
        "window_frames": window_frames,
        "overlap_frames": overlap_frames,
        "batch_samples": round(config.batch_seconds * rate),
        "precision": config.resolved_precision(),
        "part_rows": layout.part_rows,
        "chunk_rows": layout.chunk_rows,
    }
    if found.kind not in ("shards", "documents") or rate != SAMPLE_RATE:  # else the samples are those of the shards
        settings["audio_version"] = AUDIO_VERSION
    fixed = {"fingerprint": model_fingerprint(model), "layers": model.num_layers, "width": model.width}
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": fixed | model.describe(),
        "sample_rate": rate,
        "frame_rate": rate / geometry.hop,
        "hop": geometry.hop,
        "samples_of_a_frame": geometry.receptive_field,
        "seams": SEAMS,
        "input": {
            "kind": found.kind,
            "tracks": len(found.tracks),
            "tracks_sha256": tracks_digest(found.tracks),
            "without_a_frame": [track.key for track, length in zip(found.tracks, lengths) if length == 0],
            "rejected": found.rejected,
        },
        "settings": settings,
    }


def make_order(
    config: ExtractConfig, model: FeatureModel, found: Input, layout: StoreLayout, description: dict[str, Any]
) -> ExtractionOrder:
    """What each worker must know."""
    window_frames, overlap_frames = config.windows.in_frames(model.sample_rate / model.geometry.hop)
    return ExtractionOrder(
        model=config.model,
        model_fingerprint=description["model"]["fingerprint"],
        audio=found.audio,
        kind=found.kind,
        out=config.out,
        layout=layout,
        digest=description_digest(description),
        window_frames=window_frames,
        overlap_frames=overlap_frames,
        batch_samples=description["settings"]["batch_samples"],
        precision=config.resolved_precision(),
        decode_threads=config.decode_threads,
    )


def in_stored_names(plan: Plan, description: dict[str, Any]) -> Plan:
    """The plan for a store whose description says the same in older names (`description_as_stored`).

    A store of an older version keeps its names: finished parts carry the digest of its description, and arrays have the
    names of its pooling.
    """
    if description == plan.description:
        return plan
    layout = plan.order.layout.model_copy(update={"arrays": ARRAYS[description["settings"]["pooling"]]})
    order = plan.order.model_copy(update={"layout": layout, "digest": description_digest(description)})
    return plan.model_copy(update={"order": order, "description": description})


def make_layout(
    config: ExtractConfig, model: FeatureModel, tracks: list[SourceTrack], lengths: list[int | None]
) -> StoreLayout:
    """Arrays for tracks of `lengths` frames."""
    row: Literal["frame", "track"] = "frame" if config.pooling == "none" else "track"
    if row == "frame":
        frame_rate = model.sample_rate / model.geometry.hop
        rows = sum(known(lengths))
        chunk_rows = max(1, round(config.storage.chunk_seconds * frame_rate))
        part_rows = max(1, -(-round(config.storage.part_seconds * frame_rate) // chunk_rows)) * chunk_rows
    else:
        rows = len(lengths)
        chunk_rows = part_rows = config.storage.part_tracks or tracks_of_a_part(tracks)
    return StoreLayout(
        arrays=ARRAYS[config.pooling],
        row=row,
        rows=rows,
        layers=model.layers,
        width=model.width,
        dtype=config.dtype,
        part_rows=part_rows,
        chunk_rows=chunk_rows,
    )


def tracks_of_a_part(tracks: list[SourceTrack]) -> int:
    """How many of them are about half an hour of audio, within FEWEST_TRACKS and MOST_TRACKS."""
    if any(track.num_samples is None for track in tracks):
        return TRACKS_OF_UNKNOWN_LENGTH
    mean = sum(track.seconds for track in tracks) / len(tracks)
    return min(MOST_TRACKS, max(FEWEST_TRACKS, round(PART_SECONDS / mean))) if mean else FEWEST_TRACKS

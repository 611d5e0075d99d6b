"""The tracks that an extraction is asked for: of shards, a manifest, a folder of audio or a table of clips."""

import os
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.extraction.open_audio import InputKind
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.pipeline.features.plan import SourceTrack
from mert_foundry.pipeline.features.resume import PARTS, is_complete
from mert_foundry.pipeline.features.shard_tracks import ShardTracks
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import AUDIO, MANIFEST, SHARDS, SUITE, check_input

TABLES = (".csv", ".jsonl")


class Input(BaseModel):
    """What was found under `input`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: InputKind = Field(description="What it is")
    audio: str = Field(description="Shard folder, or root of the files")
    tracks: list[SourceTrack] = Field(description="Its tracks: the rows of a table in order, else sorted by key")
    tokenizer: str | None = Field(default=None, description="SHA-256 of the tokenizer of documents; null of audio")
    columns: dict[str, list[Any]] = Field(
        default={}, description="Columns for the track table of the store, a value a track"
    )
    rejected: dict[str, str] = Field(
        default={}, description="Files that are no usable audio, by path: reason and detail"
    )
    dropped: dict[str, str] = Field(
        default={}, description="Rows of a table whose file is known to be of no use, by key: reason and detail"
    )


def read_input(config: ExtractConfig, ranks: int) -> Input:
    """The tracks of what `input` names, whichever it is. `ranks`: processes that each do this at once, 0 for one alone.

    Raises ValueError when it is another kind of folder, no table, or the store lies in a folder of audio,
    FileNotFoundError when audio is needed and not there, and as the readers of these do.
    """
    location = config.input
    if location.lower().endswith(TABLES) and not _is_folder(location):
        return read_clips(config, ranks)
    if config.input_root is not None:
        raise ValueError(f"input_root {config.input_root} is for a table ({' or '.join(TABLES)}), input is {location}")
    kind = check_input(location, SHARDS, MANIFEST, SUITE, AUDIO)
    if kind is SHARDS:
        shards = ShardTracks(location)
        tracks = shards.list_tracks()
        shards.close()
        # Shards do not know the files they were made of; the manifest that they come from does, by key.
        index = shards.index
        if not index.has_audio:
            return Input(kind="documents", audio=location, tracks=tracks, tokenizer=index.tokenizer)
        return Input(kind="shards", audio=location, tracks=tracks)
    return read_manifest(config) if kind is MANIFEST else read_folder(config, ranks)


def read_manifest(config: ExtractConfig) -> Input:
    """The tracks of a manifest folder."""
    # Only here, and below, are decoders of audio files needed.
    from mert_foundry.pipeline.features.file_tracks import list_manifest, manifest_columns
    from mert_foundry.pipeline.manifest.rows import check_root

    manifest, tracks = list_manifest(config.input)
    if config.overwrite or not is_complete(config.out):  # else there is nothing to decode
        check_root(manifest, config.input)
    rows = sorted(manifest.tracks, key=lambda row: row.key)
    return Input(kind="manifest", audio=manifest.root, tracks=tracks, columns=manifest_columns(rows))


def read_folder(config: ExtractConfig, ranks: int) -> Input:
    """The tracks of a folder of audio, which is scanned where the store does not know it yet."""
    from mert_foundry.pipeline.features.file_tracks import manifest_columns, source_track

    if lies_in(config.out, config.input):
        raise ValueError(f"out {config.out} lies in input {config.input}: the next run would take its files for input")
    rows, rejected = scan(config, config.input, None, ranks)
    return Input(
        kind="folder",
        audio=config.input,
        tracks=[source_track(row, "") for row in rows],
        columns=manifest_columns(rows),
        rejected=rejected,
    )


def read_clips(config: ExtractConfig, ranks: int) -> Input:
    """The rows of a table. Its files are scanned only where every frame needs a row and a length is not given."""
    from mert_foundry.pipeline.features.table import clip_columns, list_clips, read_table, with_lengths

    table = read_table(config.input, config.input_root)
    paths = sorted({clip.path for clip in table.clips if clip.end is None})
    dropped: dict[str, str] = {}
    if config.pooling == "none" and paths:
        rows, rejected = scan(config, table.root, paths, ranks)
        table = with_lengths(table, rows, rejected)
        dropped = {
            track.key: rejected[track.source]
            for track in list_clips(table)
            if track.source in rejected and track.num_samples == 0
        }
    return Input(kind="table", audio=table.root, tracks=list_clips(table), columns=clip_columns(table), dropped=dropped)


def scan(config: ExtractConfig, root: str, paths: list[str] | None, ranks: int) -> tuple[list[Any], dict[str, str]]:
    """Rows of a manifest for the files of a folder, or some of them, and why the others are no audio, by path."""
    from mert_foundry.jobs.cluster.worker_processes import map_in_processes
    from mert_foundry.pipeline.features.file_scan import CACHE, scan_files
    from mert_foundry.pipeline.manifest.examine import crashed
    from mert_foundry.pipeline.manifest.scan import ScanProgress

    # Each rank scans, so they share the cores.
    workers = max(1, (os.cpu_count() or 1) // max(1, ranks))
    with Progress("scan") as progress:

        def report(state: ScanProgress) -> None:
            progress.update(state.seconds, f"{state.rejected} rejected" if state.rejected else "")

        rows, rejects = scan_files(
            root,
            workers,
            files.join(config.out, PARTS, CACHE),
            paths,
            report,
            partial(map_in_processes, crashed=crashed),
        )
    return rows, {reject.path: f"{reject.reason}: {reject.detail}" for reject in rejects}


def lies_in(location: str, folder: str) -> bool:
    """Whether `location` is `folder` or lies below it."""
    if files.is_local(location) and files.is_local(folder):
        return files.local_path(location).resolve().is_relative_to(files.local_path(folder).resolve())
    return PurePosixPath(location).is_relative_to(folder)


def _is_folder(location: str) -> bool:
    filesystem, path = files.open_filesystem(location)
    return bool(filesystem.isdir(path))

"""The tracks that an extraction is asked for: of shards, a manifest or a folder of audio."""

import os
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.pipeline.features.plan import (
    SourceTrack,
)
from mert_foundry.pipeline.features.resume import (
    is_complete,
)
from mert_foundry.pipeline.features.shard_tracks import ShardTracks
from mert_foundry.pipeline.storage import files as storage
from mert_foundry.pipeline.storage.folder_kinds import AUDIO, MANIFEST, SHARDS, check_input


class Input(BaseModel):
    """What was found under `input`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["shards", "manifest", "folder"] = Field(description="What it is")
    audio: str = Field(description="Shard folder, or root of the files")
    tracks: list[SourceTrack] = Field(description="Its tracks, sorted by key")
    rejected: dict[str, str] = Field(description="Files that are no usable audio, by path: reason and detail")


def read_input(config: ExtractConfig, ranks: int) -> Input:
    """The tracks of a shard folder, a manifest folder or a folder of audio, whichever it is.

    Raises ValueError when it is another kind of folder or the store lies in a folder of audio, FileNotFoundError when a
    manifest's audio is needed and not there, and as the readers of these do.
    """
    location, out = config.input, config.out
    kind = check_input(location, SHARDS, MANIFEST, AUDIO)
    if kind is SHARDS:
        shards = ShardTracks(location)
        tracks = shards.list_tracks()
        shards.close()
        return Input(kind="shards", audio=location, tracks=tracks, rejected={})
    # Only here are decoders of audio files needed.
    from mert_foundry.jobs.cluster.worker_processes import map_in_processes
    from mert_foundry.pipeline.features.file_tracks import list_folder, list_manifest
    from mert_foundry.pipeline.manifest.rows import check_root
    from mert_foundry.pipeline.manifest.scan import crashed

    if kind is MANIFEST:
        manifest, tracks = list_manifest(location)
        if config.overwrite or not is_complete(out):  # else there is nothing to decode
            check_root(manifest, location)
        return Input(kind="manifest", audio=manifest.root, tracks=tracks, rejected={})
    if lies_in(out, location):
        raise ValueError(f"out {out} lies in input {location}: the next run would take its files for input")
    with Progress("scan") as progress:

        def report(seconds: float, rejected: int) -> None:
            progress.update(progress.done + seconds, f"{rejected} left out" if rejected else "")

        # Each rank scans the folder, so they share the cores.
        workers = max(1, os.cpu_count() // max(1, ranks))
        tracks, rejects = list_folder(location, workers, report, partial(map_in_processes, crashed=crashed))
    reasons = {reject.path: f"{reject.reason}: {reject.detail}" for reject in rejects}
    return Input(kind="folder", audio=location, tracks=tracks, rejected=reasons)


def lies_in(location: str, folder: str) -> bool:
    """Whether `location` is `folder` or lies below it."""
    if storage.is_local(location) and storage.is_local(folder):
        return storage.local_path(location).resolve().is_relative_to(storage.local_path(folder).resolve())
    return PurePosixPath(location).is_relative_to(folder)

"""The tracks of a manifest that something is fitted to: those of a split, some hours of them, and each decoded."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.track_audio import TrackAudio
from mert_foundry.pipeline.manifest.decode_track import decode_track
from mert_foundry.pipeline.manifest.rows import Manifest, Track, first_hours


def tracks_of_split(manifest: Manifest, split: str) -> list[Track]:
    """Tracks of a split, sorted by key. Raises ValueError when there is none."""
    tracks = [track for track in manifest.tracks if track.split == split]
    if not tracks:
        raise ValueError(f"the manifest has no track in split {split!r}; see its group_by and splits")
    return tracks


def draw_hours(manifest: Manifest, split: str, hours: float, seed: int) -> list[Track]:
    """Tracks of a split, drawn by seed, until `hours` are reached. Raises as `tracks_of_split`."""
    tracks = tracks_of_split(manifest, split)
    order = np.random.default_rng([seed, 0]).permutation(len(tracks))
    return first_hours([tracks[index] for index in order], hours)


@contextmanager
def whole_track(track: Track, root: str) -> Iterator[TrackAudio]:
    """A track, decoded, for work that goes without none of them.

    Raises:
        ValueError: the file is not the one of the manifest, or cannot be decoded. OSError: as `decode_track`.
    """
    try:
        decoded = decode_track(track, root)
    except DecodeError as error:
        raise ValueError(f"{track.path}: {error.reason}: {error.detail}") from error
    with decoded:
        yield decoded

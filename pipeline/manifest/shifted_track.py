"""Copies of tracks that are shifted in pitch: rows that labelling plans beside those of a manifest."""

import re
from typing import Annotated

from msgspec import Meta

from mert_foundry.pipeline.manifest.rows import Track

_COPY = re.compile(r"(.+)-(up|down)([0-9]+)")


class ShiftedTrack(Track, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A copy of a track; all but `key` and `semitones` are those of the track, whose file is decoded and shifted."""

    semitones: Annotated[int, Meta(description="By how much it is shifted, up where positive; not 0")]


def shift_track(track: Track, semitones: int) -> ShiftedTrack:
    """The copy of a track, whose key is the track's with `-up2` or `-down2`, say."""
    direction = "up" if semitones > 0 else "down"
    values = {name: getattr(track, name) for name in track.__struct_fields__}
    values["key"] = f"{track.key}-{direction}{abs(semitones)}"
    return ShiftedTrack(**values, semitones=semitones)


def semitones_of(track: Track) -> int:
    """By how much a row of a plan is shifted; 0 for a track of the manifest."""
    return track.semitones if isinstance(track, ShiftedTrack) else 0


def split_key(key: str) -> tuple[str, int]:
    """The key of the track, and the semitones that a key says; 0 for the track itself.

    The two cannot be confused: keys of a manifest end in 12 hexadecimal digits, which have no u and no w.
    """
    found = _COPY.fullmatch(key)
    if found is None:
        return key, 0
    track, direction, semitones = found.groups()
    return track, int(semitones) if direction == "up" else -int(semitones)

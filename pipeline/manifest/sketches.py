"""Sketches of all tracks of a manifest, kept in parts beside those of the scan, so that no track is decoded for one
twice.

A sketch follows from the decoded audio alone, whose SHA-256 is its name: another path, seed or split needs none anew. A
part is an npz file without pickles. Parts are no output: they may be deleted at any time.
"""

import io
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mert_foundry.pipeline.audio.decode import decoder_faults
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.decoding import decoding
from mert_foundry.pipeline.fingerprint.landmarks import landmarks
from mert_foundry.pipeline.fingerprint.sketch import SKETCH_VERSION, Sketch, sketch
from mert_foundry.pipeline.manifest.examine import reject_again
from mert_foundry.pipeline.manifest.rows import Reject, Track
from mert_foundry.pipeline.storage import files

FOLDER = "scan/sketches"
PART = re.compile(r"[0-9]{6,}\.npz")
# A part is published when it has so many tracks and is so many seconds old.
PART_TRACKS, PART_SECONDS = 32, 30.0
Sketched = tuple[str, Sketch | Reject]  # SHA-256 of the decoded audio, and what came of it
SketchAll = Callable[[Callable[[Track], Sketched], list[Track], Callable[[Track], Sketched]], Iterable[Sketched]]


@dataclass(frozen=True)
class Sketches:
    """Sketches by the SHA-256 of the decoded audio, and tracks that have none now, as rejects, by it."""

    found: dict[str, Sketch]
    rejects: dict[str, Reject]


def find_sketches(
    out: str,
    root: str,
    tracks: Sequence[Track],
    sketch_all: SketchAll,
    report: Callable[[float, str], None] = lambda seconds, note: None,
) -> Sketches:
    """Sketches of tracks: those kept in the manifest folder `out`, and others made now, which are kept.

    Args:
        sketch_all: calls its first argument with each track, or the third where the process of one dies; gives results
            in any order.
        report: called with the seconds of the tracks that were sketched now, and how many of how many they are.
    """
    folder = files.join(out, FOLDER)
    files.sweep_temporary(folder)
    names = [name for name in files.list_names(folder) if PART.fullmatch(name)]
    known = {digest: one for name in names for digest, one in _read(files.join(folder, name))}
    number = max((int(name.split(".")[0]) for name in names), default=0)
    found = {track.audio_sha256: known[track.audio_sha256] for track in tracks if track.audio_sha256 in known}
    missing = [track for track in tracks if track.audio_sha256 not in found]
    rejects: dict[str, Reject] = {}
    unpublished: dict[str, Sketch] = {}
    begun = time.monotonic()
    lengths = {track.audio_sha256: track.seconds for track in missing}
    seconds = 0.0
    try:
        made = sketch_all(partial(sketch_track, root=files.absolute(root)), missing, crashed_sketch)
        for done, (digest, result) in enumerate(made, 1):
            seconds += lengths[digest]
            report(seconds, f"{done} of {len(missing)} tracks")
            if isinstance(result, Reject):
                rejects[digest] = result
                continue
            unpublished[digest] = found[digest] = result
            if len(unpublished) >= PART_TRACKS and time.monotonic() > begun + PART_SECONDS:
                number, unpublished, begun = _publish(folder, number + 1, unpublished), {}, time.monotonic()
    finally:
        if unpublished:
            _publish(folder, number + 1, unpublished)
    return Sketches(found, rejects)


def sketch_track(track: Track, root: str) -> Sketched:
    """Decode a track and sketch it; a reject when that cannot be done now."""
    try:
        with files.local_copy(root, track.path) as path, decoder_faults(), decoding(path) as decoded:
            return track.audio_sha256, sketch(landmarks(decoded.blocks))
    except (DecodeError, OSError) as error:
        return track.audio_sha256, reject_again(track.path, error)


def crashed_sketch(track: Track) -> Sketched:
    """What is said of a track whose process died."""
    detail = "the decoder crashed when its fingerprint was made"
    return track.audio_sha256, Reject(path=track.path, reason="unreadable", detail=detail)


def lost_sketch(track: Track, message: str) -> Sketched:
    """What is said of a track whose workers died, of whatever."""
    return track.audio_sha256, Reject(path=track.path, reason="unreachable", detail=message)


def _publish(folder: str, number: int, sketches: dict[str, Sketch]) -> int:
    """Write a part; returns its number."""
    content = io.BytesIO()
    np.savez(
        content,
        version=SKETCH_VERSION,
        digests=np.array([bytes.fromhex(digest) for digest in sketches], "V32"),
        divisors=np.array([one.divisor for one in sketches.values()], np.int32),
        counts=np.array([len(one.keys) for one in sketches.values()], np.int64),
        keys=np.concatenate([one.keys for one in sketches.values()]),
        frames=np.concatenate([one.frames for one in sketches.values()]),
        rare_divisors=np.array([one.rare_divisor for one in sketches.values()], np.int32),
        rare_counts=np.array([len(one.rare) for one in sketches.values()], np.int64),
        rare=np.concatenate([one.rare for one in sketches.values()]),
    )
    files.publish_bytes(files.join(folder, f"{number:06d}.npz"), content.getvalue())
    return number


def _read(location: str) -> Iterator[tuple[str, Sketch]]:
    """The sketches of a part; none of a damaged one or of another version."""
    try:
        with np.load(io.BytesIO(files.read_bytes(location)), allow_pickle=False) as part:
            if part["version"] != SKETCH_VERSION:
                return
            columns = {name: part[name] for name in part.files}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return
    ends, rare_ends = np.cumsum(columns["counts"]), np.cumsum(columns["rare_counts"])
    for number, digest in enumerate(columns["digests"]):
        own = slice(ends[number] - columns["counts"][number], ends[number])
        rare = slice(rare_ends[number] - columns["rare_counts"][number], rare_ends[number])
        yield (
            digest.tobytes().hex(),
            Sketch(
                columns["keys"][own],
                columns["frames"][own],
                int(columns["divisors"][number]),
                columns["rare"][rare],
                int(columns["rare_divisors"][number]),
            ),
        )

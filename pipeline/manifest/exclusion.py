"""Test clips of probe sets kept out of a manifest: by the hash of the decoded audio, and by an acoustic fingerprint.

The hash finds the same decoded audio. The fingerprint finds a test clip in a track that was encoded anew, trimmed,
scaled, or that holds the clip as a part; not one that was transposed or played at another speed. A clip with fewer
landmarks than must agree, such as a steady tone, is found by its hash alone.
"""

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mert_foundry.pipeline.audio.decode import decoder_faults
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.decoding import decoding
from mert_foundry.pipeline.fingerprint.landmarks import FRAMES_PER_SECOND, Landmarks, landmarks, thin_out
from mert_foundry.pipeline.fingerprint.search import FEWEST_VOTES, Known, index_stretches, search
from mert_foundry.pipeline.manifest.examine import reject_again
from mert_foundry.pipeline.manifest.rows import Reject, Track
from mert_foundry.pipeline.probe_sets.checks import paths_of
from mert_foundry.pipeline.probe_sets.registry import load_tasks
from mert_foundry.pipeline.storage.files import local_copy

Item = TypeVar("Item")
Result = TypeVar("Result")
COLUMNS = ("hashes", "owners", "frames")
MOST_LANDMARKS = 4000  # kept of a stretch: all of 50 s, a fifth of a song; thousands of songs fit into memory


class MapAll(Protocol):
    """Results of work on many items, in their order; `crashed` gives that of an item whose process dies."""

    def __call__(
        self, work: Callable[[Item], Result], items: list[Item], workers: int, crashed: Callable[[Item], Result]
    ) -> Iterable[Result]: ...


@dataclass(frozen=True)
class ProbeFile:
    """An audio file with test clips. stretches: name, start and end of each, seconds; no end stands for that of the
    file.
    """

    path: str
    stretches: tuple[tuple[str, float, float | None], ...]


@dataclass(frozen=True)
class Heard:
    """What a probe file sounds like. fault: why it could not be decoded; then it has no digest and no landmarks."""

    digest: str = ""
    landmarks: tuple[Landmarks, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Exclusion:
    """Result of the exclusion.

    results: rows and rejects, those that hold a test clip among the rejects. clips: test clips looked for. plain: those
    with too few landmarks for a fingerprint. faults: files with test clips that could not be decoded, and why.
    """

    results: list[Track | Reject]
    clips: int
    plain: int
    faults: dict[str, str]


def exclude(
    results: list[Track | Reject],
    root: str,
    files: list[ProbeFile],
    map_all: MapAll,
    workers: int,
    report: Callable[[float], None] = lambda seconds: None,
) -> Exclusion:
    """Turn tracks that hold a test clip into rejects.

    Args:
        root: the folder of the tracks.
        files: what `probe_files` found.
        report: called with the seconds of each track that was looked through.
    """
    heard = list(map_all(hear, files, workers, _crashed_probe))
    by_digest = {one.digest: file for file, one in reversed(list(zip(files, heard))) if one.digest}
    known = _index(files, heard)
    tracks = [result for result in results if isinstance(result, Track)]
    unknown = [track for track in tracks if track.audio_sha256 not in by_digest]
    found: dict[str, Track | Reject] = {}
    with tempfile.TemporaryDirectory(prefix="mert-exclusion-") as folder:
        _save(known, Path(folder))
        work = partial(_search_track, root=root, folder=folder)
        for track, result in zip(unknown, map_all(work, unknown, workers, _crashed_track)):
            report(track.seconds)
            found[track.path] = result
    for track in tracks:
        if track.audio_sha256 in by_digest:
            name = by_digest[track.audio_sha256].stretches[0][0]
            found[track.path] = Reject(path=track.path, reason="excluded", detail=f"same audio as test clip {name}")
    counts = np.bincount(known.owners, minlength=len(known.names))
    return Exclusion(
        results=[found.get(result.path, result) if isinstance(result, Track) else result for result in results],
        clips=len(known.names),
        plain=int(np.count_nonzero(counts < FEWEST_VOTES)),
        faults={file.path: one.fault for file, one in zip(files, heard) if one.fault},
    )


def _index(files: list[ProbeFile], heard: list[Heard]) -> Known:
    """The landmarks of all stretches."""
    return index_stretches(
        (name, [found]) for file, one in zip(files, heard) for (name, *_), found in zip(file.stretches, one.landmarks)
    )


def probe_files(data: str) -> list[ProbeFile]:
    """Files with test clips of all tasks that `load_tasks` finds, by path; in a task with folds each clip is one of
    test.

    Raises:
        ValueError: the probe sets cannot be read.
    """
    stretches: dict[str, dict[tuple[float, float | None], str]] = {}
    for labelled in load_tasks(data, []):
        for clip in labelled.clips:
            if clip.split == "test" or labelled.task.folds:
                for path in paths_of(clip):
                    # Several tasks may share their audio: the first one names it.
                    there = stretches.setdefault(str(Path(labelled.root) / path), {})
                    there.setdefault((clip.start, clip.end), f"{labelled.task.name}: {path}")
    return [
        ProbeFile(path, tuple((name, *bounds) for bounds, name in sorted(found.items(), key=lambda item: item[0][0])))
        for path, found in sorted(stretches.items())
    ]


def hear(file: ProbeFile) -> Heard:
    """Decode a probe file once, for its digest and the landmarks of its stretches."""
    try:
        with decoder_faults(), decoding(Path(file.path)) as decoded:
            found = list(landmarks(decoded.blocks))
    except (DecodeError, OSError) as error:
        return Heard(fault=str(error))
    hashes, frames = (np.concatenate(column) for column in zip(*found))
    return Heard(
        digest=decoded.digest.hexdigest(),
        landmarks=tuple(
            thin_out(_between(hashes, frames, start, end), MOST_LANDMARKS) for _, start, end in file.stretches
        ),
    )


def _between(hashes: np.ndarray, frames: np.ndarray, start: float, end: float | None) -> Landmarks:
    """Landmarks of a stretch, whose frames count from its start."""
    first = round(start * FRAMES_PER_SECOND)
    last = np.inf if end is None else end * FRAMES_PER_SECOND
    inside = (frames >= first) & (frames < last)
    return hashes[inside], frames[inside] - np.int32(first)


def _search_track(track: Track, root: str, folder: str) -> Track | Reject:
    """The track, or a reject that names the test clip in it."""
    try:
        with local_copy(root, track.path) as path, decoder_faults(), decoding(path) as decoded:
            match = search(_load(folder), landmarks(decoded.blocks))
    except (DecodeError, OSError) as error:
        return reject_again(track.path, error)
    if match is None:
        return track
    detail = (
        f"holds test clip {match.name} from {match.start} s on: {match.votes} landmarks agree, {match.share:.0%} of"
        " those in reach"
    )
    return Reject(path=track.path, reason="excluded", detail=detail)


def _crashed_probe(file: ProbeFile) -> Heard:
    return Heard(fault="the decoder crashed")


def _crashed_track(track: Track) -> Track | Reject:
    return Reject(path=track.path, reason="unreadable", detail="the decoder crashed when test clips were looked for")


def _save(known: Known, folder: Path) -> None:
    for name in COLUMNS:
        np.save(folder / f"{name}.npy", getattr(known, name), allow_pickle=False)
    (folder / "names").write_text("\0".join(known.names), "utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _load(folder: str) -> Known:
    """Once in each process; the arrays are mapped, so that all processes share their memory."""
    hashes, owners, frames = (_mapped(Path(folder) / f"{name}.npy") for name in COLUMNS)
    names = (Path(folder) / "names").read_text("utf-8", "surrogateescape")
    return Known(hashes, owners, frames, names.split("\0"))


def _mapped(path: Path) -> np.ndarray:
    with suppress(ValueError):  # an empty file cannot be mapped
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return np.load(path, allow_pickle=False)

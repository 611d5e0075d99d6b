"""Long stretches cut into clips of the length that a task asks for."""

from collections.abc import Mapping
from pathlib import Path

from mert_foundry.pipeline.probe_sets.task import LabelledSet, ProbeClip

# Lengths are read from headers, which round; a clip that lacks less than this is whole.
TOLERANCE_SECONDS = 0.05
# No format that is read here takes fewer bytes for a second: digital silence takes 150 in FLAC, speech 250 in Speex.
LEAST_BYTES_PER_SECOND = 100


def files_to_measure(labelled: LabelledSet) -> list[str]:
    """Paths, sorted, of the files whose length must be known before clips are cut.

    These are files of a stretch that is cut and runs to the end of its file, of a stretch that does not begin at the
    start of its file, and of a stretch that ends later than a file of that size can.
    """
    return sorted({clip.path for clip in labelled.clips if _must_be_measured(labelled, clip)})


def find_late_start(labelled: LabelledSet, seconds: Mapping[str, float]) -> ProbeClip | None:
    """The first clip that starts at or after the end of its file; None when there is none."""
    return next((clip for clip in labelled.clips if clip.start and clip.start >= seconds[clip.path]), None)


def cut(labelled: LabelledSet, seconds: Mapping[str, float]) -> LabelledSet:
    """Cut stretches longer than `clip_seconds` into clips of that length, from the front and without overlap.

    The remainder is a clip of its own if it is at least `clip_minimum` of that length. A stretch too short for any clip
    stays as one clip: no track goes without a prediction. A stretch that ends after its file ends with it.

    Args:
        seconds: the length of each of `files_to_measure`.

    Raises:
        ValueError: a stretch starts after the end of its file.
    """
    length = labelled.task.clip_seconds
    if length is None:
        return labelled
    clips = [part for clip in labelled.clips for part in _cut_clip(clip, length, labelled.task.clip_minimum, seconds)]
    return labelled.model_copy(update={"clips": tuple(clips)})


def _must_be_measured(labelled: LabelledSet, clip: ProbeClip) -> bool:
    if clip.start > 0 or clip.end is None:
        return clip.start > 0 or labelled.task.clip_seconds is not None
    path = Path(labelled.root) / clip.path
    return path.is_file() and clip.end * LEAST_BYTES_PER_SECOND > path.stat().st_size


def _cut_clip(clip: ProbeClip, length: float, minimum: float, seconds: Mapping[str, float]) -> list[ProbeClip]:
    end = _end_of(clip, seconds)
    if end <= clip.start:
        raise ValueError(f"{clip.path}: a clip starts at {clip.start} s, the file ends at {end} s")
    whole = int((end - clip.start + TOLERANCE_SECONDS) // length)
    bounds = [(clip.start + index * length, clip.start + (index + 1) * length) for index in range(whole)]
    covered = clip.start + whole * length
    if end - covered > TOLERANCE_SECONDS and end - covered >= minimum * length or not bounds:
        bounds.append((covered, end))
    if len(bounds) == 1 and bounds[0] == (clip.start, clip.end):
        return [clip]
    return [clip.model_copy(update={"start": start, "end": stop}) for start, stop in bounds]


def _end_of(clip: ProbeClip, seconds: Mapping[str, float]) -> float:
    """Where a stretch ends, seconds: as stated, but not after its file where that was measured."""
    if clip.end is None:
        return seconds[clip.path]
    measured = seconds.get(clip.path)
    return clip.end if measured is None or clip.end <= measured + TOLERANCE_SECONDS else measured

"""Long stretches cut into clips of the length that a task asks for."""

from collections.abc import Mapping

from mert_foundry.pipeline.probe_sets.task import LabelledSet, ProbeClip

# Lengths are read from headers, which round; a clip that lacks less than this is whole.
TOLERANCE_SECONDS = 0.05


def files_to_measure(labelled: LabelledSet) -> list[str]:
    """Paths, sorted, whose length `cut` needs: a task that cuts, and a stretch that runs to the end of its file."""
    if labelled.task.clip_seconds is None:
        return []
    return sorted({clip.path for clip in labelled.clips if clip.end is None})


def cut(labelled: LabelledSet, seconds: Mapping[str, float]) -> LabelledSet:
    """Cut stretches longer than `clip_seconds` into clips of that length, from the front and without overlap.

    What remains at the end is a clip of its own if it is at least `clip_minimum` of that length. A stretch of which
    nothing would be left stays as the one clip that it is: no track goes without a prediction.

    Args:
        seconds: the length of each of `files_to_measure`.

    Raises:
        ValueError: a stretch starts after the end of its file.
    """
    length = labelled.task.clip_seconds
    if length is None:
        return labelled
    clips = [piece for clip in labelled.clips for piece in _pieces(clip, length, labelled.task.clip_minimum, seconds)]
    return labelled.model_copy(update={"clips": tuple(clips)})


def _pieces(clip: ProbeClip, length: float, minimum: float, seconds: Mapping[str, float]) -> list[ProbeClip]:
    end = seconds[clip.path] if clip.end is None else clip.end
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

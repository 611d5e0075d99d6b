"""The audio of the mixtures and stems of a separation task.

It goes into a temporary file, since 10 hours of it are 17 GB.
"""

from pathlib import Path
from typing import IO

import numpy as np

from mert_foundry.model.probing.features import FrameFeatures
from mert_foundry.model.probing.separation import Stems
from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.features.clip_tracks import decode_clip_file
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.probe_sets.task import ProbeClip


def read_stems(features: FrameFeatures, file: IO[bytes]) -> Stems:
    """Write the audio of every clip, 24 kHz mono, to `file`, and map it into memory from there.

    Raises:
        ValueError: a clip without stems, or stems that are shorter than their mixture.
        DecodeError, OSError: a file that cannot be decoded or read.
    """
    labelled = features.labelled
    mixtures, stems = [], []
    for clip in labelled.clips:
        if not isinstance(clip.label, dict):
            raise ValueError(f"task {labelled.task.name}: {clip.path} has the label {clip.label!r}, stems are needed")
        paths = [clip.path, *(clip.label[name] for name in labelled.task.classes)]
        audio = [_read_stretch(Path(labelled.root) / path, clip) for path in paths]
        if len({len(samples) for samples in audio}) > 1:
            lengths = ", ".join(f"{path} has {len(samples)}" for path, samples in zip(paths, audio))
            raise ValueError(f"task {labelled.task.name}: mixture and stems differ in samples: {lengths}")
        mapped = _append(file, np.stack(audio))
        mixtures.append(mapped[0])
        stems.append(mapped[1:])
    return Stems(mixtures, stems)


def _read_stretch(path: Path, clip: ProbeClip) -> np.ndarray:
    """Samples of the clip, float32 `[samples]`."""
    with decode_clip_file(path) as audio:
        first = round(clip.start * SAMPLE_RATE)
        last = audio.num_frames * HOP if clip.end is None else round(clip.end * SAMPLE_RATE)
        return to_float(audio.read(first, last - first))


def _append(file: IO[bytes], values: np.ndarray) -> np.ndarray:
    """Append values to the file, and return them as mapped into memory from there."""
    offset = file.seek(0, 2)
    file.write(values.tobytes())
    file.flush()
    return np.memmap(file, dtype=np.float32, mode="r", offset=offset, shape=values.shape)

"""What a teacher is: audio of a whole track in, one target out, with a specification that travels.

A `TargetSpec` is written into index.json and read by the trainer, which builds its heads from it;
the teacher itself is needed only where labels are made or checked.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from mert_foundry.pipeline.audio.blocks import float_blocks
from mert_foundry.pipeline.shards.target import TargetSpec


class Teacher(Protocol):
    """Labels whole tracks of any length. Building one, from its config and a device, loads its weights; `spec` says
    what it writes.

    A teacher that can compute in several ways also has a `backend`, a mapping from its target's name to what
    computes it; the shard's record keeps it. One that labels several tracks at once has `label_tracks`, see the
    function of that name.
    """

    spec: TargetSpec

    @staticmethod
    def describe(config: Any) -> TargetSpec:
        """The `spec` of a teacher with this config, on any device, without building it.

        Of the weights no more is read than their fingerprint needs: the machine that plans the work may be a small one.
        """
        ...

    def label(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Targets of a whole track, piece by piece; memory is bounded whatever the track's length.

        Args:
            blocks: float32 `[n]` in [-1, 1), 24 kHz mono, in order, together the track; every n is a positive
                multiple of the hop (320 samples). The labels must not depend on where the blocks are cut.

        Yields:
            Arrays of `spec.dtype` and `spec.shape(f)` for consecutive frames, together as many frames as the
            blocks hold; never changed afterwards, since they are encoded while the next ones are made.
        """
        ...


def label_tracks(teacher: Teacher, tracks: Iterable[Iterable[np.ndarray]]) -> Iterator[Iterator[np.ndarray]]:
    """Targets of track after track, each as `Teacher.label` gives them and to be read before the next.

    A teacher's own `label_tracks` may read blocks of the tracks after it meanwhile; what it yields for a track must
    not depend on the others.
    """
    together = getattr(teacher, "label_tracks", None)
    return together(tracks) if together else map(teacher.label, tracks)


def label_track(teacher: Teacher, audio: np.ndarray) -> np.ndarray:
    """Targets of a whole track in memory: int16 `[T]`, 24 kHz mono, T a positive multiple of 320.

    Returns an array of `spec.dtype` and `spec.shape(T // 320)`.
    """
    return np.concatenate(list(teacher.label(float_blocks(audio))), teacher.spec.frame_axis)

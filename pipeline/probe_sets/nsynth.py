"""NSynth (Engel and others, 2017): 11 families of instruments, and 128 pitches, of 306,000 notes of 4 seconds.

The split is the published one: instruments of train are in no other split, but valid and test share theirs. No note of
valid or test is a `synth_lead`, so a mean over classes there is one over 10. Pitches lie from 9 to 120. MARBLE takes
pitch - 1 as class number, which changes no score.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.tables import find, read_json
from mert_foundry.pipeline.probe_sets.task import SPLITS, Metric, ProbeClip, ProbeTask

FAMILIES = tuple("bass brass flute guitar keyboard mallet organ reed string synth_lead vocal".split())
PITCHES = tuple(map(str, range(128)))


def read_clips(root: Path, field: str) -> list[ProbeClip]:
    """Notes of all splits, labelled by a field of `examples.json`.

    Raises ValueError for a note without that field or its instrument, naming it.
    """
    clips = []
    for split in SPLITS:
        folder = f"nsynth-{split}"
        path = find(root, f"{folder}/examples.json")
        notes = read_json(path)
        if not isinstance(notes, dict):
            raise ValueError(f"{path}: no object with a note a key")
        for note, values in notes.items():
            try:
                label, instrument = str(values[field]), str(values["instrument_str"])
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path}: note {note} has no {field} or no instrument_str") from error
            clips.append(
                ProbeClip(
                    path=f"{folder}/audio/{note}.wav",
                    label=label,
                    split=split,
                    track=note,
                    group=f"{split}: {instrument}",
                )
            )
    return clips


def _published(
    name: str, classes: tuple[str, ...], metrics: tuple[Metric, ...], field: str, twin: str
) -> PublishedTask:
    reader: Callable[[Path], list[ProbeClip]] = partial(read_clips, field=field)
    return PublishedTask(
        task=ProbeTask(name=name, kind="multiclass", classes=classes, metrics=metrics, published_as=f"MARBLE {twin}"),
        folder="nsynth",
        page="https://magenta.tensorflow.org/datasets/nsynth (the json/wav archives)",
        files=tuple(f"nsynth-{split}/{name}" for split in SPLITS for name in ("examples.json", "audio")),
        split="published, instruments of train apart",
        counts=(289_205, 12_678, 4_096),
        read_clips=reader,
    )


TASKS = (
    _published("nsynth_instrument", FAMILIES, ("accuracy", "macro_accuracy"), "instrument_family_str", "NSynthI"),
    _published("nsynth_pitch", PITCHES, ("accuracy", "octave_free_accuracy"), "pitch", "NSynthP"),
)

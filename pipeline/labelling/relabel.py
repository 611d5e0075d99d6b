"""Run the teachers again on tracks of a shard set, from the audio in the shards, and compare the labels."""

import random
from collections.abc import Iterator
from itertools import groupby

import numpy as np

from mert_foundry.pipeline.labelling.verify import Fault
from mert_foundry.pipeline.shards.index import ShardIndex
from mert_foundry.pipeline.shards.reader import ShardReader
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.teachers.teacher import Teacher, label_track

# Another CPU or GPU may round a near tie the other way; more than this is another teacher.
LEAST_CODE_AGREEMENT = 0.999
LARGEST_RELATIVE_ERROR = 1e-3
MOST_OTHER_LEVELS = 0.01  # of companded values; a gain of 1e-5 moves about 3 values in 10,000 to the next level


def relabel_examples(
    folder: str, index: ShardIndex, count: int, teachers: list[Teacher]
) -> Iterator[tuple[float, list[Fault]]]:
    """Compare `count` examples, always the same ones of a set, with labels recomputed over their whole tracks.

    Yields, after each track, its audio seconds and the faults of its chosen examples.
    """
    reader = ShardReader(folder, index, index.shardlist)
    try:
        for (shard, key), numbers in _choose(reader, index, count):
            track = reader.read_track(shard, key)
            again = {teacher.spec.name: label_track(teacher, track.audio) for teacher in teachers}
            faults = []
            for number in numbers:
                entry = reader.entries(shard)[number]
                for teacher in teachers:
                    name, start = teacher.spec.name, track.starts[number]
                    message = difference(teacher.spec, track.targets[name], again[name], start, entry.num_frames)
                    if message:
                        faults.append(Fault(index.shardlist[shard].url, entry.key, message))
            yield len(track.audio) / index.sample_rate, faults
    finally:
        reader.close()


def difference(spec: TargetSpec, stored: np.ndarray, again: np.ndarray, start: int, frames: int) -> str:
    """What is wrong with frames [start, start + frames) of a target, or an empty string."""
    stored, again = (np.take(array, range(start, start + frames), spec.frame_axis) for array in (stored, again))
    if spec.kind == "discrete":
        agreement = float((stored == again).all(axis=0).mean())
        return f"{spec.name}: {agreement:.2%} of frames have the same codes" if agreement < LEAST_CODE_AGREEMENT else ""
    if spec.companding:
        steps = np.abs(stored.astype(np.int16) - again.astype(np.int16))
        others, furthest = float((steps > 0).mean()), int(steps.max())
        fault = others > MOST_OTHER_LEVELS or furthest > 1
        return f"{spec.name}: {others:.2%} of values on another level, by up to {furthest} levels" if fault else ""
    stored, again = spec.values(stored), spec.values(again)
    error = float(np.linalg.norm(stored - again)) / max(float(np.linalg.norm(again)), 1e-9)
    return f"{spec.name}: relative error {error:.2e}" if error > LARGEST_RELATIVE_ERROR else ""


def _choose(reader: ShardReader, index: ShardIndex, count: int) -> Iterator[tuple[tuple[int, str], list[int]]]:
    """Random examples as ((shard, track), numbers of the examples in the shard), each track once."""
    examples = [(shard, number) for shard, entry in enumerate(index.shardlist) for number in range(entry.nsamples)]
    chosen = sorted(random.Random(0).sample(examples, min(count, len(examples))))
    for track, members in groupby(chosen, lambda example: (example[0], reader.entries(example[0])[example[1]].track)):
        yield track, [number for _, number in members]

"""Check every shard against the index, and optionally the labels against the teachers.

    mert verify SHARD_FOLDER
    mert verify SHARD_FOLDER --manifest MANIFEST_FOLDER --relabel 20
    mert verify SHARD_FOLDER --relabel 20 --teachers configs/label.yaml

Without --relabel: checksums, counts, member tables, code ranges, finite values, equal frame counts, whole
tracks. --manifest compares the manifest's digest and every example's track with it. --relabel N runs the teachers
again on the tracks of N random examples; they are built from index.json, or from the `teachers` of a label
config when their weights lie in a folder of your own. Every fault is a line with shard and key; exit code 1 if any.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from jobs.command_line import run
from jobs.config import UsageError, read_yaml
from jobs.progress import Progress
from pipeline.manifest import Manifest, load_manifest
from pipeline.resample import to_float
from pipeline.shard_index import ShardIndex, load_index
from pipeline.shard_reader import ShardReader
from pipeline.shard_record import load_record
from pipeline.shard_verify import Fault, verify_shard
from pipeline.teacher import TargetSpec, Teacher
from pipeline.teachers import TeacherConfig, build_teachers, config_of

# Another CPU or GPU may round a near tie the other way; more than this is another teacher.
LEAST_CODE_AGREEMENT = 0.999
LARGEST_RELATIVE_ERROR = 1e-3


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    index = load_index(options.shards)
    faults = verify_shards(options.shards, index)
    if options.manifest:
        faults += compare_with_manifest(options.shards, index, load_manifest(options.manifest))
    if options.relabel and not faults:
        faults += relabel(options.shards, index, options.relabel, teachers_for(index, options.teachers))
    for fault in faults:
        print(fault)
    examples = sum(entry.nsamples for entry in index.shardlist)
    print(f"{len(index.shardlist)} shards, {examples} examples: {f'{len(faults)} faults' if faults else 'no fault'}")
    if options.relabel and faults:
        print("the teachers were not run again where the shards themselves are at fault", file=sys.stderr)
    return 1 if faults else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line of `mert verify`."""
    parser = argparse.ArgumentParser(prog="mert verify", add_help=False)
    parser.add_argument("shards")
    parser.add_argument("--relabel", type=int, default=0, metavar="N")
    parser.add_argument("--manifest")
    parser.add_argument("--teachers", type=Path)
    return parser.parse_args(arguments)


def verify_shards(folder: str, index: ShardIndex) -> list[Fault]:
    """Faults of all shards, in order."""
    faults = []
    with Progress("verify", sum(entry.seconds for entry in index.shardlist)) as progress:
        for entry in index.shardlist:
            faults += verify_shard(folder, entry, index)
            progress.update(progress.done + entry.seconds, f"{len(faults)} faults" if faults else "")
    return faults


def compare_with_manifest(folder: str, index: ShardIndex, manifest: Manifest) -> list[Fault]:
    """Faults of the index's manifest digest and of every track's split."""
    if manifest.sha256 != index.manifest_sha256:
        return [Fault("index.json", None, f"made from manifest {index.manifest_sha256}, this one is {manifest.sha256}")]
    splits = {track.key: track.split for track in manifest.tracks}
    faults = []
    for entry in index.shardlist:
        try:
            members = load_record(folder, entry.name).members
        except (OSError, ValueError):
            continue  # a fault of the record, which verify_shards has named
        for track in dict.fromkeys(member.track for member in members):
            if splits.get(track) != entry.split:
                faults.append(Fault(entry.url, track, f"split {entry.split}, the manifest says {splits.get(track)}"))
    return faults


def teachers_for(index: ShardIndex, config: Path | None) -> list[Teacher]:
    """The teachers that made the labels. Raises ValueError when a fingerprint differs, naming both."""
    if config is None:
        configs = [config_of(spec) for spec in index.targets]
    else:
        try:
            configs = TypeAdapter(list[TeacherConfig]).validate_python(read_yaml(config).get("teachers"))
        except ValidationError as error:
            raise UsageError(f"config {config}: teachers: {error.errors()[0]['msg']}") from error
    torch.set_num_threads(1)
    teachers = build_teachers(configs, "cpu")
    for spec, teacher in zip(index.targets, teachers, strict=True):
        if spec.fingerprint != teacher.spec.fingerprint:
            raise ValueError(
                f"target {spec.name}: labelled by teacher {spec.fingerprint}, this teacher is {teacher.spec.fingerprint}"
            )
    return teachers


def relabel(folder: str, index: ShardIndex, count: int, teachers: list[Teacher]) -> list[Fault]:
    """Label the tracks of `count` random examples again, from the audio in the shards, and compare the examples."""
    reader = ShardReader(folder, index, index.shardlist)
    places = [(shard, number) for shard, entry in enumerate(index.shardlist) for number in range(entry.nsamples)]
    chosen = sorted(random.Random(0).sample(places, min(count, len(places))))
    faults: list[Fault] = []
    with Progress("relabel") as progress:
        for shard, number in chosen:
            entry = reader.entries(shard)[number]
            track = reader.read_track(shard, entry.track)
            start = sum(other.num_frames for other in reader.entries(shard)[:number] if other.track == entry.track)
            audio = to_float(track.audio)
            for teacher in teachers:
                stored = track.targets[teacher.spec.name]
                message = difference(teacher.spec, stored, teacher.label(audio), start, entry.num_frames)
                if message:
                    faults.append(Fault(index.shardlist[shard].url, entry.key, message))
            progress.update(progress.done + track.audio.size / index.sample_rate, f"{len(faults)} faults")
    reader.close()
    print(f"relabelled {len(chosen)} examples with {', '.join(teacher.spec.name for teacher in teachers)}")
    return faults


def difference(spec: TargetSpec, stored: np.ndarray, again: np.ndarray, start: int, frames: int) -> str:
    """What is wrong with frames [start, start + frames) of a target, or an empty string."""
    stored, again = (np.take(array, range(start, start + frames), spec.frame_axis) for array in (stored, again))
    if spec.kind == "discrete":
        agreement = float((stored == again).all(axis=0).mean())
        return f"{spec.name}: {agreement:.2%} of frames have the same codes" if agreement < LEAST_CODE_AGREEMENT else ""
    stored, again = stored.astype(np.float64), again.astype(np.float64)
    error = float(np.linalg.norm(stored - again) / max(np.linalg.norm(again), 1e-9))
    return f"{spec.name}: relative error {error:.2e}" if error > LARGEST_RELATIVE_ERROR else ""


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

"""Check every shard against the index, and optionally the labels against the teachers.

    mert verify SHARD_FOLDER
    mert verify SHARD_FOLDER --manifest MANIFEST_FOLDER --relabel 20
    mert verify SHARD_FOLDER --relabel 20 --teachers configs/label.yaml --device cuda

Without options: checksums, counts, member tables, code ranges, finite values, equal frame counts, whole tracks,
and an index that lists every shard and sums them up. --manifest compares the manifest's digest and the split of
every track. --relabel N runs the teachers again on the tracks of N random examples; they are those of
SHARD_FOLDER/label.yaml, or of another label config where the weights have moved. Labels made in bf16 or tf32 on a GPU
can only be checked on one, with --device cuda. Every fault is a line with shard and key; exit code 1 if there is any.
"""

import argparse
import sys
from collections import Counter
from dataclasses import asdict

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from jobs.command_line import run
from jobs.config import UsageError
from jobs.console import console
from jobs.cuda_check import check_cuda
from jobs.label import RECORDED_CONFIG
from jobs.progress import Progress
from pipeline import storage
from pipeline.manifest import Manifest, load_manifest
from pipeline.relabel import check_teachers, relabel_examples
from pipeline.shard_index import ShardIndex, load_index
from pipeline.shard_record import load_record
from pipeline.shard_state import shard_names
from pipeline.shard_verify import Fault, verify_shard
from pipeline.target_statistics import empty, merge, summarise
from pipeline.teacher import Teacher
from pipeline.teachers import TeacherConfig, build_teachers, check_device


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    index = load_index(options.shards)
    teachers: list[Teacher] = []
    if options.relabel:  # first of all, so that what is wrong with them is told before hours of reading
        check_cuda(options.device)
        teachers = load_teachers(options.teachers or storage.join(options.shards, RECORDED_CONFIG), options.device)
        check_teachers(index, teachers)
    # Only records that agree with the index can tell whether it sums them up.
    faults = verify_shards(options.shards, index) or verify_index(options.shards, index)
    if options.manifest:
        faults += compare_with_manifest(options.shards, index, load_manifest(options.manifest))
    if options.relabel and faults:
        print("the teachers are not run again on shards that are at fault themselves", file=sys.stderr)
    elif options.relabel:
        faults += relabel(options.shards, index, options.relabel, teachers)
    shards, examples = len(index.shardlist), sum(entry.nsamples for entry in index.shardlist)
    total = f"{shards} shards, {examples} examples: {f'{len(faults)} faults' if faults else 'no fault'}"
    result = {"shards": shards, "examples": examples, "faults": [asdict(fault) for fault in faults]}
    tell = console.answer if faults else console.finish
    tell(result, [*map(str, faults), total])
    return 1 if faults else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line of `mert verify`."""
    parser = argparse.ArgumentParser(prog="mert verify", add_help=False)
    parser.add_argument("shards")
    parser.add_argument("--relabel", type=int, default=0, metavar="N")
    parser.add_argument("--manifest")
    parser.add_argument("--teachers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    if options.relabel < 0:
        raise UsageError(f"--relabel {options.relabel}: a number of examples is needed, 0 or more")
    return options


def verify_shards(folder: str, index: ShardIndex) -> list[Fault]:
    """Faults of all shards, in order."""
    faults = []
    with Progress("verify", sum(entry.seconds for entry in index.shardlist)) as progress:
        for entry in index.shardlist:
            faults += verify_shard(folder, entry, index)
            progress.update(progress.done + entry.seconds, f"{len(faults)} faults" if faults else "")
    return faults


def verify_index(folder: str, index: ShardIndex) -> list[Fault]:
    """Faults of what index.json says over all shards, when no shard has one: those it leaves out, and its sums."""
    listed = [entry.name for entry in index.shardlist]
    faults = [
        Fault(name, None, "this shard lies in the folder, but the index does not list it")
        for name in sorted(shard_names(folder) - set(listed))
    ]
    dropped: Counter[str] = Counter()
    partials = {spec.name: empty(spec) for spec in index.targets}
    for name in listed:
        record = load_record(folder, name)
        dropped.update(record.dropped)
        partials = {target: merge(partial, record.statistics[target]) for target, partial in partials.items()}
    if {target: summarise(partial) for target, partial in partials.items()} != index.statistics:
        faults.append(Fault("index.json", None, "the statistics are not those of the records"))
    if dict(dropped) != index.dropped:
        faults.append(Fault("index.json", None, f"dropped segments {index.dropped}, the records say {dict(dropped)}"))
    return faults


def compare_with_manifest(folder: str, index: ShardIndex, manifest: Manifest) -> list[Fault]:
    """Faults of the index's manifest digest and of every track's split."""
    if manifest.sha256 != index.manifest_sha256:
        return [Fault("index.json", None, f"made from manifest {index.manifest_sha256}, this one is {manifest.sha256}")]
    splits = {track.key: track.split for track in manifest.tracks}
    missing = set(splits)
    faults = []
    for entry in index.shardlist:
        try:
            record = load_record(folder, entry.name)
        except (OSError, ValueError):
            continue  # a fault of the record, which verify_shards has named
        tracks = dict.fromkeys([entry.track for entry in record.members] + [drop.track for drop in record.dropped_tracks])
        missing -= set(tracks)
        for track in tracks:
            if splits.get(track) != entry.split:
                faults.append(Fault(entry.url, track, f"split {entry.split}, the manifest says {splits.get(track)}"))
    faults += [Fault("index.json", track, "a track of the manifest, in no shard") for track in sorted(missing)]
    return faults


def load_teachers(location: str, device: str) -> list[Teacher]:
    """The teachers of a label config, as a labeller runs them on a device. Raises UsageError naming the file."""
    try:
        configs = TypeAdapter(list[TeacherConfig]).validate_python(yaml.safe_load(storage.read_bytes(location))["teachers"])
    except FileNotFoundError as error:
        raise UsageError(f"{location}: not there; --teachers names a label config") from error
    except (yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{location}: no label config with teachers: {' '.join(str(error).split())}") from error
    try:
        check_device(configs, device)
    except ValueError as error:
        raise UsageError(f"{location}: {error}") from error
    torch.set_num_threads(1)
    try:
        return build_teachers(configs, device)
    except (OSError, ValueError) as error:
        raise UsageError(f"{location}: {error}; --teachers names another label config, where weights have moved") from error


def relabel(folder: str, index: ShardIndex, count: int, teachers: list[Teacher]) -> list[Fault]:
    """Faults that the teachers find in `count` random examples."""
    faults: list[Fault] = []
    with Progress("relabel") as progress:
        for seconds, found in relabel_examples(folder, index, count, teachers):
            faults += found
            progress.update(progress.done + seconds, f"{len(faults)} faults" if faults else "")
    return faults


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

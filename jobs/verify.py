"""Check every shard against the index, and optionally the labels against the teachers.

    mert verify SHARD_FOLDER
    mert verify SHARD_FOLDER --manifest MANIFEST_FOLDER --relabel 20
    mert verify SHARD_FOLDER --relabel 20 --teachers configs/label.yaml --device cuda
    mert verify SHARD_FOLDER --manifest MANIFEST_FOLDER --corpus 50

Without options: checksums, counts, member tables, code ranges, finite values, equal frame counts, whole tracks,
and an index that lists every shard and sums them up. --manifest compares the manifest's digest, and split and
length of every track. --relabel N runs the teachers again on the tracks of N random examples; they are those of
SHARD_FOLDER/label.yaml, or of another label config where the weights have moved. Labels made in bf16 or tf32 on a GPU
can only be checked on one, with --device cuda. --corpus N decodes N random source files by another library than the one
that labelled them (libsndfile against ffmpeg) and compares the audio with that in the shards; files that no second library
reads are counted. Every fault is a line with shard and key; exit code 1 if there is any.
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
from pipeline.corpus_check import Comparison, compare_corpus
from pipeline.frames import resampled_length, whole_frames
from pipeline.manifest import Manifest, Track, check_root, load_manifest
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
    manifest = load_manifest(options.manifest) if options.manifest else None
    if options.corpus:
        check_root(manifest, options.manifest)
    # Only records that agree with the index can tell whether it sums them up.
    faults = verify_shards(options.shards, index) or verify_index(options.shards, index)
    if manifest:
        faults += compare_with_manifest(options.shards, index, manifest)
    notes: list[str] = []
    if (options.relabel or options.corpus) and faults:
        print("the shards are at fault, so neither teachers nor source files were compared with them", file=sys.stderr)
    else:
        if options.relabel:
            faults += relabel(options.shards, index, options.relabel, teachers)
        if options.corpus:
            found, note = compare_sources(options.shards, manifest, options.corpus)
            faults += found
            notes.append(note)
    shards, examples = len(index.shardlist), sum(entry.nsamples for entry in index.shardlist)
    total = f"{shards} shards, {examples} examples: {f'{len(faults)} faults' if faults else 'no fault'}"
    result = {"shards": shards, "examples": examples, "notes": notes, "faults": [asdict(fault) for fault in faults]}
    tell = console.answer if faults else console.finish
    tell(result, [*map(str, faults), *notes, total])
    return 1 if faults else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line of `mert verify`."""
    parser = argparse.ArgumentParser(prog="mert verify", add_help=False)
    parser.add_argument("shards")
    parser.add_argument("--relabel", type=int, default=0, metavar="N")
    parser.add_argument("--manifest")
    parser.add_argument("--teachers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--corpus", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    if options.relabel < 0:
        raise UsageError(f"--relabel {options.relabel}: a number of examples is needed, 0 or more")
    if options.corpus < 0:
        raise UsageError(f"--corpus {options.corpus}: a number of files is needed, 0 or more")
    if options.corpus and not options.manifest:
        raise UsageError("--corpus needs --manifest: it says where the source files are")
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
    """Faults of the index's manifest digest, and of split and length of every track."""
    if manifest.sha256 != index.manifest_sha256:
        return [Fault("index.json", None, f"made from manifest {index.manifest_sha256}, this one is {manifest.sha256}")]
    planned = {track.key: track for track in manifest.tracks}
    missing = set(planned)
    faults = []
    for entry in index.shardlist:
        try:
            record = load_record(folder, entry.name)
        except (OSError, ValueError):
            continue  # a fault of the record, which verify_shards has named
        frames = record.track_frames()
        for key in dict.fromkeys([*frames, *(drop.track for drop in record.dropped_tracks)]):
            missing.discard(key)
            message = _track_difference(planned.get(key), entry.split, frames.get(key))
            if message:
                faults.append(Fault(entry.url, key, message))
    faults += [Fault("index.json", track, "a track of the manifest, in no shard") for track in sorted(missing)]
    return faults


def _track_difference(track: Track | None, split: str, frames: int | None) -> str:
    """How a track in a shard differs from its row of the manifest, or an empty string; `frames` None: it was dropped."""
    if track is None or track.split != split:
        return f"split {split}, the manifest says {track.split if track else None}"
    planned = whole_frames(resampled_length(track.num_samples, track.sample_rate))
    if frames not in (None, planned):
        return f"{frames} frames in its segments, the manifest says {planned}"
    return ""


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


def compare_sources(folder: str, manifest: Manifest, count: int) -> tuple[list[Fault], str]:
    """Faults that another library finds in `count` random source files, and how many it could read."""
    comparisons: list[Comparison] = []
    with Progress("corpus") as progress:
        for comparison in compare_corpus(folder, manifest, count):
            comparisons.append(comparison)
            progress.update(progress.done + comparison.track.seconds)
    faults = [comparison.fault for comparison in comparisons if comparison.fault]
    unread = Counter(comparison.track.format for comparison in comparisons if not comparison.is_read)
    note = f"{len(comparisons)} source files: {len(comparisons) - len(faults) - unread.total()} agree with another library"
    if unread:
        formats = ", ".join(f"{number} {format}" for format, number in sorted(unread.items()))
        note += f", {unread.total()} that none reads ({formats})"
    return faults, note


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

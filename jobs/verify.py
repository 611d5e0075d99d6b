"""Check every shard against the index, and optionally the labels against the teachers.

    mert verify SHARD_FOLDER
    mert verify SHARD_FOLDER --manifest MANIFEST_FOLDER --relabel 20
    mert verify SHARD_FOLDER --relabel 20 --teachers configs/label.yaml --device cuda
    mert verify SHARD_FOLDER --manifest MANIFEST_FOLDER --corpus 50

Without options: checksums, counts, member tables, code ranges, finite values, equal frame counts, whole tracks,
and an index that lists every shard and sums them up; of text alone only that, and its tokenizer. --manifest compares
the manifest's digest, and split and length of every track. --relabel N runs the teachers again on the tracks of N
random examples; they are those of SHARD_FOLDER/label.yaml, or of another label config where the weights have moved.
Labels made in bf16 or tf32 on a GPU can only be checked on one, with --device cuda (or auto: cuda where there is one;
cpu where not given). --corpus N decodes N random source files by another library than the one that labelled them
(libsndfile against ffmpeg) and compares the audio with that in the shards; files that no second library reads are
counted. Every fault is a line with shard and key; exit code 1 if there is any.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError

from mert_foundry.jobs.command.config import UsageError, explain
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_cuda, resolve_device
from mert_foundry.jobs.command.progress import AUDIO, TOKENS, Progress
from mert_foundry.model.teacher.registry import TEACHERS, TeacherConfig
from mert_foundry.pipeline.labelling.corpus_check import Comparison, compare_corpus
from mert_foundry.pipeline.labelling.relabel import relabel_examples
from mert_foundry.pipeline.labelling.verify import Fault, compare_with_manifest, verify_index, verify_shard
from mert_foundry.pipeline.manifest.rows import Manifest, check_root, load_manifest
from mert_foundry.pipeline.shards.index import RECORDED_CONFIG, ShardIndex, load_index
from mert_foundry.pipeline.shards.record import find_other_teachers
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.teachers.registry import build_teachers, check_device, describe_targets
from mert_foundry.pipeline.teachers.teacher import Teacher


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    index = load_index(options.shards)
    if not index.has_audio:
        refuse_audio_options(options)
    teachers: list[Teacher] = []
    if options.relabel:  # first of all, so that what is wrong with them is reported before hours of reading
        check_cuda(options.device)
        location = options.teachers or files.join(options.shards, RECORDED_CONFIG)
        teachers = load_teachers(location, options.device, index)
    manifest = load_manifest(options.manifest) if options.manifest else None
    if options.corpus and manifest:
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
        if options.corpus and manifest:
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
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument("--corpus", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    options.device = resolve_device(options.device)
    if options.relabel < 0:
        raise UsageError(f"--relabel {options.relabel}: a number of examples is needed, 0 or more")
    if options.corpus < 0:
        raise UsageError(f"--corpus {options.corpus}: a number of files is needed, 0 or more")
    if options.corpus and not options.manifest:
        raise UsageError("--corpus needs --manifest: it says where the source files are")
    return options


def refuse_audio_options(options: argparse.Namespace) -> None:
    """Raise UsageError for what compares audio, of which text alone has none."""
    for name in ("relabel", "manifest", "corpus"):
        if getattr(options, name):
            raise UsageError(f"--{name} compares audio, {options.shards} is text alone")


def verify_shards(folder: str, index: ShardIndex) -> list[Fault]:
    """Faults of all shards, in order."""
    faults = []
    sizes = [entry.seconds if index.has_audio else entry.num_frames for entry in index.shardlist]
    with Progress("verify", sum(sizes), unit=AUDIO if index.has_audio else TOKENS) as progress:
        for entry, size in zip(index.shardlist, sizes, strict=True):
            faults += verify_shard(folder, entry, index)
            progress.update(progress.done + size, f"{len(faults)} faults" if faults else "")
    return faults


class TeachersOfConfig(BaseModel):
    """The part of a label config that says who labels."""

    teachers: list[TeacherConfig] = Field(description="Teachers, in the order of index.json")


def load_teachers(location: str, device: str, index: ShardIndex) -> list[Teacher]:
    """The teachers of a label config, as a labeller runs them on a device.

    Raises:
        UsageError: the file has no such teachers, or their weights are not there; the file is named.
        ValueError: others made the labels; both fingerprints are named.
    """
    configs = read_teacher_configs(location)
    with naming(location):
        check_device(configs, device)
    hint = "; --teachers names another label config, where weights have moved"
    with naming(location, hint):
        specs = describe_targets(configs, TEACHERS)
    for difference in find_other_teachers({spec.name: spec.fingerprint for spec in index.targets}, specs):
        raise ValueError(difference)
    torch.set_num_threads(1)
    with naming(location, hint):
        return build_teachers(configs, device, TEACHERS)


def read_teacher_configs(location: str) -> list[TeacherConfig]:
    """The teachers that a label config names. Raises UsageError naming the file."""
    try:
        return TeachersOfConfig.model_validate(yaml.safe_load(files.read_bytes(location))).teachers
    except FileNotFoundError as error:
        raise UsageError(f"{location}: not there; --teachers names a label config") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{location}: no label config with teachers: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        faults = "; ".join(explain(error, TeachersOfConfig))
        raise UsageError(f"{location}: no label config with teachers: {faults}") from error


@contextmanager
def naming(location: str, hint: str = "") -> Iterator[None]:
    """What a user can cause within becomes a UsageError that names the label config."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"{location}: {error}{hint}") from error


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
    note = (
        f"{len(comparisons)} source files: {len(comparisons) - len(faults) - unread.total()} agree with another library"
    )
    if unread:
        formats = ", ".join(f"{number} {format}" for format, number in sorted(unread.items()))
        note += f", {unread.total()} that none reads ({formats})"
    return faults, note


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))

"""The data side of a plan: hours, tracks, shards, bytes, and hours of labelling."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mert_foundry.jobs.planning.calibration import FlacSample, LabellingSample
from mert_foundry.jobs.planning.figures import Basis, Figure, Line, Missing, figure
from mert_foundry.jobs.planning.gpus import GPUS, SOURCE, find_labelling
from mert_foundry.pipeline.frames import FRAME_RATE, HOP
from mert_foundry.pipeline.labelling.plan import ShardTask
from mert_foundry.pipeline.labelling.planned_bytes import PlannedBytes, PlannedShard, plan_bytes, plan_contents
from mert_foundry.pipeline.manifest.shifted_track import semitones_of
from mert_foundry.pipeline.shards.format import AudioMember
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.text.tokenizer import TextTokenizer

CORPUS, SHARDS, BYTES, LABELLING = "corpus", "shards", "bytes", "labelling"
UNDECODED = "silent segments and files that changed are found when they are decoded; here they count as kept"


@dataclass(frozen=True)
class PlannedSet:
    """The shard set to be made: tasks, what each will hold, and what it is made of."""

    tasks: Sequence[ShardTask]
    contents: Sequence[PlannedShard]
    specs: Sequence[TargetSpec]
    audio_member: AudioMember

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return sorted({shard.split for shard in self.contents})

    def of(self, split: str) -> list[PlannedShard]:
        """The shards of a split."""
        return [shard for shard in self.contents if shard.split == split]

    @property
    def track_seconds(self) -> float:
        """Seconds of all tracks, as they are labelled."""
        return sum(task.seconds for task in self.tasks)


@dataclass(frozen=True)
class FlacRate:
    """FLAC bytes of an audio second, and where they are from."""

    inputs: dict[str, float]
    formula: str
    value: float
    basis: Basis
    note: str


def plan_set(
    tasks: Sequence[ShardTask],
    specs: Sequence[TargetSpec],
    audio_member: AudioMember,
    tokenizer: TextTokenizer | None = None,
) -> PlannedSet:
    """What the tasks of a label config will give; tasks with text need their tokenizer."""
    return PlannedSet(tasks, [plan_contents(task, tokenizer) for task in tasks], specs, audio_member)


def measured_flac(sample: FlacSample) -> FlacRate:
    """The rate of a sample of tracks."""
    share = 200 * sample.error * sample.seconds / sample.bytes
    spread = f"two standard errors are {share:.1f} %" if sample.tracks > 1 else "how others differ is not known"
    return FlacRate(
        {"flac_bytes": sample.bytes, "flac_seconds": sample.seconds},
        "flac_bytes / flac_seconds",
        sample.bytes / sample.seconds,
        "measured",
        f"FLAC measured on {sample.tracks} track{'s' if sample.tracks > 1 else ''}, {sample.seconds / 60:.1f} minutes;"
        f" {spread}",
    )


def stated_flac(rate: float) -> FlacRate:
    """A rate that the user gave."""
    return FlacRate(
        {"flac_bytes_per_second": rate}, "flac_bytes_per_second", rate, "stated", "flac_bytes_per_second as stated"
    )


def corpus_figures(planned: PlannedSet) -> Iterator[Line]:
    """Tracks, hours, examples and shards by split."""
    for split in planned.splits:
        tasks = [task for task in planned.tasks if task.name.rpartition("-")[0] == split]
        shards = planned.of(split)
        tracks = sum(len(task.tracks) for task in tasks)
        seconds = sum(task.seconds for task in tasks)
        frames = sum(shard.frames for shard in shards)
        examples = sum(shard.examples for shard in shards)
        copies = sum(semitones_of(track) != 0 for task in tasks for track in task.tracks)
        inputs = {"tracks": tracks - copies} | ({"copies": copies} if copies else {})
        note = "rows of the manifest, and their copies shifted in pitch" if copies else "rows of the manifest"
        yield figure(CORPUS, f"{split}: tracks", "", " + ".join(inputs), inputs, "counted", note)
        yield figure(CORPUS, f"{split}: hours of tracks", "h", "seconds / 3600", {"seconds": seconds}, "counted")
        short = {"tracks": sum(shard.short_tracks for shard in shards)}
        yield figure(
            CORPUS, f"{split}: tracks that are too short", "", "tracks", short, "counted", "segments.shortest_seconds"
        )
        yield figure(SHARDS, f"{split}: shards", "", "shards", {"shards": len(shards)}, "counted")
        yield figure(SHARDS, f"{split}: examples", "", "examples", {"examples": examples}, "counted", UNDECODED)
        hours = {"frames": frames, "frame_rate": FRAME_RATE}
        yield figure(SHARDS, f"{split}: hours", "h", "frames / frame_rate / 3600", hours, "counted", UNDECODED)


def byte_figures(planned: PlannedSet, flac: FlacRate) -> Iterator[Line]:
    """Bytes by member, by split, and by how audio and spectra are stored."""
    whole = plan_bytes(planned.contents, planned.specs, planned.audio_member, flac.value)
    yield from _member_figures(planned, whole, flac)
    for split in planned.splits:
        yield _total(f"{split}: all shards", planned, planned.of(split), planned.specs, planned.audio_member, flac)
    yield _total("all shards", planned, planned.contents, planned.specs, planned.audio_member, flac)
    for audio, specs, how in _policies(planned):
        yield _total(f"all shards, stored as {how}", planned, planned.contents, specs, audio, flac)


def _member_figures(planned: PlannedSet, whole: PlannedBytes, flac: FlacRate) -> Iterator[Figure]:
    """The bytes of each member, without what the tar adds."""
    frames = sum(shard.frames for shard in planned.contents)
    examples = sum(shard.examples for shard in planned.contents)
    arrays = {f"{spec.name}.npy": (spec.size, np.dtype(spec.dtype).itemsize) for spec in planned.specs}
    arrays["pcm.npy"] = (HOP, 2)
    for suffix, size in sorted(whole.members.items()):
        if suffix in arrays:
            per_frame, each = arrays[suffix]
            inputs: dict[str, float] = {"frames": frames, "values_per_frame": per_frame, "bytes_per_value": each}
            inputs["array_headers"] = size - frames * per_frame * each
            formula = "frames * values_per_frame * bytes_per_value + array_headers"
            yield figure(BYTES, suffix, "B", formula, inputs, "counted")
        elif suffix == "flac":
            inputs = {"frames": frames, "frame_rate": FRAME_RATE, **flac.inputs}
            formula = f"frames / frame_rate * ({flac.formula})"
            yield figure(BYTES, suffix, "B", formula, inputs, flac.basis, flac.note)
        else:
            inputs = {"examples": examples, "mean_bytes": size / examples if examples else 0.0}
            yield figure(BYTES, suffix, "B", "examples * mean_bytes", inputs, "counted")


def _total(
    name: str,
    planned: PlannedSet,
    shards: Sequence[PlannedShard],
    specs: Sequence[TargetSpec],
    audio_member: AudioMember,
    flac: FlacRate,
) -> Figure:
    """The bytes of whole tars."""
    sizes = plan_bytes(shards, specs, audio_member, flac.value)
    named = {suffix.replace(".", "_"): size for suffix, size in sorted(sizes.members.items())}
    inputs = {**named, "tar_headers": sizes.headers, "tar_padding": sizes.padding, "tar_ends": sizes.ends}
    basis: Basis = flac.basis if audio_member == "flac" else "counted"
    note = flac.note if audio_member == "flac" else UNDECODED
    return figure(BYTES, name, "B", " + ".join(inputs), inputs, basis, note)


def _policies(planned: PlannedSet) -> Iterator[tuple[AudioMember, list[TargetSpec], str]]:
    """Every way to store audio and continuous targets, and what it is called."""
    dtypes: tuple[Literal["uint8", "float16"], ...] = ("uint8", "float16")
    continuous = [spec.name for spec in planned.specs if spec.kind == "continuous"]
    for audio in get_args(AudioMember):
        for dtype in dtypes if continuous else dtypes[:1]:
            specs = [
                spec.model_copy(update={"dtype": dtype}) if spec.kind == "continuous" else spec
                for spec in planned.specs
            ]
            yield audio, specs, ", ".join([audio, *(f"{name} {dtype}" for name in continuous)])


def worker_figures(planned: PlannedSet, sample: LabellingSample | float, workers: int) -> Iterator[Line]:
    """Hours of labelling, of one worker and of all, at a worker's measured or stated rate (times real time)."""
    rate: dict[str, float]
    basis: Basis
    if isinstance(sample, LabellingSample):
        rate = {"labelled_seconds": sample.seconds, "wall_seconds": sample.wall_seconds}
        formula, basis = "labelled_seconds / wall_seconds", "measured"
        note = f"one worker of this machine, on {sample.seconds / 60:.1f} minutes; teachers were loaded before"
    else:
        rate, formula, basis = {"labelling_rate": sample}, "labelling_rate", "stated"
        note = "labelling_rate as stated"
    yield figure(LABELLING, "rate of one worker, times real time", "", formula, rate, basis, note)
    inputs = {"track_seconds": planned.track_seconds, **rate}
    hours = f"track_seconds / ({formula}) / 3600"
    yield figure(LABELLING, "hours of one worker", "h", hours, inputs, basis, note)
    note += "; workers are taken to be as fast together, which they are while each has its core"
    inputs["workers"] = workers
    yield figure(LABELLING, "hours, all workers at once", "h", f"{hours} / workers", inputs, "estimate", note)


def gpu_labelling_figures(planned: PlannedSet, gpu: str | None, workers: int) -> Iterator[Line]:
    """Hours of labelling with `workers` on each GPU, where this machine has none to measure."""
    if gpu is None:
        needs = f"device is cuda and this machine has no GPU: gpu= names one that was measured ({', '.join(GPUS)}), or"
        yield Missing(section=LABELLING, name="hours", needs=f"{needs} labelling_rate= states that of one worker")
        return
    measured = find_labelling(GPUS[gpu], workers)
    note = (
        f"{SOURCE}: {measured.workers} workers on one {gpu} and 16 CPU cores label 60 s MP3 files with EnCodec and CQT"
    )
    note += "; decoding was the limit"
    rate = {"rate": measured.rate}
    yield figure(LABELLING, "rate of one GPU, times real time", "", "rate", rate, "measured", note)
    inputs = {"track_seconds": planned.track_seconds, **rate}
    yield figure(LABELLING, "hours of one GPU", "h", "track_seconds / rate / 3600", inputs, "estimate", note)


def count_examples(planned: PlannedSet, split: str) -> Counter[int]:
    """Examples of a split by their frames."""
    total: Counter[int] = Counter()
    for shard in planned.of(split):
        total.update(shard.lengths)
    return total

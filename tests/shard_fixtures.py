"""Tiny shard sets for tests, written by the real writer.

Every value tells where in its track it stands: sample n is n mod 32000, code k of frame f is
(f + k) mod 16, bin b of frame f is f mod 100 + b. So alignment can be read off any crop.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.labelling.shard_writer import write_shard
from mert_foundry.pipeline.shards.format import AudioMember, Example, SegmentInfo
from mert_foundry.pipeline.shards.index import ShardIndex, build_index
from mert_foundry.pipeline.shards.record import DroppedSegment, ShardRecord
from mert_foundry.pipeline.shards.target import TargetSpec

CODES = TargetSpec(
    name="codes",
    kind="discrete",
    dtype="uint16",
    frame_rate=75,
    size=2,
    codebook_size=16,
    fingerprint="a" * 64,
    teacher={},
)
CQT = TargetSpec(
    name="cqt", kind="continuous", dtype="float16", frame_rate=75, size=4, fingerprint="b" * 64, teacher={"bins": 4}
)
SPECS = [CODES, CQT]


def make_example(track: str, num_frames: int, start_frame: int = 0, segment: int = 0, segments: int = 1) -> Example:
    """A segment of the track whose values tell their place."""
    samples = np.arange(HOP * start_frame, HOP * (start_frame + num_frames))
    frames = np.arange(start_frame, start_frame + num_frames)
    info = SegmentInfo(
        track=track,
        segment=segment,
        segments=segments,
        start_sample=HOP * start_frame,
        num_samples=HOP * num_frames,
        num_frames=num_frames,
        audio_sha256="c" * 64,
        sample_rate=SAMPLE_RATE,
    )
    targets = {
        "codes": np.stack([frames % 16, (frames + 1) % 16]).astype(np.uint16),
        "cqt": (frames[:, None] % 100 + np.arange(4)).astype(np.float16),
    }
    return Example(info, (samples % 32_000).astype(np.int16), targets)


def make_track(track: str, *lengths: int) -> list[Example]:
    """A track of segments of `lengths` frames."""
    starts = np.cumsum([0, *lengths])
    return [
        make_example(track, length, int(start), number, len(lengths))
        for number, (length, start) in enumerate(zip(lengths, starts, strict=False))
    ]


def as_dropped(example: Example) -> DroppedSegment:
    """The segment, had it been silent."""
    return DroppedSegment(
        **example.info.model_dump(), reason="silent", detail="peak -70.0 dBFS, at least -60.0 dBFS is asked for"
    )


def write_examples(
    folder: object, name: str, outcomes: object, audio_member: AudioMember = "flac", specs: list[TargetSpec] = SPECS
) -> ShardRecord:
    """`write_shard` with the settings of these tests."""
    return write_shard(
        str(folder),
        name,
        outcomes,
        specs,
        audio_member=audio_member,
        plan_fingerprint="plan",
        backend={"device": "cpu"},
    )


def index_shards(
    folder: object, names: list[str], audio_member: AudioMember = "flac", specs: list[TargetSpec] = SPECS
) -> ShardIndex:
    """`build_index` with the settings of these tests."""
    return build_index(
        str(folder),
        names,
        specs,
        name="tiny",
        manifest_sha256="d" * 64,
        segment_seconds=1.0,
        audio_member=audio_member,
    )


def write_set(
    folder: Path | str,
    sizes: list[int],
    audio_member: AudioMember = "flac",
    valid_sizes: list[int] | None = None,
    prefix: str = "",
    specs: list[TargetSpec] = SPECS,
) -> ShardIndex:
    """Shards `train-...` with so many examples each, of 12 to 60 frames; also `valid-...` if asked for.

    `prefix`: of the tracks.
    """
    names = []
    for split, counts in (("train", sizes), ("valid", valid_sizes or [])):
        for number, size in enumerate(counts):
            names.append(f"{split}-{number:06d}")
            lengths = [12 + 7 * (3 * number + item) % 49 for item in range(size)]
            examples = [make_example(f"{prefix}{split}{number}x{item}", length) for item, length in enumerate(lengths)]
            wanted = {spec.name for spec in specs}
            examples = [
                replace(example, targets={name: array for name, array in example.targets.items() if name in wanted})
                for example in examples
            ]
            write_examples(folder, names[-1], examples, audio_member, specs)
    return index_shards(folder, names, audio_member, specs)

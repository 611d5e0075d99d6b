"""Examples for `mert bench loader`, in the form each loader reads: shards of ours, and the files of its peers.

All forms hold the same bits. Codes are random; CQT values too, since no loader looks at them. Audio is
decaying notes over noise, which FLAC packs about as it packs music (29 kB a second).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE
from mert_foundry.pipeline.labelling.shard_writer import write_shard
from mert_foundry.pipeline.shards.companding import Companding
from mert_foundry.pipeline.shards.format import AudioMember, Example, SegmentInfo, encode_flac
from mert_foundry.pipeline.shards.index import build_index
from mert_foundry.pipeline.shards.target import TargetSpec

EXAMPLES_A_SHARD = 64
CODEBOOKS, CODEBOOK_SIZE, BINS = 8, 1024, 336

Storage = Literal["uint8", "float16"]  # of the CQT


def target_specs(storage: Storage) -> list[TargetSpec]:
    """Codes as of EnCodec and a CQT as `mert label` makes them."""
    common = {"frame_rate": FRAME_RATE, "fingerprint": "0" * 64, "teacher": {}}
    companding = Companding(peak=225, mu=10_000) if storage == "uint8" else None
    return [
        TargetSpec(
            name="codes", kind="discrete", dtype="uint16", size=CODEBOOKS, codebook_size=CODEBOOK_SIZE, **common
        ),
        TargetSpec(name="cqt", kind="continuous", dtype=storage, size=BINS, companding=companding, **common),
    ]


def make_examples(count: int, num_frames: int, storage: Storage) -> list[Example]:
    """`count` examples of `num_frames` frames; a pure function of its arguments."""
    rng = np.random.default_rng(0)
    segments = _segments(rng, HOP * num_frames)
    examples = []
    for number, audio in enumerate(islice(segments, count)):
        codes = rng.integers(0, CODEBOOK_SIZE, (CODEBOOKS, num_frames), dtype=np.uint16)
        levels = rng.integers(0, 256, (num_frames, BINS), dtype=np.uint8)
        info = SegmentInfo(
            track=f"track{number:06d}",
            segment=0,
            segments=1,
            start_sample=0,
            num_samples=HOP * num_frames,
            num_frames=num_frames,
            audio_sha256="0" * 64,
            sample_rate=SAMPLE_RATE,
        )
        examples.append(Example(info, audio, {"codes": codes, "cqt": levels.astype(storage)}))
    return examples


def _segments(rng: np.random.Generator, length: int) -> Iterator[np.ndarray]:
    """Endless segments of `length` samples: a note of five partials each quarter of a second, over noise."""
    times = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    while True:
        notes = []
        for _ in range(-(-length // len(times))):
            pitch = 110 * 2 ** (rng.integers(0, 36) / 12)
            partials = (np.sin(2 * np.pi * pitch * k * times + rng.uniform(0, 6)) / k for k in range(1, 6))
            notes.append(sum(partials) * np.exp(-6 * times))
        audio = 6000 * np.concatenate(notes)[:length] + rng.normal(0, 70, length)
        yield audio.round().astype(np.int16)


def write_shards(folder: Path, examples: Sequence[Example], storage: Storage, audio_member: AudioMember) -> None:
    """A shard folder of one split, `train`."""
    specs = target_specs(storage)
    names = []
    for start in range(0, len(examples), EXAMPLES_A_SHARD):
        names.append(f"train-{start // EXAMPLES_A_SHARD:06d}")
        write_shard(
            str(folder),
            names[-1],
            examples[start : start + EXAMPLES_A_SHARD],
            specs,
            audio_member=audio_member,
            plan_fingerprint="bench",
            backend={},
        )
    seconds = examples[0].info.num_frames / FRAME_RATE
    build_index(
        str(folder),
        names,
        specs,
        name="bench",
        manifest_sha256="0" * 64,
        segment_seconds=seconds,
        audio_member=audio_member,
    )


def write_arrays(folder: Path, examples: Sequence[Example]) -> None:
    """`{key}.{audio,codes,cqt}.npy` and `{key}.flac`, one file an array, as people keep labels who have no shards."""
    folder.mkdir(parents=True)
    for example in examples:
        for name, array in {"audio": example.audio, **example.targets}.items():
            np.save(folder / f"{example.key}.{name}.npy", array)
        (folder / f"{example.key}.flac").write_bytes(encode_flac(example.audio))

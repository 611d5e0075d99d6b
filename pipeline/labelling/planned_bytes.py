"""Bytes of shards before they are made: exact, but for FLAC, whose size depends on the music.

What is found only by decoding, such as silent segments and changed files, counts as if it were kept.
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from tarfile import BLOCKSIZE, RECORDSIZE

import numpy as np

from mert_foundry.pipeline.frames import FRAME_RATE, HOP
from mert_foundry.pipeline.labelling.plan import ShardTask, planned_segments, segment_values
from mert_foundry.pipeline.shards.format import AudioMember, SegmentInfo, encode_info
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.shards.text import encode_text
from mert_foundry.pipeline.text.tokenizer import TextTokenizer

TAR_END = 2 * BLOCKSIZE  # two blocks of zeros, after which the tar is padded to whole records
MEAN_PADDING = (BLOCKSIZE - 1) / 2  # of a member whose size is not known


@dataclass(frozen=True)
class PlannedShard:
    """What a shard will hold.

    lengths: examples by their number of frames. info_bytes, info_padding: of all `{key}.json`, and to whole tar blocks.
    short_tracks: tracks that are shorter than the shortest segment, and give no example. text, text_padding: of the
    members with text, by suffix, if there are any.
    """

    split: str
    lengths: Counter[int]
    info_bytes: int
    info_padding: int
    short_tracks: int
    text: Mapping[str, int]
    text_padding: int

    @property
    def examples(self) -> int:
        """Number of examples."""
        return self.lengths.total()

    @property
    def frames(self) -> int:
        """Target frames of all examples, 75 per second."""
        return sum(frames * count for frames, count in self.lengths.items())


@dataclass(frozen=True)
class PlannedBytes:
    """Bytes of shards: of members by suffix, and what the tars add: headers, padding of members, and their ends."""

    members: dict[str, float]
    headers: float
    padding: float
    ends: float

    @property
    def files(self) -> float:
        """Bytes of the whole tars."""
        return sum(self.members.values()) + self.headers + self.padding + self.ends


def plan_contents(task: ShardTask, tokenizer: TextTokenizer | None = None) -> PlannedShard:
    """The examples that a shard task will give; one with text needs its tokenizer."""
    lengths: Counter[int] = Counter()
    text: Counter[str] = Counter()
    info_bytes = info_padding = short_tracks = text_padding = 0
    for track in task.tracks:
        segments = planned_segments(track, task.config)
        short_tracks += not segments
        lengths.update(segments)
        for values in segment_values(track, segments):
            # The values are not checked again for each of a million segments, since the rows of the manifest were.
            size = len(encode_info(SegmentInfo.model_construct(**values)))
            info_bytes += size
            info_padding += _padding(size)
        if task.text and tokenizer and segments:
            for suffix, data in encode_text(tokenizer.encode(task.text.text_of(track))).items():
                text[suffix] += len(segments) * len(data)
                text_padding += len(segments) * _padding(len(data))
    split = task.name.rpartition("-")[0]
    return PlannedShard(split, lengths, info_bytes, info_padding, short_tracks, text, text_padding)


def plan_bytes(
    shards: Iterable[PlannedShard],
    specs: Sequence[TargetSpec],
    audio_member: AudioMember,
    flac_bytes_per_second: float = 0.0,
) -> PlannedBytes:
    """Bytes of shards with these targets. Of FLAC, `flac_bytes_per_second` is the mean over the corpus."""
    members: Counter[str] = Counter()
    headers = padding = ends = 0.0
    for shard in shards:
        sizes, of_members = _member_bytes(shard, specs, audio_member, flac_bytes_per_second)
        of_headers = BLOCKSIZE * shard.examples * len(sizes)
        content = sum(sizes.values()) + of_headers + of_members
        members.update(sizes)
        headers += of_headers
        padding += of_members
        ends += math.ceil((content + TAR_END) / RECORDSIZE) * RECORDSIZE - content
    return PlannedBytes(dict(members), headers, padding, ends)


def _member_bytes(
    shard: PlannedShard, specs: Sequence[TargetSpec], audio_member: AudioMember, flac_bytes_per_second: float
) -> tuple[dict[str, float], float]:
    """Bytes of the members of a shard by suffix, and their padding to whole tar blocks."""
    sizes = {"json": float(shard.info_bytes), **{suffix: float(size) for suffix, size in shard.text.items()}}
    padding = float(shard.info_padding + shard.text_padding)
    arrays: dict[str, tuple[str, Callable[[int], tuple[int, ...]]]] = {
        f"{spec.name}.npy": (spec.dtype, spec.shape) for spec in specs
    }
    if audio_member == "flac":
        sizes["flac"] = shard.frames / FRAME_RATE * flac_bytes_per_second
        padding += MEAN_PADDING * shard.examples
    else:
        arrays[audio_member] = ("int16", lambda frames: (frames * HOP,))
    for suffix, (dtype, shape) in arrays.items():
        each = {frames: array_bytes(dtype, shape(frames)) for frames in shard.lengths}
        sizes[suffix] = float(sum(each[frames] * count for frames, count in shard.lengths.items()))
        padding += sum(_padding(each[frames]) * count for frames, count in shard.lengths.items())
    return sizes, padding


@lru_cache(maxsize=4096)
def array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array in the `.npy` form of `encode_array`."""
    stream = io.BytesIO()
    little = np.dtype(dtype).newbyteorder("<")
    header = {"descr": np.lib.format.dtype_to_descr(little), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.tell() + little.itemsize * int(np.prod(shape))


def _padding(size: int) -> int:
    """Bytes from the end of a member to the next tar block."""
    return -size % BLOCKSIZE

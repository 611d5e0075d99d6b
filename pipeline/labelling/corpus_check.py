"""Source files decoded again by another library, and compared with the audio in the shards that were made of them.

A file that one library reads wrongly without a word (noise for music, a dull copy, a lost end) is labelled and verified
like any other: only a second reader can tell.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mert_foundry.pipeline.audio.decode import decoder_faults
from mert_foundry.pipeline.audio.decode_error import DecodeError
from mert_foundry.pipeline.audio.resample import decoded_track
from mert_foundry.pipeline.audio.second_reader import read_again
from mert_foundry.pipeline.features.plan import ShardPlace, SourceTrack
from mert_foundry.pipeline.features.shard_tracks import ShardTracks
from mert_foundry.pipeline.frames import HOP, SAMPLE_RATE
from mert_foundry.pipeline.labelling.verify import Fault
from mert_foundry.pipeline.manifest.rows import Manifest, Track
from mert_foundry.pipeline.storage import files

# Steps of 16 bits. Two lossless decoders give the same samples, whose mean over the channels may round the other way;
# Vorbis is defined but for rounding.
MOST_STEPS = {"ogg/vorbis": 2}
OTHER_STEPS = 1
# Samples at 24 kHz at the end that the second reader may not give: ffmpeg leaves out up to half of Vorbis' longest
# block.
LOST_BY_READER = {"ogg/vorbis": 4096}
LOSSY = {"mp3/mp3float", "ogg/opus"}
COMPARED_SAMPLES = 1 << 22
FILTER_SAMPLES = 100  # before its end in which a resampled signal depends on what follows
MOST_LOSSY_ERROR = 0.02  # root mean square, relative to the signal's
MOST_LAG = 2400  # samples at 24 kHz; decoders of MP3 differ in what they cut at the start


@dataclass(frozen=True)
class Comparison:
    """One file, compared. `fault` is None when the two agree, or when no second library reads the file (`is_read`)."""

    track: Track
    is_read: bool
    fault: Fault | None


def compare_corpus(folder: str, manifest: Manifest, count: int) -> Iterator[Comparison]:
    """Compare `count` random tracks, always the same ones of a set, with their source files.

    Raises:
        OSError: a file or a shard cannot be reached.
        ValueError: a shard is damaged.
    """
    shards = ShardTracks(folder)
    try:
        rows = {track.key: track for track in manifest.tracks}
        tracks = [track for track in shards.list_tracks() if track.key in rows]
        for track in random.Random(0).sample(tracks, min(count, len(tracks))):
            yield _compare(shards, track, rows[track.key], manifest.root)
    finally:
        shards.close()


def _compare(shards: ShardTracks, track: SourceTrack, row: Track, root: str) -> Comparison:
    try:
        with files.local_copy(root, row.path) as path, decoder_faults():
            reading = read_again(path, row.format, row.notes)
            if reading is None:
                return Comparison(row, False, None)
            found = decoded_track(reading.blocks, reading.sample_rate)
    except DecodeError:  # the other library's own limits
        return Comparison(row, False, None)
    with shards.open(track) as audio:
        assert track.num_samples is not None  # of shards, it is always known
        stored = audio.read(0, track.num_samples)
    if len(found) < len(stored) and (row.header_seconds is None or row.format == "mp3/mp3float"):
        # Where a size was left open, or no count says how long an MP3 is, the other library may stop early.
        return Comparison(row, False, None)
    message = difference(stored, found, row.format, _kept(track))
    url = shards.index.shardlist[_place(track).shard].url
    if message:
        message = f"{row.path}: {reading.reader} decodes other audio than the shards hold: {message}"
    return Comparison(row, True, Fault(url, track.key, message) if message else None)


def difference(stored: np.ndarray, found: np.ndarray, format: str, kept: np.ndarray) -> str:
    """What sets two tracks apart, int16 `[T]` at 24 kHz; empty when they are the same music but for rounding.

    `kept`: bool `[T / 320]`, frames of the stored one that are not dropped segments.
    """
    is_lossy = format in LOSSY
    shorter = MOST_LAG if is_lossy else LOST_BY_READER.get(format, 0)
    longer = MOST_LAG if is_lossy else 0
    if not -shorter <= len(found) - len(stored) <= longer:
        return f"{len(found)} samples, {len(stored)} are stored"
    if format == "mp3/mp3float":
        lag = find_lag(stored, found)
        found = np.roll(found, -lag) if abs(lag) <= MOST_LAG else found
    length = min(len(stored), len(found))
    if len(found) < len(stored):
        length = max(0, length - FILTER_SAMPLES)
    mask = np.repeat(kept, HOP)[:length]
    most, squares, power = 0, 0.0, 0.0
    for start in range(0, length, COMPARED_SAMPLES):  # hours at once would need gigabytes
        part = slice(start, min(start + COMPARED_SAMPLES, length))
        first, second = (samples[part][mask[part]].astype(np.float64) for samples in (stored, found))
        most = max(most, int(np.abs(first - second).max(initial=0)))
        squares, power = squares + float(np.sum((first - second) ** 2)), power + float(np.sum(first**2))
    if is_lossy:
        error = np.sqrt(squares / max(power, 1.0))
        return f"a relative error of {error:.1%}" if error > MOST_LOSSY_ERROR else ""
    allowed = MOST_STEPS.get(format, OTHER_STEPS)
    return f"up to {most} steps of 16 bits apart, {allowed} may be rounding" if most > allowed else ""


def find_lag(stored: np.ndarray, found: np.ndarray) -> int:
    """Samples by which `found` is late, from the peak of the cross-correlation over the first minute."""
    first, second = (samples[: 60 * SAMPLE_RATE].astype(np.float64) for samples in (stored, found))
    size = 1 << (len(first) + len(second)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(second, size) * np.fft.rfft(first, size).conj(), size)
    lag = int(np.argmax(correlation))
    return lag if lag < size // 2 else lag - size


def _place(track: SourceTrack) -> ShardPlace:
    assert isinstance(track.place, ShardPlace), "a track of ShardTracks"
    return track.place


def _kept(track: SourceTrack) -> np.ndarray:
    place = _place(track)
    kept = [np.full(frames, example is not None) for example, frames in zip(place.examples, place.frames, strict=True)]
    return np.concatenate(kept)
